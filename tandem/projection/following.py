"""How a projector follows the feed, from the thread that begins to the statement that commits.

`Following` is the thread. It opens a connection to the read database and runs a `Session` on it, and another one when
that ends. A `Session` holds the locks of views, for the locks are its connection's, and takes batches of events into
these views. `Pipeline` works on three batches at a time: one is written while the next one is folded and the one behind
that is found. An `EventBatch` is the events after a position, and what they do to each view.

A view's life in this program, as `ViewState` says it, and who changes it:

    STANDBY ──────▶ RUNNING    Session._take gets the lock, which another projector had or nobody. A view of an epoch
       │                       that the feed had before is brought over to the one that it has now, or made anew.
       │            RUNNING    The view follows the feed, together with all views that are at the same position.
       │            RUNNING ──▶ FAILED    Session._fail: an event or its rows cannot be taken in, or the feed does not
       │                                  go on from where the view is.
       │                        FAILED    It is tried again alone, every `retry_seconds`.
       │            RUNNING ◀── FAILED    Session._write: it takes a batch in; Session._recover: the feed goes on from
       │                                  there again, and has no more yet.
       └──────────▶ HELD       Session._take gets the lock, and the view's rows were made from another feed. The lock is
                               kept, or the next round would take the view again. An operator must reset the views.

The error of a view that is FAILED or HELD stands in the view's row of `projection` and is announced.

When the session ends, so do its locks, and each view is on STANDBY again: Following._run.
"""

import asyncio
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from enum import Enum, auto
from functools import cache, partial
from typing import Any

import psycopg
from prometheus_client import Counter, Gauge, Histogram
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from tandem.feed.events import EventContract, FeedEvent
from tandem.feed.reader import EventsMissing, HistoryChanged, OtherEpoch
from tandem.feed.source import FeedSource
from tandem.projection.cache_writer import CacheWriter
from tandem.projection.fold import FoundRows, fold_steps, steps_of
from tandem.projection.ownership import (
    OtherFeed,
    bring_over,
    end_when_idle,
    hand_over_epochs,
    say_problem,
    take_over,
    try_lock,
)
from tandem.projection.projection import Projection
from tandem.projection.reset import make_anew
from tandem.projection.rows import NeededKeys, RowSource
from tandem.projection.settings import ChangeLogSettings, FollowSettings
from tandem.projection.statements import Deposed, Move, move_views, select_rows
from tandem.read_store.announcement import EVENTS_MISSING, HISTORY_CHANGED, VIEW_FAILED, Announcement
from tandem.read_store.tables import CHANNEL, change
from tandem.runtime.database import create_database_engine, driver_under, first_line, may_pass
from tandem.runtime.settings import DatabaseSettings
from tandem.runtime.telemetry import log

HEAD = Gauge("tandem_feed_head", "The last position of the feed that this projector has seen")
POSITION = Gauge("tandem_projection_position", "The last position that a view has taken in", ["view"])
FAILED = Gauge("tandem_projection_failed", "1 while a view cannot go on in this projector", ["view"])
PROJECTED = Counter("tandem_projected_events_total", "Events of the feed that a view has passed", ["view"])
BATCH_SECONDS = Histogram(
    "tandem_projection_batch_seconds",
    "Time from reading a batch to announcing it",
    buckets=(0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5),
)
# Looked up once: `labels` takes 0.6 µs, and every batch sets both for each view.
_position = cache(POSITION.labels)
_projected = cache(PROJECTED.labels)
_failed = cache(FAILED.labels)

# The pause before a session is begun anew after the read database went away.
_RECONNECT_SECONDS = 0.5

# Of each view's rows that are kept in memory: some thousand orders, all that is sold on a day.
_RECENT_BYTES = 2_000_000


class Phase(Enum):
    """Where a view is in its life: see this module's docstring."""

    STANDBY = auto()
    HELD = auto()
    RUNNING = auto()
    FAILED = auto()


