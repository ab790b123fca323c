"""Rows of views that hold something else than what a projector wrote: somebody else has changed them."""

from functools import lru_cache

from prometheus_client import Counter

from tandem.runtime.telemetry import log

DAMAGED = Counter(
    "tandem_damaged_rows_total", "Times that a row was read which is not what a projector wrote", ["view"]
)


def report_damage(view: str, key: str) -> None:
    """Counts each time, and logs a row once. key: in 32 hexadecimal digits, or empty where it is not known."""
    DAMAGED.labels(view).inc()
    _log(view, key)


@lru_cache(maxsize=1000)
def _log(view: str, key: str) -> None:
    log.error(
        "a row is damaged: it is parked with its next event, and `tandem parked redrive` mends it",
        view=view,
        key=key or "unknown",
    )
