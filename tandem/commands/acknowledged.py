"""What callers of this server were told, found again in the database that is there after a connection broke.

A server whose database failed over is up all the while, and knows what it acknowledged. So a commit that was lost is
known although no view had taken it in: nobody else could tell, once other events have its position.
"""

import threading
import time
import uuid
from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import Connection

from tandem.commands.receipts import Receipt, receipt
from tandem.feed import table as feed
from tandem.runtime.database import driver_of
from tandem.runtime.telemetry import log


class _Commit(NamedTuple):
    """The last of what was told. at: on the clock of time.monotonic()."""

    epoch: uuid.UUID
    position: int
    request_id: str
    at: float


class Acknowledged:
    """For any thread. It remembers one commit, the last: what a standby lacks is the end of the feed."""

    def __init__(self, kept_seconds: float) -> None:
        """kept_seconds: for how long receipts are kept. One that is older and is not there was purged."""
        self._kept_seconds = kept_seconds
        self._lock = threading.Lock()
        self._last: _Commit | None = None

    def add(self, epoch: uuid.UUID, base: int, receipts: Sequence[Receipt]) -> None:
        """Of a commit that was done behind position `base`. receipts: as they were before it, one at least."""
        last = max(receipts, key=lambda it: it.position)
        commit = _Commit(epoch, base + last.position, last.request_id, time.monotonic())
        with self._lock:
            if self._last is None or self._last.epoch != epoch or self._last.position < commit.position:
                self._last = commit

    def look_for(self, connection: Connection) -> None:
        """Makes sure that what was told is there; if not, the feed says so to whoever follows it.

        For a connection whose server may be another one than before; who has a transaction commits. Raises DBAPIError.
        """
        last = self._last
        if last is None:
            return
        with driver_of(connection) as driver:
            found = driver.execute(_FIND, (last.request_id,)).fetchone()
            assert found is not None, "the head"
            epoch, head, at = found
            is_there = head >= last.position and (at or 0) >= last.position
            was_purged = head >= last.position and time.monotonic() - last.at > self._kept_seconds / 2
            if epoch == last.epoch and (is_there or was_purged):
                return
            if epoch == last.epoch:
                driver.execute(_SAY, (last.position, epoch))
                log.error(
                    "the write database has lost what was acknowledged: run `tandem feed begin-epoch` if"
                    " it is the right one",
                    position=last.position,
                    head=head,
                )
        with self._lock:
            # Said once; of another epoch, it was said by an operator.
            if self._last is last:
                self._last = None


_FIND = f"""
SELECT epoch, position, (SELECT r.position FROM {receipt.fullname} AS r WHERE r.request_id = %s)
FROM {feed.NEWEST_HEAD} AS h
"""  # noqa: S608 - only names of tables are put in, here and below
# Followers look by themselves: a database that takes no notifications takes this.
_SAY = f"""
UPDATE {feed.feed_head.fullname} SET lost_position = least(lost_position, %s)
WHERE span >= (SELECT span FROM {feed.NEWEST_HEAD} AS h) AND epoch = %s
"""  # noqa: S608
