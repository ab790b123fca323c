"""Parking: a row that cannot take an event in waits, with all that follows for it, and the rest of its view goes on.

The events that wait stand in the table `parked` by their positions; the feed has the events. They are written by the
statement that moves the view past them, so that a view's position, its rows and what is parked are true together.
"""

from prometheus_client import Counter

from tandem.projection.changes import ViewChanges
from tandem.runtime.telemetry import log

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