@dataclass(frozen=True)
class ViewState:
    """A view as this program has it. position: its last known one. mark: of the event there.

    error: why it cannot go on, HELD and FAILED alone. problem: the same as a reason of errors. retry_at: when a FAILED
    view is tried again, on the clock of time.monotonic().
    """

    phase: Phase = Phase.STANDBY
    position: int = 0
    mark: int = 0
    generation: int = 0
    problem: str = ""
    error: str = ""
    retry_at: float = 0.0

    @property
    def is_followed(self) -> bool:
        """Whether the view is ours and belongs to the feed that is there."""
        return self.phase is Phase.RUNNING or self.phase is Phase.FAILED


@dataclass
class Progress:
    """How far this program is. Other threads may read it: each state is replaced as a whole.

    head: the last position of the feed that was seen.
    """

    states: dict[str, ViewState]
    head: int = 0


class Views:
    """The views of a domain, by name. contract: what its events are. cached: the views with entries in the cache."""

    def __init__(
        self, contract: EventContract[Any], projections: Iterable[Projection], *, cached: Collection[str]
    ) -> None:
        """Raises ValueError for rules of events that the domain does not have."""
        self.contract = contract
        self.kinds = frozenset(contract.kinds)
        self.projections = {it.view: it for it in projections}
        self.cached = frozenset(cached)
        for view, it in self.projections.items():
            unknown = {*it.rules, *it.parts, *it.beginning} - self.kinds
            if unknown:
                raise ValueError(f"{view} has rules for what is no kind of event: {', '.join(sorted(unknown))}")
        if not self.cached <= self.projections.keys():
            raise ValueError(f"cached, and no view: {', '.join(self.cached - self.projections.keys())}")


class Following:
    """A Component: the thread that projects. Other threads may read `progress`; its sessions use all the rest."""

    def __init__(
        self,
        views: Views,
        *,
        feed_database: DatabaseSettings,
        read_database: DatabaseSettings,
        cache: CacheWriter,
        follow: FollowSettings,
        change_log: ChangeLogSettings,
    ) -> None:
        self.progress = Progress({view: ViewState() for view in views.projections})
        self.views = views
        # Connections of its own: nobody who asks how far the views are may hold it up.
        self.feed = FeedSource(feed_database, views.contract, name="tandem-projector", poll_seconds=follow.poll_seconds)
        self._read = create_database_engine(
            read_database, name="tandem-projector", pool_size=1, by_key=True, autocommit=True
        )
        self.cache = cache
        self.follow = follow
        self.change_log = change_log
        self.stopping = threading.Event()
        self._thread: threading.Thread | None = None

    async def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="projector", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """Finishes the batch under way and hands the cache over to the next projector."""
        self.stopping.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        self.cache.start()
        problem = ""
        while not self.stopping.is_set():
            try:
                with self._read.connect() as connection:
                    # Closed at the end and not pooled: the locks are to end with the session.
                    connection.detach()
                    session = Session(connection, self)
                    session.begin()
                    if problem:
                        log.info("the read database is back")
                        problem = ""
                    session.run()
            except (Deposed, OtherEpoch) as error:
                log.warning("starting over", error=str(error))
            except (SQLAlchemyError, psycopg.Error) as error:
                # Logged once for each reason, not once for each attempt.
                if first_line(error) != problem:
                    problem = first_line(error)
                    log.warning("the read database is away", error=problem)
                self.stopping.wait(_RECONNECT_SECONDS)
            except Exception:
                log.exception("the projector failed, starting over")
                self.stopping.wait(_RECONNECT_SECONDS)
            finally:
                # The connection took the locks with it.
                for view, state in self.progress.states.items():
                    self.progress.states[view] = ViewState(position=state.position)
                    _failed(view).set(0)
                self.cache.epochs.clear()
        self.cache.stop()
        self.feed.close()
        self._read.dispose()


