"""`tandem findings`: what the auditor found to differ from the feed, over ProjectionService."""

from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from tandem.cli.calls import as_fields, asking
from tandem.cli.domain import Domain
from tandem.cli.local_stack import DEFAULT_PORTS
from tandem.cli.output import Json, new_console, print_json

_ASK_SECONDS = 5.0


def add_to(app: typer.Typer, domain: Domain) -> None:
    @app.command()
    def findings(
        view: Annotated[str, typer.Argument(help="Only of this view.")] = "",
        *,
        projector_address: Annotated[
            str, typer.Option(help="Address of the projector that holds the views.")
        ] = f"127.0.0.1:{DEFAULT_PORTS.projector}",
        as_json: Json = False,
    ) -> None:
        """List rows and cache entries that were found to differ from the feed, the latest first.

        The last 100 that this projector has found since it started; its log has all of them.
        """
        with asking(domain.projections, "the projector", projector_address, timeout=_ASK_SECONDS) as ask:
            found = [as_fields(it) for it in ask("ListFindings", view=view).findings]
        if as_json:
            print_json(found)
        elif not found:
            typer.echo("nothing was found to differ")
        else:
            table = Table("found at", "view", "key", "what", "event", "about", "repaired", box=None, pad_edge=False)
            for it in found:
                kind = it["kind"].removeprefix("FINDING_KIND_").lower()
                about = Text(it["error"] or ", ".join(it["columns"]))
                repaired = "yes" if it["repaired"] else "no"
                table.add_row(it["found_at"], it["view"], it["key"], kind, it["position"], about, repaired)
            # A key is to be copied whole.
            new_console(least_width=160).print(table)
