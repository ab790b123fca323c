"""Rows of views that hold something else than what a projector wrote: somebody else has changed them.

Whoever meets one counts it and tells the projectors, by NOTIFY in the read database. The one that owns the view makes
the row again from the feed.
"""

import threading
from functools import lru_cache
from typing import NamedTuple

from prometheus_client import Counter

from tandem.runtime.telemetry import log

DAMAGED = Counter(
    "tandem_damaged_rows_total", "Times that a row was read which is not what a projector wrote", ["view"]
)

CHANNEL = "tandem_damage"
"""The NOTIFY channel of the read database: a DamagedRow each."""

# That are kept until somebody takes them.
_MOST = 1000


class DamagedRow(NamedTuple):
    """key: in 32 hexadecimal digits; empty where only the view is known."""

    view: str
    key: str

    def encode(self) -> str:
        return f"{self.view} {self.key}"

    @classmethod
    def decode(cls, payload: str) -> "DamagedRow":
        view, _, key = payload.partition(" ")
        return cls(view, key)


class DamagedRows:
    """Those that were met and that nobody has been told of yet. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows: dict[DamagedRow, None] = {}
        self.came = threading.Event()
        """Set while there are some."""

    def report(self, view: str, key: str) -> None:
        """Counts a row each time, and logs it once. key: as DamagedRow has it."""
        DAMAGED.labels(view).inc()
        _log(view, key)
        self.add(DamagedRow(view, key))

    def add(self, row: DamagedRow) -> None:
        with self._lock:
            if len(self._rows) < _MOST:
                self._rows[row] = None
                self.came.set()

    def take(self) -> list[DamagedRow]:
        with self._lock:
            self.came.clear()
            rows, self._rows = list(self._rows), {}
            return rows


@lru_cache(maxsize=1000)
def _log(view: str, key: str) -> None:
    log.error("a row is damaged: it is to be made again from the feed", view=view, key=key or "unknown")
