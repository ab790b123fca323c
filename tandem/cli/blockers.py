"""`tandem blockers`: who holds others up in the databases, and an end to it, by the services' settings."""

import json
import subprocess
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from tandem.cli.domain import Domain
from tandem.cli.output import FAILED, Json, new_console, print_json
from tandem.cli.services import run_action


class Side(StrEnum):
    write = "write"
    read = "read"


_SECTIONS = {Side.write: "command", Side.read: "projector"}


def add_to(app: typer.Typer, domain: Domain) -> None:
    @app.command()
    def blockers(
        *,
        side: Annotated[Side | None, typer.Option("--of", help="Of this database alone; of both by default.")] = None,
        end: Annotated[
            int | None, typer.Option(metavar="PID", help="End this session of the one that --of names.")
        ] = None,
        as_json: Json = False,
    ) -> None:
        """Show who holds others up in the databases: by locks, by snapshots, by what was prepared; and end a session.

        The databases are those of the services' settings, as for `migrate`: run it as their owner. No service has to
        run. Exit code 1 when a database does not answer, or when the session is not one that may be ended: it holds
        nobody up, or it is Tandem's own, which ends within its time-outs.
        """
        if end is not None:
            if side is None:
                raise typer.BadParameter("--end wants --of: process ids are of one database's server")
            words = ["end-session", str(end), *(["--json"] if as_json else [])]
            raise typer.Exit(run_action(domain.modules[_SECTIONS[side]], *words).returncode)
        found = {}
        for it in [side] if side is not None else Side:
            done = run_action(domain.modules[_SECTIONS[it]], "blockers", "--json", stdout=subprocess.PIPE)
            if done.returncode == 0:
                found[it.value] = json.loads(done.stdout)
        if as_json:
            print_json(found)
        else:
            new_console().print(*(_as_text(it, fields) for it, fields in found.items()), sep="\n")
        if len(found) < (1 if side is not None else len(Side)):
            raise typer.Exit(FAILED)


def _as_text(side: str, fields: Mapping[str, Any]) -> RenderableType:
    parts: list[RenderableType] = [
        *map(_session, fields["sessions"]),
        *map(_prepared, fields["prepared"]),
        *map(_slot, fields["slots"]),
    ]
    return Group(f"{side} database:", *(parts or ["  nobody holds anybody up"]))


def _session(it: Mapping[str, Any]) -> Text:
    """It may hold brackets, which a text has no markup for."""
    since = "since an unknown time" if it["seconds"] is None else f"for {it['seconds']:,.0f} s"
    what = [f"holds {it['holds_up']} sessions up"] if it["holds_up"] else ["holds a snapshot"] * it["holds_snapshot"]
    if it["may_keep_notifications"]:
        what.append(f"may listen in the database {it['database']} and take no notifications")
    waits = f", waits for {', '.join(map(str, it['waits_for']))}" if it["waits_for"] else ""
    where = it["address"] or "this machine"
    return Text(
        f"  {it['pid']} {it['role']} {it['program'] or 'no name'} at {where}: {', '.join(what)} {since}{waits},"
        f" {it['state'] or 'state unknown'}\n    {' '.join((it['query'] or '').split())[:150]}"
    )


def _prepared(it: Mapping[str, Any]) -> Text:
    return Text(
        f"  transaction {it['name']} of {it['role']}, prepared {it['seconds']:,.0f} s ago: commit it or roll it back"
    )


def _slot(it: Mapping[str, Any]) -> Text:
    return Text(
        f"  replication slot {it['name']}, {'active' if it['active'] else 'with no reader'}, keeps {it['keeps']}"
    )