class Session:
    """Follows the feed with the views that it can get, until it is stopped or an error ends it."""

    def __init__(self, connection: Connection, following: Following) -> None:
        """connection: in autocommit mode, and closed after the session. following: with all views on STANDBY."""
        self._connection = connection
        self._driver = driver_under(connection)
        self._views, self._progress = following.views, following.progress
        self._feed, self._cache = following.feed, following.cache
        self._follow, self._change_log = following.follow, following.change_log
        self._stop = following.stopping
        self._epoch = uuid.UUID(int=0)
        self._rows = RowSource(
            partial(select_rows, self._driver, self._views.projections), self._views.projections, _RECENT_BYTES
        )
        self._pipeline = Pipeline(self._find, self._rows, self._write)
        self._due: defaultdict[str, float] = defaultdict(float)

    def begin(self) -> None:
        """Raises SQLAlchemyError when the read database is not there, or not migrated."""
        end_when_idle(self._connection, self._follow.hung_seconds)
        self._take_free_views()

    def run(self) -> None:
        """Until `stop`, or an error ends the session."""
        while not self._stop.is_set():
            if self._is_due("take", self._follow.standby_seconds):
                self._take_free_views()
            more = False
            for views in self._groups():
                more |= self._step(views)
            if self._is_due("heartbeat", self._follow.heartbeat_seconds):
                self._look_at_head()
                self._announce()
            if self._cache.revive():
                self._announce()
            if self._is_due("purge", self._change_log.purge_every_seconds):
                self._purge()
            if not more:
                self._feed.wait(self._stop)
        for view, state in self._followed().items():
            # Each batch that is committed is in the cache too, or the cache's node is fenced: `_write` did both.
            hand_over_epochs(self._connection, view, state.position, self._cache.end(view))
        # A standby need not wait until PostgreSQL has seen the connection's end.
        self._driver.execute("SELECT pg_advisory_unlock_all()")

    def _is_due(self, what: str, every: float) -> bool:
        now = time.monotonic()
        if now < self._due[what]:
            return False
        self._due[what] = now + every
        return True

    def _followed(self) -> dict[str, ViewState]:
        return {view: state for view, state in self._progress.states.items() if state.is_followed}

    def _look_at_head(self) -> bool:
        """Makes sure that the feed is still the one we follow; False while it cannot be read."""
        head = self._feed.head()
        if head is None:
            return False
        if self._followed() and head.epoch != self._epoch:
            raise OtherEpoch(f"the feed is {head.epoch} now, it was {self._epoch}")
        self._epoch = head.epoch
        self._set_head(head.position)
        return True

    def _set_head(self, position: int) -> None:
        self._progress.head = position
        HEAD.set(position)

    # From STANDBY to RUNNING or HELD.

    def _take_free_views(self) -> None:
        free = [view for view, state in self._progress.states.items() if state.phase is Phase.STANDBY]
        if not free or not self._look_at_head():
            return
        locked = [view for view in free if try_lock(self._connection, view)]
        for view in locked:
            self._take(view)
        if locked:
            # Readers learn the new cache epochs at once and need not wait for the heartbeat.
            self._announce()

    def _take(self, view: str) -> None:
        try:
            taken = take_over(self._connection, view, self._epoch)
        except OtherFeed as error:
            if not self._bring_over(view, error):
                return
            taken = take_over(self._connection, view, self._epoch)
        at, epochs = taken.at, taken.cache_epochs
        self._cache.begin(view, epochs)
        self._set(view, ViewState(Phase.RUNNING, at.position, at.mark, taken.generation))
        _position(view).set(at.position)
        log.info("took a view over", view=view, position=at.position, cache="kept" if epochs else "new")

    def _bring_over(self, view: str, other: OtherFeed) -> bool:
        """Brings a view of an epoch that the feed had before to the one that it has now; whether it is there.

        It goes on where it is if the feed still has what it took in, and is made anew otherwise. A view of a feed from
        elsewhere is held. While the feed is away nothing is done: the lock is kept, and the next round asks again.
        """
        at, ended = other.at, self._feed.ended_epochs()
        if ended is None:
            return False
        if at.epoch not in ended:
            log.error("a view cannot go on", view=view, error=str(other))
            self._set(view, ViewState(Phase.HELD, at.position, problem=VIEW_FAILED, error=str(other)))
            say_problem(self._connection, view, VIEW_FAILED, str(other))
            return False
        try:
            if self._feed.events(at.position, 0, self._epoch, at.mark) is None:
                return False
        except HistoryChanged as error:
            log.warning("a view is made anew", view=view, position=at.position, reason=str(error))
            make_anew(self._connection, self._views.projections[view].table, self._epoch)
        else:
            log.info("a view goes on in the feed's new epoch", view=view, position=at.position)
            bring_over(self._connection, view, self._epoch)
        return True

    def _set(self, view: str, state: ViewState) -> None:
        self._progress.states[view] = state
        _failed(view).set(bool(state.error))

    # From RUNNING and FAILED to either of them.

    def _groups(self) -> list[list[str]]:
        """The views that are to be followed now, those at the same position together.

        A view that is behind must not hold the others up, and one that failed is tried alone.
        """
        now = time.monotonic()
        groups: defaultdict[tuple[int, int, str], list[str]] = defaultdict(list)
        for view, state in self._progress.states.items():
            if state.phase is Phase.RUNNING:
                groups[state.position, state.mark, ""].append(view)
            elif state.phase is Phase.FAILED and now >= state.retry_at:
                groups[state.position, state.mark, view].append(view)
        return list(groups.values())

    def _step(self, views: Sequence[str]) -> bool:
        """Takes the next events in; whether there may be more at once.

        After a batch that is not full there need not be: new events are announced by a notification, and one that came
        during the step is kept until the session waits for it.
        """
        state = self._progress.states[views[0]]
        try:
            batch = self._pipeline.step(views, state.position, state.mark)
        except (Deposed, OtherEpoch):
            raise
        except HistoryChanged as error:
            mend = (
                "the write database lost commits in a failover, or was restored: `python -m command_server begin-epoch`"
            )
            for view in views:
                self._fail(view, HISTORY_CHANGED, f"{HISTORY_CHANGED}: {error}; {mend} makes the views right")
            return False
        except EventsMissing as error:
            for view in views:
                self._fail(view, EVENTS_MISSING, str(error))
            return False
        except Exception as error:
            if may_pass(error):
                raise
            if len(views) > 1:
                # Some view's rows cannot be stored, or not be made. Trying each view alone shows which.
                return sum(self._step([view]) for view in views) > 0
            kind = f"{type(error).__module__}.{type(error).__name__}"
            self._fail(views[0], VIEW_FAILED, f"events after {state.position}: ({kind}) {first_line(error)}")
            return False
        if batch is None:
            if not self._feed.problem:
                self._recover(views)
            return False
        for view, move in batch.moves.items():
            if move.changes.stopped_by is not None:
                self._fail(view, VIEW_FAILED, str(move.changes.stopped_by))
        return batch.moved and batch.full

    def _fail(self, view: str, problem: str, error: str) -> None:
        state = self._progress.states[view]
        retry_at = time.monotonic() + self._follow.retry_seconds
        self._set(view, replace(state, phase=Phase.FAILED, problem=problem, error=error, retry_at=retry_at))
        if state.error != error:
            log.error("a view cannot go on", view=view, position=state.position, error=error)
            say_problem(self._connection, view, problem, error)
            # Those who wait for the view need not wait any longer.
            self._announce()

    def _recover(self, views: Sequence[str]) -> None:
        """The feed goes on from where the views are, and there is nothing that they could not take in."""
        for view in views:
            state = self._progress.states[view]
            if state.phase is Phase.FAILED:
                log.info("a view goes on", view=view, position=state.position)
                self._set(view, replace(state, phase=Phase.RUNNING, problem="", error=""))
                say_problem(self._connection, view, None, None)

    def _find(self, views: Sequence[str], after: int, mark: int) -> "EventBatch | None":
        limit = self._follow.batch_size
        events = self._feed.events(after, limit, self._epoch, mark)
        if not events:
            return None
        projections = [self._views.projections[view] for view in views]
        return EventBatch(
            projections,
            after,
            events,
            self._views.kinds,
            self._rows,
            mark_before=mark,
            full=len(events) == limit,
        )

    def _write(self, batch: "EventBatch") -> None:
        """One transaction for all views, then the cache, then the announcement."""
        if batch.moved:
            move_views(self._driver, self._epoch, list(batch.moves.values()))
            cached = {view: it.changes.values for view, it in batch.moves.items() if view in self._views.cached}
            self._cache.write(cached)
            for view, move in batch.moves.items():
                if move.after > move.before:
                    generation = self._progress.states[view].generation
                    self._set(view, ViewState(Phase.RUNNING, move.after, move.mark, generation))
            self._announce()
            BATCH_SECONDS.observe(time.perf_counter() - batch.began)
        # After the announcement, so that nobody who waits for the views waits for this.
        self._set_head(max(batch.after, self._progress.head))
        for view, move in batch.moves.items():
            _position(view).set(move.after)
            _projected(view).inc(move.after - move.before)

    # In every phase.

    def _announce(self) -> None:
        """Says where the views are that are followed.

        After the rows and the cache are written, and on the connection that holds the locks: a session without them
        cannot announce.
        """
        followed = self._followed()
        problems = {view: it.problem for view, it in self._progress.states.items() if it.problem}
        if not followed and not problems:
            return
        announcement = Announcement(
            feed_epoch=self._epoch,
            positions={view: state.position for view, state in followed.items()},
            cache_epochs={view: self._cache.epochs[view] for view in followed},
            marks={view: state.mark for view, state in followed.items()},
            generations={view: state.generation for view, state in followed.items()},
            problems=problems,
        )
        self._driver.execute("SELECT pg_notify(%s, %s)", (CHANNEL, announcement.encode()), prepare=True)

    def _purge(self) -> None:
        keep, most = self._change_log.keep_hours, self._change_log.purge_batch
        try:
            purged = self._connection.execute(_PURGE, {"keep": keep, "most": most}).rowcount
        except DBAPIError as error:
            if error.connection_invalidated:
                raise
            # Too slow, or refused. Old rows take room, and that is no reason to stop the views.
            log.warning("the change log is not purged", error=first_line(error))
            return
        if purged == most:
            # There is more.
            self._due["purge"] = 0.0


