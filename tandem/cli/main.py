"""The commands of `tandem`."""

from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tandem.cli import (
    access,
    blockers,
    cache_nodes,
    feed,
    findings,
    health,
    history,
    importing,
    live,
    operations,
    parked,
    reactions,
    scaffold,
    verify,
    why,
)
from tandem.cli import restore as restoring
from tandem.cli import status as service_status
from tandem.cli.child import StackError
from tandem.cli.domain import Domain
from tandem.cli.generations import add_commands
from tandem.cli.local_stack import DEFAULT_PORTS, LocalStack
from tandem.cli.output import EXIT_CODES, FAILED, Commands, Json, complain, fail, new_console, print_json
from tandem.cli.services import run_action
from tandem.cli.up import up as run_up


class Transport(StrEnum):
    auto = "auto"
    native = "native"
    grpcio = "grpcio"


_WATCH_SECONDS = 2.0
_ADDRESSES = {"command": f"127.0.0.1:{DEFAULT_PORTS.command}", "projector": f"127.0.0.1:{DEFAULT_PORTS.projector}"}


def _port(field: str, what: str) -> typer.models.OptionInfo:
    text = f"Port of {what}: {getattr(DEFAULT_PORTS, field)}, or one that is free."
    option: typer.models.OptionInfo = typer.Option(min=1, max=65535, help=text, show_default=False)
    return option


def _show(report: service_status.Report, *, as_json: bool) -> None:
    if as_json:
        print_json(service_status.as_fields(report))
    else:
        new_console().print(service_status.as_tables(report))
        for problem in service_status.problems(report):
            complain(problem)
    if not report.well:
        raise typer.Exit(FAILED)


