"""Views and their cache entries compared with what the feed makes of them: once, when asked for, and all the time.

A comparison goes through a view by ranges of keys. Of each range it replays all rows beside the view (replay.py), up to
where the view is, and reads the stored rows with the view's position in one statement. What differs then, or whose
entry does, is compared once more by the session that owns the view, which is exact (inspection.py).
"""

import asyncio
import random
import time
from collections.abc import Callable, Collection, Generator, Iterator
from functools import partial

import psycopg
from prometheus_client import Counter, Gauge
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from tandem.feed.lookup import Lookup, NewLookups
from tandem.feed.reader import BrokenOff
from tandem.feed.verification import CannotVerify, Chosen, Difference, Step, Steps
from tandem.projection.cache_writer import EntryReader
from tandem.projection.changes import CannotApply
from tandem.projection.examiner import REPAIRED, STOP_SECONDS, Examiner, Followed
from tandem.projection.fold import steps_of
from tandem.projection.inspection import NotNow, StoredRows, compare, read_range, read_rows
from tandem.projection.projection import Projection
from tandem.projection.replay import KeyRange, Replay, Wanted
from tandem.projection.settings import AuditSettings, CacheSettings
from tandem.runtime.database import driver_of, first_line
from tandem.runtime.settings import DatabaseSettings
from tandem.runtime.supervised import SupervisedThread
from tandem.runtime.telemetry import log

KEYS = Counter("tandem_audit_keys_total", "Rows that the auditor has compared with the feed", ["view"])
DIFFERENCES = Counter(
    "tandem_audit_differences_total", "Rows and cache entries that were found to differ from the feed", ["view", "kind"]
)
ROUND_AGE = Gauge(
    "tandem_audit_round_age_seconds",
    "How long ago the auditor has compared a whole view; since its start where it has not yet",
    ["view"],
)

# Rows that are compared together; their cache entries are asked for together.
_CHUNK = 500
# Events in memory at once: 6 ms of the interpreter, which the threads that follow the feed wait for.
_BATCH_EVENTS = 200
# For the end of an erasure that is under way, and for the view to have it.
_ERASURE_SECONDS = 30.0
_LOOK_SECONDS = 0.1
# Before a view that could not be compared is tried again, and the longest pause between two steps.
_AGAIN_SECONDS = 5.0
_LONGEST_PAUSE = 60.0

_ROW_COUNT = text("SELECT reltuples FROM pg_class WHERE oid = CAST(:it AS regclass)")