_PURGE = text(f"""
DELETE FROM {change.fullname} WHERE (view, position, key) IN (
  SELECT view, position, key FROM {change.fullname}
  WHERE changed_at < now() - make_interval(secs => :keep * 3600) ORDER BY changed_at LIMIT :most
)
""")  # noqa: S608 - only the table's name is put in


class EventBatch:
    """The events after a position that its views all have, with the rows that they change.

    before, after: the positions of the events before it and of its last one. mark: of that last one. full: there may be
    more events behind it. moves: what it does to each view, by name, once it is folded.
    """

    def __init__(
        self,
        projections: Sequence[Projection],
        before: int,
        events: Sequence[FeedEvent],
        known_kinds: Collection[str],
        rows: RowSource,
        *,
        mark_before: int,
        full: bool,
    ) -> None:
        """mark_before: of the event at `before`. Raises psycopg.Error."""
        self.began = time.perf_counter()
        self.before = before
        self.after, self.mark = events[-1].position, events[-1].mark
        self._marks = [mark_before, *(it.mark for it in events)]
        self.full = full
        self.moves: dict[str, Move] = {}
        self._projections = {it.view: it for it in projections}
        self._steps = {it.view: steps_of(it, events, known_kinds) for it in projections}
        self._needed: NeededKeys = {it.view: self._steps[it.view].needed(it) for it in projections}
        self._found: FoundRows = rows.find(self._needed)

    @property
    def views(self) -> list[str]:
        return list(self._projections)

    def fold(self, rows: RowSource) -> None:
        """The batches before this one must be folded, and may be written or not."""
        rows.refresh(self._needed, self._found)
        for view, steps in self._steps.items():
            projection = self._projections[view]
            changes = fold_steps(projection, steps, self._found[view])
            after = changes.stopped_by.position - 1 if changes.stopped_by else self.after
            self.moves[view] = Move(projection, self.before, after, changes, self._marks[after - self.before])
        rows.add_folded({view: move.changes for view, move in self.moves.items()})
        # Not needed any more, and three batches are in memory while views catch up.
        self._steps, self._needed, self._found, self._marks = {}, {}, {}, []

    @property
    def moved(self) -> bool:
        """Whether some view takes some event in."""
        return any(it.after > it.before for it in self.moves.values())

    @property
    def leads_on(self) -> bool:
        """Whether all of its views go on together behind it."""
        return self.full and all(it.after == self.after for it in self.moves.values())