def application(domain: Domain) -> typer.Typer:
    """The `tandem` command for a domain."""
    app = typer.Typer(
        cls=Commands, no_args_is_help=True, add_completion=False, rich_markup_mode="markdown", epilog=EXIT_CODES
    )
    access.add_options(
        app, "Tandem: a command service and a query service over one contract. Start it, migrate it, see how it is."
    )

    @app.command()
    def up(
        *,
        data_dir: Annotated[
            Path, typer.Option(help="Folder of the data and the logs; it is created, and kept between runs.")
        ] = Path(".data"),
        sample: Annotated[bool, typer.Option(help="Load sample data into an empty folder.")] = True,
        lite: Annotated[bool, typer.Option("--lite", help="CQRS lite: one database for both sides, no cache.")] = False,
        transport: Annotated[Transport, typer.Option(help="The services' gRPC transport.")] = Transport.auto,
        mesh: Annotated[
            bool, typer.Option("--mesh", help="Start Envoy too, in front of two command servers and two query servers.")
        ] = False,
        pages: Annotated[
            bool, typer.Option(help="Serve the domain's pages to browsers, by Envoy, where it is installed.")
        ] = True,
        command_port: Annotated[int | None, _port("command", "the command server")] = None,
        query_port: Annotated[int | None, _port("query", "the query server")] = None,
        projector_port: Annotated[int | None, _port("projector", "the projector")] = None,
        postgres_port: Annotated[int | None, _port("postgres", "PostgreSQL")] = None,
        command_metrics_port: Annotated[int | None, _port("command_metrics", "the command server's metrics")] = None,
        query_metrics_port: Annotated[int | None, _port("query_metrics", "the query server's metrics")] = None,
        relay_port: Annotated[int | None, _port("relay", "the relay, with a broker")] = None,
        relay_metrics_port: Annotated[int | None, _port("relay_metrics", "the relay's metrics, with a broker")] = None,
        projector_metrics_port: Annotated[int | None, _port("projector_metrics", "the projector's metrics")] = None,
        mesh_port: Annotated[int | None, _port("mesh", "Envoy: pages, and --mesh")] = None,
        second_command_port: Annotated[
            int | None, _port("second_command", "the second command server, with --mesh")
        ] = None,
        second_query_port: Annotated[int | None, _port("second_query", "the second query server, with --mesh")] = None,
    ) -> None:
        """Start all of Tandem on this machine: PostgreSQL, memcached where it is installed, and the three services.

        Everything listens on 127.0.0.1 alone, and who has an account on this machine can call the services. The stores
        are for you: PostgreSQL asks for the password in the file postgres.password, memcached has a socket of its own,
        and nobody else can look into the data folder. Ctrl-C stops everything; the data stays. Settings of the services
        (TANDEM_…) apply, except for the ports and stores that this command gives them. Where a broker is named, by
        TANDEM_RELAY_NATS__SERVERS or TANDEM_RELAY_KAFKA__SERVERS, a relay is started too, which publishes the events
        there. Kafka's protocol was tried on emulators, and not yet on Apache Kafka.
        """
        named = {
            "command": command_port,
            "query": query_port,
            "projector": projector_port,
            "postgres": postgres_port,
            "command_metrics": command_metrics_port,
            "query_metrics": query_metrics_port,
            "projector_metrics": projector_metrics_port,
            "mesh": mesh_port,
            "second_command": second_command_port,
            "second_query": second_query_port,
            "relay": relay_port,
            "relay_metrics": relay_metrics_port,
        }
        named_ports = {field: port for field, port in named.items() if port is not None}
        if mesh and domain.mesh is None:
            fail("there is no file for Envoy in this domain, so there is no --mesh")
        try:
            stack = LocalStack(
                data_dir,
                named_ports,
                domain.modules,
                lite=lite,
                transport=transport,
                envoy=domain.mesh,
                mesh=mesh,
                pages=domain.pages if pages else None,
                operators={"projections": domain.projections.full_name, "receipts": domain.receipts.full_name},
            )
            run_up(domain, stack, new_console(), with_sample=sample)
        except StackError as error:
            fail(str(error))

    @app.command()
    def migrate() -> None:
        """Bring both databases' schemas up to date.

        The databases are those of the services' settings: TANDEM_COMMAND_DATABASE__URL and
        TANDEM_PROJECTOR_READ_DATABASE__URL, or the file that TANDEM_CONFIG names. Safe to run at any time, by several.
        """
        for section in ("command", "projector"):
            code = run_action(domain.modules[section], "migrate").returncode
            if code != 0:
                raise typer.Exit(code)

    @app.command()
    def restore(
        *,
        ledgers: Annotated[
            list[Path] | None,
            typer.Argument(help="The ledgers of all command servers; by default the one of the settings.", exists=True),
        ] = None,
        projector_address: Annotated[
            str, typer.Option(help="Address of a projector.")
        ] = f"127.0.0.1:{DEFAULT_PORTS.projector}",
    ) -> None:
        """Set everything right after the write database was restored from a backup. Stop the command servers first.

        Migrates both databases, erases again who was erased since the backup, begins a new epoch, and waits until the
        views have all events. The databases are those of the services' settings, as for `migrate`. It may be run again.
        """
        try:
            restoring.set_right(domain.modules, ledgers or [])
            with access.connect(projector_address) as channel:
                restoring.watch_views(domain.projections, channel, typer.echo)
        except StackError as error:
            fail(str(error))

    @app.command()
    def status(
        *,
        command_address: Annotated[
            str, typer.Option(help="Address of the command server.")
        ] = f"127.0.0.1:{DEFAULT_PORTS.command}",
        query_address: Annotated[
            str, typer.Option(help="Address of the query server.")
        ] = f"127.0.0.1:{DEFAULT_PORTS.query}",
        projector_address: Annotated[
            str, typer.Option(help="Address of the projector.")
        ] = f"127.0.0.1:{DEFAULT_PORTS.projector}",
        relay_address: Annotated[
            str | None, typer.Option(help="Address of a relay, to be shown too.", show_default=False)
        ] = None,
        as_json: Json = False,
        watch: Annotated[bool, typer.Option("--watch", help="Show it again and again, until Ctrl-C.")] = False,
        seconds: Annotated[
            float | None,
            typer.Argument(min=0.2, max=3600, help="With --watch: so many seconds apart.", show_default="2"),
        ] = None,
    ) -> None:
        """Show how the services are and how far the views and the reactions have followed the feed.

        With --watch a table that is redrawn in place; where there is no terminal, or with --json, a line each time. A
        server that is away is shown, and does not end it.

        Exit code 1 when a service cannot be reached or does not serve, when a view or a reaction cannot go on, when a
        view is more than a minute behind, when a node of the cache does not answer or is fenced, or when a database
        does not answer the projector. With --watch always 0.
        """
        if seconds is not None and not watch:
            raise typer.BadParameter("seconds are for --watch")
        addresses = {"command": command_address, "query": query_address, "projector": projector_address}
        if relay_address is not None:
            addresses["relay"] = relay_address
        with ExitStack() as exits:
            channels = {
                domain.modules[section]: (address, exits.enter_context(access.connect(address)))
                for section, address in addresses.items()
            }

            def report() -> service_status.Report:
                return service_status.observe_all(
                    channels,
                    domain.modules["projector"],
                    domain.modules["command"],
                    domain.projections,
                    domain.reactions,
                )

            if watch:
                live.watch_until_stopped(report, new_console(), seconds or _WATCH_SECONDS, as_json=as_json)
            else:
                _show(report(), as_json=as_json)

    health.add_to(app)
    scaffold.add_to(app)
    for subject in (why, history, operations, findings, cache_nodes, blockers, reactions):
        subject.add_to(app, domain)
    if domain.tables:
        importing.add_to(app, domain)
    verify.add_command(app, domain.audit, _ADDRESSES)
    add_commands(app, domain.projections, _ADDRESSES["projector"])
    app.add_typer(feed.commands(domain.modules["command"]), name="feed")
    app.add_typer(parked.commands(domain.projections, _ADDRESSES["projector"]), name="parked")
    return app
