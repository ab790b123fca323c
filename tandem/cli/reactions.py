"""`tandem reactions`: what is done because of events, and what is parked of it, over ReactionService."""

import getpass
from typing import Annotated, Any

import typer
from google.protobuf.descriptor import ServiceDescriptor
from rich.table import Table
from rich.text import Text

from tandem.cli.calls import as_fields, asking, pages
from tandem.cli.domain import Domain
from tandem.cli.local_stack import DEFAULT_PORTS
from tandem.cli.output import FAILED, Json, new_console, print_json, report
from tandem.cli.status import reactions_table

_ASK_SECONDS = 10.0
_PAGE = 1000
_WHAT = "the command server"

_Address = Annotated[str, typer.Option("--command-address", help="Address of any command server.")]
_Reaction = Annotated[str, typer.Argument(help="The reaction, as `list` names it.")]
_Actor = Annotated[str, typer.Option(help="Who asks, for the log: an account or a pseudonym, no name.")]


def add_to(app: typer.Typer, domain: Domain) -> None:
    commands = typer.Typer(
        no_args_is_help=True, help="What is done because of events: how it goes, and what is parked of it."
    )
    address = f"127.0.0.1:{DEFAULT_PORTS.command}"
    _add_lists(commands, domain.reactions, address)
    _add_parked(commands, domain.reactions, address)
    _add_replay(commands, domain.reactions, address)
    app.add_typer(commands, name="reactions")


def _add_lists(app: typer.Typer, service: ServiceDescriptor, default_address: str) -> None:
    @app.command("list")
    def list_reactions(*, command_address: _Address = default_address, as_json: Json = False) -> None:
        """List the reactions: how far each has followed the feed, what it is to do, and what is parked."""
        with asking(service, _WHAT, command_address, timeout=_ASK_SECONDS) as ask:
            answer = ask("ListReactions")
        if as_json:
            print_json([as_fields(it) for it in answer.reactions])
        else:
            new_console().print(reactions_table([as_fields(it) for it in answer.reactions]))
            typer.echo(f"feed head: {answer.feed_head:,}")

    @app.command()
    def parked(
        reaction: Annotated[str, typer.Argument(help="Only what this reaction has not done.")] = "",
        *,
        command_address: _Address = default_address,
        as_json: Json = False,
    ) -> None:
        """List what was not done and waits for you: failed commands, dead letters of the webhook, events with a bug."""
        with asking(service, _WHAT, command_address, timeout=_ASK_SECONDS) as ask:
            found = pages(ask, "ListParkedTasks", reaction=reaction, page_size=_PAGE)
            tasks = [as_fields(it) for page in found for it in page.parked_tasks]
        if as_json:
            print_json(tasks)
        elif not tasks:
            typer.echo("nothing is parked")
        else:
            _print_parked(tasks)


def _add_parked(app: typer.Typer, service: ServiceDescriptor, default_address: str) -> None:
    @app.command()
    def redrive(
        reaction: _Reaction,
        key: Annotated[str, typer.Argument(help="What it is about, as `parked` says; leave it out with --all.")] = "",
        *,
        all_keys: Annotated[bool, typer.Option("--all", help="All that is parked of the reaction.")] = False,
        actor: _Actor = "",
        command_address: _Address = default_address,
        as_json: Json = False,
    ) -> None:
        """Have what is parked done anew: commands given, webhooks sent, events taken in, in their order.

        Exit code 1 when some events stay parked. Whether commands and webhooks succeed now, `parked` says later.
        """
        if bool(key) == all_keys:
            raise typer.BadParameter("give a key, or --all")
        who = actor or getpass.getuser()
        with asking(service, _WHAT, command_address, timeout=_ASK_SECONDS, actor=who) as ask:
            redriven = parked = 0
            for part in pages(ask, "RedriveParkedTasks", reaction=reaction, key=key):
                redriven += part.redriven_tasks
                parked += part.parked_tasks
                said = f"{redriven} are done from now on, {parked} events stay parked"
                if part.next_page_token:
                    report(f"{said}, so far")
        if as_json:
            print_json({"redriven_tasks": str(redriven), "parked_tasks": str(parked)})
        else:
            typer.echo(said)
        if parked:
            raise typer.Exit(FAILED)

    @app.command()
    def drop(
        reaction: _Reaction,
        key: Annotated[str, typer.Argument(help="What it is about: a UUID.")],
        *,
        reason: Annotated[str, typer.Option(help="Why; it is logged.")],
        yes: Annotated[bool, typer.Option("--yes", help="Do not ask; needed with --json.")] = False,
        actor: _Actor = "",
        command_address: _Address = default_address,
        as_json: Json = False,
    ) -> None:
        """Drop what is parked of an aggregate, for good: it is never done."""
        if as_json and not yes:
            raise typer.BadParameter("--json wants --yes too: a program is not asked")
        if not yes:
            typer.confirm(f"Never do what {reaction} has parked of {key}?", abort=True)
        who = actor or getpass.getuser()
        with asking(service, _WHAT, command_address, timeout=_ASK_SECONDS, actor=who) as ask:
            answer = ask("DropParkedTasks", reaction=reaction, key=key, reason=reason)
        if as_json:
            print_json(as_fields(answer))
        else:
            typer.echo(f"{answer.dropped_tasks} dropped")


def _add_replay(app: typer.Typer, service: ServiceDescriptor, default_address: str) -> None:
    @app.command()
    def replay(
        reaction: _Reaction,
        after: Annotated[int, typer.Option(help="The event behind which it goes on.", min=0)],
        *,
        actor: _Actor = "",
        command_address: _Address = default_address,
        as_json: Json = False,
    ) -> None:
        """Have a reaction take events in again, or pass some over. What was done is not done twice.

        It goes no further back than receipts are kept, TANDEM_COMMAND_RECEIPTS__KEEP_DAYS, nor behind where it began.
        """
        who = actor or getpass.getuser()
        with asking(service, _WHAT, command_address, timeout=_ASK_SECONDS, actor=who) as ask:
            answer = ask("ReplayReaction", reaction=reaction, after_position=after)
        if as_json:
            print_json(as_fields(answer))
        else:
            typer.echo(f"{reaction} goes on behind event {after}; it was at {answer.position}")


def _print_parked(tasks: list[Any]) -> None:
    table = Table("reaction", "about", box=None, pad_edge=False)
    table.add_column("event", justify="right")
    for column in ("what", "type"):
        table.add_column(column)
    table.add_column("attempts", justify="right")
    for column in ("parked at", "error"):
        table.add_column(column)
    for it in tasks:
        kind = it["kind"].removeprefix("PARKED_TASK_KIND_").lower()
        fields = (it["reaction"], it["key"], it["position"], kind, it["type"], str(it["attempts"]), it["parked_at"])
        table.add_row(*fields, Text(it["error"]))
    # A key is to be copied whole.
    new_console(least_width=200).print(table)
