"""`tandem parked`: rows that could not take an event in, seen, redriven and dropped, over ProjectionService."""

import getpass
import time
from contextlib import AbstractContextManager
from typing import Annotated, Any

import typer
from google.protobuf.descriptor import ServiceDescriptor
from rich.table import Table
from rich.text import Text

from tandem.cli.calls import Ask, as_fields, asking, pages
from tandem.cli.output import FAILED, NOT_IN_TIME, Json, fail, new_console, print_json

_ASK_SECONDS = 5.0
_POLL_SECONDS = 0.1
_PAGE = 1000

_Address = Annotated[str, typer.Option("--projector-address", help="Address of any projector, the standby included.")]
_Seconds = Annotated[float, typer.Option(help="How long to wait for the projector that owns the view.", min=0)]
_Actor = Annotated[str, typer.Option(help="Who asks, for the operators' log: an account or a pseudonym, no name.")]
_View = Annotated[str, typer.Argument(help="The view, as `tandem status` names it.")]


def commands(service: ServiceDescriptor, default_address: str) -> typer.Typer:
    """service: the domain's ProjectionService."""
    app = typer.Typer(
        no_args_is_help=True,
        help="Rows that could not take an event in and wait with all that follows, while their view goes on.",
    )

    @app.command("list")
    def list_keys(
        view: Annotated[str, typer.Argument(help="Only those of this view.")] = "",
        *,
        projector_address: _Address = default_address,
        as_json: Json = False,
    ) -> None:
        """List the rows that are parked, since which event, and why."""
        with asking(service, "the projector", projector_address, timeout=_ASK_SECONDS) as ask:
            found = [it for page in pages(ask, "ListParkedKeys", view=view, page_size=_PAGE) for it in page.parked_keys]
        if as_json:
            print_json([as_fields(it) for it in found])
        elif not found:
            typer.echo("nothing is parked")
        else:
            _print_keys(found)

    @app.command()
    def show(
        view: _View,
        key: Annotated[str, typer.Argument(help="The row's key, as `list` shows it: a UUID.")],
        *,
        projector_address: _Address = default_address,
        as_json: Json = False,
    ) -> None:
        """Show one parked row: since when, why, and the events that wait for it."""
        with asking(service, "the projector", projector_address, timeout=_ASK_SECONDS) as ask:
            answer = ask("GetParkedKey", view=view, key=key)
        if as_json:
            print_json(as_fields(answer))
            return
        it = answer.parked_key
        typer.echo(f"{it.view} {it.key}\nparked at event {it.since}, {_moment(it.parked_at)}\n{it.error}\n")
        for event in answer.events:
            typer.echo(f"{event.position:>12}  {event.kind}")
        if it.waiting_events > len(answer.events):
            typer.echo(f"and {it.waiting_events - len(answer.events)} more")

    @app.command()
    def redrive(
        view: _View,
        key: Annotated[str, typer.Argument(help="The row's key; leave it out with --all.")] = "",
        *,
        all_keys: Annotated[bool, typer.Option("--all", help="All rows of the view that are parked.")] = False,
        actor: _Actor = "",
        wait: _Seconds = 60.0,
        projector_address: _Address = default_address,
        as_json: Json = False,
    ) -> None:
        """Let parked rows take in what waits for them, in order; say which still cannot, and why.

        Exit code 1 when some row stays parked, 3 when it is not done in time. What is asked for stays asked for.
        """
        if bool(key) == all_keys:
            raise typer.BadParameter("give a key, or --all")
        with _acting(service, projector_address, actor) as ask:
            number = ask("RedriveParkedKeys", view=view, key=key).operation_id
            _report(ask, number, wait, "taken in", as_json=as_json)

    @app.command()
    def drop(
        view: _View,
        key: Annotated[str, typer.Argument(help="The row's key: a UUID.")],
        *,
        reason: Annotated[str, typer.Option(help="Why; `tandem operations` shows it for good.")],
        yes: Annotated[bool, typer.Option("--yes", help="Do not ask; needed with --json.")] = False,
        actor: _Actor = "",
        wait: _Seconds = 60.0,
        projector_address: _Address = default_address,
        as_json: Json = False,
    ) -> None:
        """Drop what waits for a parked row, for good: the row goes on without, and is not what its events say.

        Exit code 3 when it is not done in time. What is asked for stays asked for.
        """
        if as_json and not yes:
            raise typer.BadParameter("--json wants --yes too: a program is not asked")
        with _acting(service, projector_address, actor) as ask:
            if not yes:
                waiting = ask("GetParkedKey", view=view, key=key).parked_key.waiting_events
                typer.confirm(f"Drop {waiting} events of {view} {key} for good?", abort=True)
            number = ask("DropParkedKey", view=view, key=key, reason=reason).operation_id
            _report(ask, number, wait, "dropped", as_json=as_json)

    return app


def _acting(service: ServiceDescriptor, address: str, actor: str) -> AbstractContextManager[Ask]:
    return asking(service, "the projector", address, timeout=_ASK_SECONDS, actor=actor or getpass.getuser())


def _report(ask: Ask, operation_id: str, wait: float, done_what: str, *, as_json: bool) -> None:
    deadline = time.monotonic() + wait
    shown = 0
    while not (answer := ask("GetOperation", operation_id=operation_id)).done:
        if time.monotonic() > deadline:
            fail(
                f"not done within {wait:g} s (operation {operation_id}; {answer.keys} rows so far). It stays"
                " asked for: the projector that owns the view does it when it can read the feed",
                NOT_IN_TIME,
            )
        if answer.keys > shown and not as_json:
            shown = answer.keys
            typer.echo(f"{answer.keys} rows, {answer.events} events …", err=True)
        time.sleep(_POLL_SECONDS)
    if as_json:
        print_json({"operation_id": operation_id, **as_fields(answer)})
    else:
        typer.echo(f"{answer.keys} rows, {answer.events} events {done_what}, {answer.failed_keys} rows stay parked")
        if answer.failing:
            _print_keys(answer.failing)
    if answer.failed_keys:
        raise typer.Exit(FAILED)


def _print_keys(keys: Any) -> None:
    table = Table("view", "key", box=None, pad_edge=False)
    table.add_column("since", justify="right")
    for column in ("events", "parked at", "error"):
        table.add_column(column)
    for it in keys:
        waiting = str(it.waiting_events or "")
        table.add_row(it.view, it.key, str(it.since), waiting, _moment(it.parked_at), Text(it.error))
    # A key is to be copied whole.
    new_console(least_width=160).print(table)


def _moment(value: Any) -> str:
    return str(value.ToJsonString()) if value.seconds else ""
