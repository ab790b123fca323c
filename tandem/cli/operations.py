"""`tandem operations`: the operators' log, of what was asked of views and what became of it, over ProjectionService."""

from itertools import islice
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from tandem.cli.calls import as_fields, asking, pages
from tandem.cli.domain import Domain
from tandem.cli.local_stack import DEFAULT_PORTS
from tandem.cli.output import Json, new_console, print_json

_ASK_SECONDS = 5.0
_PAGE = 1000


def add_to(app: typer.Typer, domain: Domain) -> None:
    @app.command()
    def operations(
        view: Annotated[str, typer.Argument(help="Only of this view.")] = "",
        *,
        key: Annotated[str, typer.Option(help="Only of the row with this key, a UUID.")] = "",
        limit: Annotated[int, typer.Option(min=1, help="The latest so many.")] = 50,
        projector_address: Annotated[
            str, typer.Option(help="Address of any projector, the standby included.")
        ] = f"127.0.0.1:{DEFAULT_PORTS.projector}",
        as_json: Json = False,
    ) -> None:
        """List what operators have asked of views, the latest first: when, who, why, and what became of it.

        Such as rows that were redriven, or whose events were dropped. The log is kept for good.
        """
        with asking(domain.projections, "the projector", projector_address, timeout=_ASK_SECONDS) as ask:
            read = pages(ask, "ListOperations", view=view, key=key, page_size=min(limit, _PAGE))
            found = list(islice((it for page in read for it in page.operations), limit))
        if as_json:
            print_json([as_fields(it) for it in found])
        elif not found:
            typer.echo("nothing was asked")
        else:
            # A key is to be copied whole.
            new_console(least_width=160).print(_table(found))


def _table(found: list[Any]) -> Table:
    table = Table("asked at", "actor", "action", "view", "key", "became", "reason", box=None, pad_edge=False)
    for it in found:
        became = f"{it.keys} rows, {it.events} events" + (f", {it.failed_keys} stay parked" if it.failed_keys else "")
        became = became if it.HasField("done_at") else f"not done yet: {became}"
        at = it.asked_at.ToJsonString()
        table.add_row(at, Text(it.actor), it.action, it.view, it.key or "all", became, Text(it.reason))
    return table