class ViewAudit:
    """Compares views that this program follows. For one thread."""

    def __init__(
        self,
        following: Followed,
        *,
        lookups: NewLookups,
        read_database: DatabaseSettings,
        cache_nodes: tuple[str, ...],
        cache: CacheSettings,
        name: str,
    ) -> None:
        self.examiner = Examiner(following, lookups(name, 1), read_database, name)
        self._views = following.views
        self._cache = following.cache
        self._entries = EntryReader(cache_nodes, cache)

    def close(self) -> None:
        self.examiner.close()
        self._entries.close()

    def steps(self, view: str, chosen: Chosen, *, repair: bool) -> Iterator[Step]:
        """Raises CannotVerify."""
        try:
            if chosen.sample or chosen.keys:
                yield from self._together(view, chosen.keys or self._sample(view, chosen.sample), repair)
                return
            rest: KeyRange | None = KeyRange()
            while rest is not None:
                compared = yield from self._together(view, rest, repair)
                assert isinstance(compared, KeyRange), "a range"
                rest = None if compared.end is None else KeyRange(compared.end)
        except (NotNow, BrokenOff, CannotApply) as error:
            raise CannotVerify(str(error)) from error
        except (SQLAlchemyError, psycopg.Error) as error:
            raise CannotVerify(f"a database is away: {first_line(error)}") from error

    def _together(self, view: str, wanted: Wanted, repair: bool) -> Generator[Step, None, Wanted]:
        """Compares rows that are replayed together; returns which those are."""
        state = self.examiner.state(view)
        replay = self.examiner.begin(view, wanted, batch_events=_BATCH_EVENTS)
        while replay.position < state.position:
            events = self.examiner.advance(replay, state.position)
            yield Step(events=events, position=replay.position, until=state.position)
        projection = self._views.projections[view]
        rest: Wanted | None = replay.wanted
        while rest is not None:
            stored, part, rest = self._read(projection, rest)
            at = stored.at
            if at is None or at.generation != state.generation or at.position < replay.position:
                raise NotNow(f"{view} was made anew")
            while replay.position < at.position:
                self.examiner.advance(replay, at.position)
            keys = {it for it in stored.rows.keys() | replay.rows.keys() | replay.failed.keys() if it in part}
            keys = {it for it in keys if it in replay.wanted}
            differences, not_compared = self._compare(view, keys, stored, replay, repair)
            yield Step(
                len(keys) - not_compared,
                position=replay.position,
                until=replay.position,
                differences=differences,
                not_compared=not_compared,
            )
            if isinstance(rest, KeyRange) and rest.first not in replay.wanted:
                break
        return replay.wanted

    def _read(self, projection: Projection, wanted: Wanted) -> tuple[StoredRows, Wanted, Wanted | None]:
        """The next stored rows, the keys that they are all of, and those that are left."""
        with self.examiner.read.connect() as connection, driver_of(connection) as driver:
            if not isinstance(wanted, KeyRange):
                return read_rows(driver, projection, wanted), wanted, None
            stored = read_range(driver, projection, wanted, _CHUNK)
        rest = wanted.behind(max(stored.rows)) if len(stored.rows) == _CHUNK else None
        return stored, wanted if rest is None else KeyRange(wanted.first, rest.first), rest

    def _compare(
        self, view: str, keys: Collection[bytes], stored: StoredRows, replay: Replay, repair: bool
    ) -> tuple[list[Difference], int]:
        """What differs, and how many keys could not be compared."""
        suspects = set(compare(self._views.projections[view], keys, replay, stored.rows))
        if view in self._views.cached:
            epochs = dict(self._cache.epochs.get(view, {}))
            for key, value in self._entries.read(view, epochs, list(keys)).items():
                row = stored.rows.get(key)
                if row is None or row.value != value:
                    suspects.add(key)
        if not suspects:
            return [], 0
        assert stored.at is not None, "the view has begun"
        ask, generation = self.examiner.ask, stored.at.generation
        found = ask(view, suspects, replay, generation, repair=repair, whole=False)
        erased = suspects & replay.unopened
        if not erased:
            return found, 0
        if not self._erasures_are_over(view):
            return found, len(erased)
        return found + ask(view, erased, replay, generation, repair=repair, whole=True), 0

    def _erasures_are_over(self, view: str) -> bool:
        """Waits until no erasure that was begun is under way, and the view has all of their events."""
        deadline = time.monotonic() + _ERASURE_SECONDS
        position: int | None = None
        while time.monotonic() < deadline and not self.examiner.stopping.is_set():
            if position is None:
                is_under_way, head = self.examiner.look_up(lambda feed: feed.unfinished())
                position = None if is_under_way else head
            if position is not None and self.examiner.state(view).position >= position:
                return True
            self.examiner.stopping.wait(_LOOK_SECONDS)
        return False

    def _sample(self, view: str, count: int) -> frozenset[bytes]:
        """Keys at random: half of them of rows that are there, half of what events change."""
        projection = self._views.projections[view]
        with self.examiner.read.connect() as connection:
            name = projection.table.fullname
            rows = connection.execute(
                text("SELECT reltuples FROM pg_class WHERE oid = CAST(:it AS regclass)"), {"it": name}
            )
            share = min(100.0, 500.0 * count / max(rows.scalar_one(), 1.0))
            sampled = text(f"SELECT key FROM {name} TABLESAMPLE SYSTEM (:share) ORDER BY random() LIMIT :most")  # noqa: S608
            found = connection.execute(sampled, {"share": share, "most": count - count // 2}).scalars()
            keys = {it.bytes for it in found}
        position = self.examiner.state(view).position
        epoch = self.examiner.epoch

        def look(feed: Lookup) -> None:
            for _ in range(min(count // 2, position)):
                after = random.randrange(position)  # noqa: S311 - any event will do
                part = feed.scan(after, position, 1, epoch=epoch, kinds=projection.rules)
                for _, parts in steps_of(projection, part.events, self._views.kinds).steps:
                    keys.add(random.choice(list(parts)))  # noqa: S311

        self.examiner.look_up(look)
        return frozenset(keys)


class Auditor:
    """A Component: compares the views that this program follows, all the time, and costs no more than its share."""

    def __init__(
        self,
        following: Followed,
        settings: AuditSettings,
        *,
        lookups: NewLookups,
        read_database: DatabaseSettings,
        cache_nodes: tuple[str, ...],
        cache: CacheSettings,
    ) -> None:
        self._new_audit: Callable[[str], ViewAudit] = lambda name: ViewAudit(
            following,
            lookups=lookups,
            read_database=read_database,
            cache_nodes=cache_nodes,
            cache=cache,
            name=name,
        )
        self._settings = settings
        self._progress = following.progress
        # Without their other generations.
        self._views = tuple(following.views.projections)
        self._audit = self._new_audit("tandem-projector-audit")
        self._stopping = self._audit.examiner.stopping
        self._began_at: dict[str, float] = {}
        started_at = time.time()
        for view in self._views:
            ROUND_AGE.labels(view).set_function(partial(self._age, view, started_at))
        self._thread = SupervisedThread("auditor", self._run)

    async def start(self) -> None:
        if self._settings.share:
            self._thread.start()

    async def stop(self) -> None:
        self._stopping.set()
        await asyncio.to_thread(self._thread.join, STOP_SECONDS)

    def verify(self, view: str, chosen: Chosen, repair: bool, is_over: Callable[[], bool]) -> Steps:
        """A comparison that somebody asks for, at full speed, on connections of its own. Raises CannotVerify."""
        audit = self._new_audit("tandem-projector-verify")
        audit.examiner.stopping = self._stopping
        try:
            for step in audit.steps(view, chosen, repair=repair):
                self._count(view, step)
                yield step
                if is_over() or self._stopping.is_set():
                    return
        finally:
            audit.close()

    def _run(self) -> None:
        while not self._stopping.is_set():
            for view in self._views:
                began_at, is_ours = self._began_at.get(view, -self._settings.round_seconds), self._is_ours(view)
                if is_ours and time.monotonic() >= began_at + self._settings.round_seconds:
                    self._began_at[view] = time.monotonic()
                    self._compare(view)
            self._stopping.wait(_LOOK_SECONDS)
        # By this thread: who stops it may not have waited for its end.
        self._audit.close()

    def _age(self, view: str, started_at: float) -> float:
        return time.time() - self._progress.compared_at.get(view, started_at)

    def _is_ours(self, view: str) -> bool:
        return self._progress.states[view].is_followed

    def _compare(self, view: str) -> None:
        share = self._settings.share
        worked_from = time.monotonic()
        try:
            for step in self._audit.steps(view, Chosen(), repair=self._settings.repair):
                KEYS.labels(view).inc(step.keys)
                self._count(view, step)
                pause = (time.monotonic() - worked_from) * (1 - share) / share
                if self._stopping.wait(min(pause, _LONGEST_PAUSE)):
                    return
                worked_from = time.monotonic()
        except CannotVerify as error:
            if self._is_ours(view) and not self._stopping.is_set():
                log.warning("a view cannot be compared with the feed", view=view, error=str(error))
            return
        self._progress.compared_at[view] = time.time()

    def _count(self, view: str, step: Step) -> None:
        self._progress.differences[view] += len(step.differences)
        for it in step.differences:
            DIFFERENCES.labels(view, it.kind.lower()).inc()
            REPAIRED.labels(view).inc(it.repaired)
            self._progress.findings.append((time.time(), it))
            log.error(
                "what is stored differs from the feed",
                view=view,
                key=it.key.hex(),
                kind=it.kind,
                position=it.position,
                columns=it.columns,
                repaired=it.repaired,
                error=it.error,
            )
