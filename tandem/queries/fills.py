"""Bringing rows into the cache that are read on a replica.

A projector stores an entry after it has committed the row, and announces it after that. Who reads rows on the primary
takes a lease and then reads: what a projector stored before the lease was committed before it too, and is read; what it
stores later ends the lease. On a replica the second half holds and the first does not: an entry that was stored, and
evicted before the lease, may be newer than what the replica has replayed, and what is announced does not say so yet.

So the primary is asked, after the lease, where the view is: one row of `projection`. The row is stored when the replica
has all of that. It mostly has within milliseconds, for which nobody waits: it is done on a thread of its own, after the
callers have their answers. ADR 74.
"""

import asyncio
import threading
import time
from collections.abc import Iterable

from tandem.feed.token import Token
from tandem.queries.cache import Cache, Lease
from tandem.queries.damage import RowCheck
from tandem.queries.freshness import Freshness
from tandem.queries.store import Store
from tandem.runtime.errors import Unavailable
from tandem.runtime.supervised import SupervisedThread

# That wait to be brought; a row that finds no room is brought when somebody asks for it again.
_MOST = 10_000
# How long the replica has for what the primary had: a lease lives longer.
_PATIENCE_SECONDS = 1.0
_FIRST_PAUSE_SECONDS = 0.002
_LONGEST_PAUSE_SECONDS = 0.1
# A primary that is away is not asked for each row that is missing.
_AWAY_SECONDS = 1.0
# It may wait for a silent database, and ends with the process.
_STOP_SECONDS = 2.0


class Fills:
    """`start` and `stop` make it a Component. `want` is for any thread."""

    def __init__(self, replica: Store, primary: Store, cache: Cache, freshness: Freshness, *, together: int) -> None:
        """replica, primary: each with a connection for this. cache: this one's, which closes it. together: keys at once
        at most.
        """
        self._replica = replica
        self._primary = primary
        self._cache = cache
        self._freshness = freshness
        self._together = together
        # Guards what follows.
        self._lock = threading.Condition()
        self._wanted: dict[str, dict[str, None]] = {}
        self._checks: dict[str, RowCheck] = {}
        self._stopping = threading.Event()
        self._thread = SupervisedThread("cache-fills", self._run)

    async def start(self) -> None:
        self._thread.start()

    async def stop(self) -> None:
        with self._lock:
            self._stopping.set()
            self._lock.notify()
        await asyncio.to_thread(self._thread.join, _STOP_SECONDS)

    def want(self, view: str, keys: Iterable[str], check: RowCheck) -> None:
        """Rows that the cache lacks, by their ids in 32 hexadecimal digits. check: of the view's rows."""
        with self._lock:
            wanted = self._wanted.setdefault(view, {})
            room = _MOST - sum(map(len, self._wanted.values()))
            wanted.update(dict.fromkeys(list(keys)[: max(0, room)]))
            self._checks[view] = check
            self._lock.notify()

    def _run(self) -> None:
        while not self._stopping.is_set():
            with self._lock:
                while not any(self._wanted.values()) and not self._stopping.is_set():
                    self._lock.wait()
                by_view, self._wanted = self._wanted, {}
            for view, keys in by_view.items():
                rows = list(keys)
                for start in range(0, len(rows), self._together):
                    self._bring(view, rows[start : start + self._together])
        # By this thread: who stops it may not have waited for its end.
        self._cache.close()

    def _bring(self, view: str, keys: list[str]) -> None:
        announced = self._freshness.announced(view)
        if self._stopping.is_set() or announced is None:
            return
        leases = self._cache.lease(view, announced.cache_epochs, keys)
        if not leases:
            return
        try:
            # All that was stored before the leases is at or before this.
            position = self._primary.primary_position(view)
            if position is not None:
                self._fill(view, leases, [announced.token, position])
        except Unavailable:
            # Logged where it is raised. The leases end by themselves.
            self._stopping.wait(_AWAY_SECONDS)

    def _fill(self, view: str, leases: dict[str, Lease], needed: list[Token]) -> None:
        """Raises Unavailable."""
        end = time.monotonic() + _PATIENCE_SECONDS
        pause = _FIRST_PAUSE_SECONDS
        while True:
            rows, parked, as_of = self._replica.rows(view, list(leases))
            if all(as_of.includes(it) for it in needed):
                break
            if time.monotonic() + pause > end or self._stopping.wait(pause):
                return
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        check = self._checks[view]
        # A row that is parked is never cached: who reads the cache could not tell.
        good = {it: row for it, row in rows.items() if it not in parked and check.failure(row, it) is None}
        self._cache.fill(leases, good)