Find = Callable[[Sequence[str], int, int], EventBatch | None]
"""(views, the position that they all have, the mark there) -> the events behind it, if there are any."""


class Pipeline:
    """Writes a batch, folds the next and finds the one behind that, at the same time. Then all move on by one.

    Each of the three has a thread. Between two steps nothing runs. Nothing of a batch is seen outside before it is
    written. When something fails, all that was done ahead is dropped, since it was made from what was never written.
    """

    def __init__(self, find: Find, rows: RowSource, write: Callable[[EventBatch], None]) -> None:
        """find, write: they may run at the same time."""
        self._find = find
        self._rows = rows
        self._write = write
        # The next batch, folded, and the one behind it, found.
        self._ahead: tuple[EventBatch, EventBatch | None] | None = None

    def step(self, views: Sequence[str], position: int, mark: int) -> EventBatch | None:
        """Writes the views' next batch; None where there is none. Raises what `find` and `write` raise."""
        try:
            return self._step(views, position, mark)
        except Exception:
            self._rows.forget()
            raise

    def _step(self, views: Sequence[str], position: int, mark: int) -> EventBatch | None:
        ahead, self._ahead = self._ahead, None
        if ahead is not None and (ahead[0].views, ahead[0].before) == (views, position):
            batch, behind = ahead
        else:
            self._rows.drop_folded()
            found, behind = self._find(views, position, mark), None
            if found is None:
                return None
            batch = found
            batch.fold(self._rows)
        if batch.leads_on:
            self._ahead = self._write_and_go_on(batch, behind)
        else:
            self._write(batch)
        self._rows.written()
        return batch

    def _write_and_go_on(
        self, batch: EventBatch, behind: EventBatch | None
    ) -> tuple[EventBatch, EventBatch | None] | None:
        """Returns what is ahead of the batch then. behind: what was found behind it already."""
        with ThreadPoolExecutor(2, "projector") as threads:
            written = threads.submit(self._write, batch)
            following = behind or _found(threads.submit(self._find, batch.views, batch.after, batch.mark))
            after_that: Future[EventBatch | None] | None = None
            if following is not None:
                if following.full:
                    after_that = threads.submit(self._find, batch.views, following.after, following.mark)
                following.fold(self._rows)
        written.result()
        if following is None:
            return None
        return following, _found(after_that) if after_that and following.leads_on else None


def _found(found: "Future[EventBatch | None]") -> EventBatch | None:
    """None for what cannot be found ahead: `step` looks for it once more when its time has come, and raises then."""
    try:
        return found.result()
    except Exception:
        return None
