"""`tandem cache`: the nodes of the cache, over ProjectionService."""

from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from tandem.cli.calls import as_fields, asking
from tandem.cli.domain import Domain
from tandem.cli.local_stack import DEFAULT_PORTS
from tandem.cli.output import FAILED, Json, new_console, print_json
from tandem.cli.status import is_node_well, state_of_node

_ASK_SECONDS = 5.0
_MEBIBYTE = 2**20


def add_to(app: typer.Typer, domain: Domain) -> None:
    @app.command()
    def cache(
        *,
        projector_address: Annotated[
            str, typer.Option(help="Address of the projector that holds the views.")
        ] = f"127.0.0.1:{DEFAULT_PORTS.projector}",
        as_json: Json = False,
    ) -> None:
        """List the nodes of the cache: whether readers may read there, and what is there.

        Exit code 1 when one does not answer, or is fenced: readers go to the database until it answers again.
        """
        with asking(domain.projections, "the projector", projector_address, timeout=_ASK_SECONDS) as ask:
            found = [as_fields(it) for it in ask("ListCacheNodes").nodes]
        if as_json:
            print_json(found)
        elif not found:
            typer.echo("there is no cache")
        else:
            table = Table("node", "state", box=None, pad_edge=False)
            for column in ("entries", "MiB", "room for", "given up"):
                table.add_column(column, justify="right")
            table.add_column("why it says nothing")
            for it in found:
                room = (f"{int(it[name]) / _MEBIBYTE:,.0f}" for name in ("bytes", "max_bytes"))
                counts = (f"{int(it[name]):,}" for name in ("entries", "evictions"))
                entries, evictions = counts
                table.add_row(Text(it["node"]), state_of_node(it), entries, *room, evictions, Text(it["problem"]))
            new_console().print(table)
        if not all(map(is_node_well, found)):
            raise typer.Exit(FAILED)
