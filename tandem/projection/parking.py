"""Parking: a row that cannot take an event in waits, with all that follows for it, and the rest of its view goes on.

The events that wait stand in the table `parked` by their positions; the feed has the events. They are written by the
statement that moves the view past them, so that a view's position, its rows and what is parked are true together.
"""

import uuid
from collections.abc import Sequence
from typing import Any

from prometheus_client import Counter
from sqlalchemy import Connection, text

from tandem.projection.changes import ViewChanges
from tandem.read_store.tables import parked
from tandem.runtime.telemetry import log

PARKED_ROWS = f"""
SELECT p.view, p.key, p.position, p.error, p.parked_at,
    (SELECT count(*) FROM {parked.fullname} AS w WHERE w.view = p.view AND w.key = p.key) AS waiting
FROM {parked.fullname} AS p WHERE error IS NOT NULL"""  # noqa: S608 - only names of tables are put in
"""SQL: the rows that are parked, for `fill_parked_key`; more conditions follow."""
_LACKING = text(f"""{PARKED_ROWS}
AND view = :view AND key = ANY(CAST(:keys AS uuid[])) AND position <= :position ORDER BY key LIMIT :most
""")

PARKED_EVENTS = Counter(
    "tandem_projection_parked_events_total",
    "Events that some row of a view did not take in",
    ["view"],
)


def report_parked(view: str, changes: ViewChanges) -> None:
    """Counts what a batch has parked, and logs each row once: when it is parked."""
    PARKED_EVENTS.labels(view).inc(len(changes.parked))
    for it in changes.parked:
        if it.error is not None:
            log.error(
                "a row is parked", view=view, key=it.key.hex(), position=it.position, kind=it.kind, error=it.error
            )


def find_lacking(connection: Connection, view: str, keys: Sequence[bytes], position: int, most: int) -> Sequence[Any]:
    """For `fill_parked_key`: those of the keys that are parked and lack the event at a position that changes them."""
    arguments = {"view": view, "keys": [str(uuid.UUID(bytes=it)) for it in keys], "position": position, "most": most}
    return connection.execute(_LACKING, arguments).all()


def fill_parked_key(entry: Any, row: Any) -> None:
    """entry: a ParkedKey of the contract."""
    entry.view, entry.key, entry.since = row.view, str(row.key), row.position
    entry.error, entry.waiting_events = row.error, row.waiting
    entry.parked_at.FromDatetime(row.parked_at)
