"""What is read of a view is checked before it is sent: a row that somebody else has changed fails the calls that want
it, and no others. Projectors are told, and the one that owns the view repairs the row.
"""

import asyncio
import time

from google.protobuf.message import DecodeError, Message
from sqlalchemy import text

from tandem.queries.store import Store
from tandem.read_store.damage import CHANNEL, DamagedRow, DamagedRows
from tandem.runtime.errors import TandemError, Unavailable
from tandem.runtime.supervised import SupervisedThread
from tandem.runtime.telemetry import log

# A row is repaired within a second where a projector runs.
_RETRY_SECONDS = 1.0
# Whoever reads a damaged row again and again tells projectors of it once in this time.
_TELL_EVERY_SECONDS = 1.0

_STOP_SECONDS = 2.0

DAMAGED_ROWS = DamagedRows()
"""Of this process."""

# A standby sends no notifications. Where its primary is not known, the projector's auditor finds the row.
_TELL = text(
    "SELECT pg_notify(:channel, payload) FROM unnest(CAST(:payloads AS text[])) AS payload"
    " WHERE NOT pg_is_in_recovery()"
)


class RowCheck:
    """Knows a row of a view: it holds the view's message, and that has the row's id where its first field is an id.

    For any thread. A check takes 1 µs.
    """

    def __init__(self, view: str, message: type[Message]) -> None:
        first = message.DESCRIPTOR.fields_by_number[1].name
        self._view = view
        self._message = message
        self._id_field = first if first.endswith("_id") else ""

    def failure(self, value: bytes, key: str = "") -> Unavailable | None:
        """What to tell who wants this row; None for one that is as it should be. A damaged one is reported.

        key: the row's, in 32 hexadecimal digits, where it is known.
        """
        try:
            message = self._message.FromString(value)
        except DecodeError:
            found = None
        else:
            if not key or not self._id_field:
                return None
            found = getattr(message, self._id_field).replace("-", "").lower()
        if key and found == key:
            return None
        DAMAGED_ROWS.report(self._view, key)
        metadata = {"view": self._view, "key": key} if key else {"view": self._view}
        return Unavailable(
            f"a row of the view {self._view} is damaged",
            reason="ROW_DAMAGED",
            retry_after=_RETRY_SECONDS,
            metadata=metadata,
        )


class DamageReports:
    """A Component: tells projectors of the damaged rows that this process has met. It writes nothing."""

    def __init__(self, store: Store) -> None:
        """store: with a connection for this."""
        self._store = store
        self._stopping = False
        self._told: dict[DamagedRow, float] = {}
        self._thread = SupervisedThread("damage-reports", self._run)

    async def start(self) -> None:
        self._thread.start()

    async def stop(self) -> None:
        self._stopping = True
        DAMAGED_ROWS.came.set()
        # It may wait for a silent database, and ends with the process.
        await asyncio.to_thread(self._thread.join, _STOP_SECONDS)

    def _run(self) -> None:
        # Looked at on both sides of the wait: to take what came may clear what a stop has set.
        while not self._stopping and DAMAGED_ROWS.came.wait() and not self._stopping:
            now = time.monotonic()
            self._told = {row: at for row, at in self._told.items() if now < at + _TELL_EVERY_SECONDS}
            rows = [it for it in DAMAGED_ROWS.take() if it not in self._told]
            if not rows:
                continue
            try:
                self._store.execute(_TELL, {"channel": CHANNEL, "payloads": [it.encode() for it in rows]})
            except TandemError as error:
                log.warning("projectors cannot be told of damaged rows", error=str(error))
            else:
                self._told |= dict.fromkeys(rows, now)
