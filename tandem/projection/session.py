"""How a projector follows the feed, from taking views over to the statement that commits.

A `Session` owns views, as `ownership.py` says who may, and takes batches of events into them. `pipeline.py` works on
three batches at a time. `following.py` begins it anew when it ends.

A session has two threads, each with a connection. The one that follows reads the feed, writes batches and brings views
over to a new epoch of the feed, and may wait for the write database for any time, and for a batch to be stored. The
keeper takes views over, announces them and releases them, and asks the write database for nothing. What they share, the
views' states and the cache, is changed under the session's lock, which is free while somebody waits for either.

A view's life in this program is drawn in `views.py`.
"""

import math
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Protocol

import psycopg
from sqlalchemy import Connection

from tandem.feed.reader import EventsMissing, HistoryChanged, OtherEpoch
from tandem.feed.token import Token
from tandem.projection import metrics
from tandem.projection.cache_writer import CacheWriter
from tandem.projection.change_log import purge
from tandem.projection.changes import Room
from tandem.projection.comparison import Comparisons
from tandem.projection.inspection import Inspection, Inspections, Inspector, NotNow
from tandem.projection.ownership import (
    FreeView,
    another_follows,
    begin_session,
    bring_over,
    end_session,
    free_views,
    hand_over,
    make_anew,
    renew_session,
    say_problem,
    take_over,
)
from tandem.projection.parking import report_parked
from tandem.projection.pipeline import EventBatch, Pipeline
from tandem.projection.projection import Projection
from tandem.projection.rebuilding import Rebuilding
from tandem.projection.redriving import Redriver
from tandem.projection.rows import RowSource
from tandem.projection.settings import ChangeLogSettings, FollowSettings
from tandem.projection.statements import (
    Deposed,
    Move,
    announce,
    count_parked,
    limit_statements,
    move_views,
    refused_rows,
    select_parked,
    select_rows,
)
from tandem.projection.views import Phase, Progress, Views, ViewState
from tandem.projection.watched_feed import WatchedFeed
from tandem.read_store.announcement import EVENTS_MISSING, HISTORY_CHANGED, VIEW_FAILED, Announcement
from tandem.read_store.cache import CacheEpochs
from tandem.read_store.damage import DamagedRows
from tandem.read_store.tables import is_other, served_of
from tandem.runtime.database import Driver, driver_under, first_line
from tandem.runtime.notifications import Notified
from tandem.runtime.settings import DatabaseSettings
from tandem.runtime.snapshots import LOOK_EVERY_SECONDS, SnapshotWatch
from tandem.runtime.sqlstate import ViewAction, failure_of
from tandem.runtime.telemetry import log

# Before a view that a lock or a time-out stopped is tried again for the first time.
_FIRST_PAUSE = 0.1

# The feed's epoch before anything has said it.
_UNKNOWN = uuid.UUID(int=0)

# Of each view's rows that are kept in memory: some thousand orders, all that is sold on a day.
_RECENT_BYTES = 2_000_000


class Lasting(Protocol):
    """What outlives a session: tandem.projection.following.Following has it."""

    views: Views
    progress: Progress
    feed: WatchedFeed
    cache: CacheWriter
    inspections: Inspections
    damage: DamagedRows
    repaired: defaultdict[str, set[bytes]]
    read_database: DatabaseSettings
    comparisons: Comparisons
    follow: FollowSettings
    change_log: ChangeLogSettings
    stopping: threading.Event
    released: threading.Event
    session: uuid.UUID | None
    epoch: uuid.UUID | None
    readers: Notified


class Session:
    """Follows the feed with the views that it can get, until it is stopped or an error ends it."""

    def __init__(self, connection: Connection, keeping: Connection, following: Lasting) -> None:
        """connection, keeping: in autocommit mode, and closed after the session; the other is for what is done for the
        views as a whole, under the lock. following: with all views on STANDBY.

        Raises SQLAlchemyError or psycopg.Error when the read database is not there, or not migrated.
        """
        self._connection = connection
        self._driver, self._keeping = driver_under(connection), driver_under(keeping)
        self._views, self._progress = following.views, following.progress
        self._feed, self._cache = following.feed, following.cache
        self._follow, self._change_log = following.follow, following.change_log
        self._read_limits = following.read_database
        self._stop = following.stopping
        self._following = following
        self._session = begin_session(connection, following.session)
        following.session = self._session
        following.released.clear()
        # Guards the views' states, the cache, the epoch, and all that is done for the views as a whole.
        self._lock = threading.Lock()
        # Set when either thread ends: the other one ends too.
        self._over = threading.Event()
        self._keeper_failed: Exception | None = None
        # The feed of the views that we own. Until the write database says it, it is what their rows say.
        self._epoch = following.epoch or _UNKNOWN
        self._projections = dict(self._views.projections)
        self._rows = RowSource(
            partial(select_rows, self._driver, self._projections),
            partial(select_parked, self._driver, Room(self._follow.parked_keys, self._follow.parked_events)),
            self._projections,
            _RECENT_BYTES,
        )
        self._pipeline = Pipeline(self._find, self._rows, self._write)
        self._redriver = Redriver(self._driver, self._feed, self._views, self._projections, self._write_redriven)
        self._is_obeying = False
        self._inspector = Inspector(
            self._driver,
            self._feed,
            self._cache,
            session=self._session,
            alone=self._lock,
            forget=self._pipeline.forget,
            most_events=self._follow.batch_size,
        )
        self._repaired = following.repaired
        # The keeper's: whether the feed has been silent for too long.
        self._is_cut_off = False
        # Of views whose batches took too long: how many events the next one may have.
        self._most: dict[str, int] = {}
        # How many events each view's batch has that is being loaded or written.
        self._in_hand: dict[str, int] = {}
        self._rebuilding = Rebuilding(
            driver=self._driver,
            session=self._session,
            lock=self._lock,
            served=self._views.projections,
            projections=self._projections,
            states=self._progress.states,
            rows=self._rows,
            pipeline=self._pipeline,
            cache=self._cache,
            comparisons=following.comparisons,
            follow=self._follow,
            announce=self._announce_over,
        )
        self._snapshots = SnapshotWatch("read")
        self._due: defaultdict[str, float] = defaultdict(float)
        self._limit_statements()

    def _limit_statements(self) -> None:
        """Readers trust the cache for 3 s after an announcement, which waits for the keeper's statement under way."""
        limits = self._read_limits
        seconds = min(limits.statement_timeout, self._follow.statement_seconds)
        for driver in (self._driver, self._keeping):
            limit_statements(driver, seconds, min(limits.lock_timeout, self._follow.lock_seconds))

    def run(self) -> None:
        """Until `stop`, or an error ends the session."""
        keeper = threading.Thread(target=self._keep, name="projector-keeper", daemon=True)
        keeper.start()
        try:
            self._follow_feed()
        finally:
            self._over.set()
            keeper.join()
        if self._keeper_failed is not None:
            raise self._keeper_failed
        self._end()

    def _follow_feed(self) -> None:
        while not self._stop.is_set() and not self._over.is_set():
            if self._is_due("head", self._follow.heartbeat_seconds):
                self._look_at_head()
            self._bring_over_held()
            if self._is_due("generations", self._follow.standby_seconds):
                with self._passing("the other generations of views cannot be looked after now"):
                    self._rebuilding.look_after_all(self._epoch)
            for inspection in self._following.inspections.take():
                self._inspect(inspection)
            more = False
            groups, filling = self._groups()
            for views in groups:
                more |= self._step(views, is_alone=len(groups) == 1 and not filling)
            if filling:
                with self._rebuilding.work_on(filling):
                    more |= self._step(filling, is_alone=False)
            more |= self._obey()
            if self._is_due("purge", self._change_log.purge_every_seconds) and purge(
                self._connection, self._change_log
            ):
                # There is more.
                self._due["purge"] = 0.0
            if self._is_due("snapshots", LOOK_EVERY_SECONDS):
                with self._passing("the oldest snapshot is not known"):
                    self._snapshots.look(self._driver)
            if not more:
                self._feed.wait(self._stop, self._rebuilding.rest_seconds)

    def _keep(self) -> None:
        """The keeper's thread."""
        pause = min(self._follow.poll_seconds, self._follow.standby_seconds, self._follow.heartbeat_seconds)
        try:
            while not self._over.is_set():
                self._keep_up()
                if self._stop.is_set() and self._feed.is_silent:
                    # The other thread may wait for long, and has nothing to write.
                    self._end()
                    return
                self._over.wait(pause)
        except Exception as error:  # the other thread raises it
            self._keeper_failed = error
            self._following.released.set()
        finally:
            self._over.set()

    def _keep_up(self) -> None:
        with self._passing("the read database is slow"), self._lock:
            if self._is_due("take", self._follow.standby_seconds):
                self._take_free_views()
            if self._is_due("heartbeat", self._follow.heartbeat_seconds):
                self._beat()
            if self._cache.revive():
                self._announce()

    @contextmanager
    def _passing(self, what: str, **about: str) -> Iterator[None]:
        """For what is tried again when it is due: a lock or a time-out is logged, all else is raised."""
        try:
            yield
        except psycopg.Error as error:
            if self._action_after(error) not in {ViewAction.HALVE, ViewAction.WAIT}:
                raise
            log.warning(what, error=first_line(error), **about)

    def _action_after(self, error: Exception) -> ViewAction:
        """What is done after an error. Without the connection the session is over, whatever the error says."""
        return ViewAction.END_SESSION if self._driver.closed or self._keeping.closed else failure_of(error).view

    def _end(self) -> None:
        """At a clean stop."""
        with self._lock:
            self._release()
            end_session(self._keeping, self._session)
        self._following.released.set()

    def _is_due(self, what: str, every: float) -> bool:
        now = time.monotonic()
        if now < self._due[what]:
            return False
        self._due[what] = now + every
        return True

    def _followed(self) -> dict[str, ViewState]:
        return {view: state for view, state in self._progress.states.items() if state.is_followed}

    def _owned(self) -> dict[str, ViewState]:
        return {view: state for view, state in self._progress.states.items() if state.phase is not Phase.STANDBY}

    def _look_at_head(self) -> None:
        """Makes sure that the feed is still the one we follow, if it can be read."""
        head = self._feed.head()
        if head is None:
            return
        with self._lock:
            first, self._following.epoch = self._following.epoch is None, head.epoch
            if self._owned() and head.epoch != self._epoch:
                raise OtherEpoch(f"the feed is {head.epoch} now, it was {self._epoch}")
            self._epoch = head.epoch
            if first:
                # Now it is known of which feed new views are.
                with self._passing("views cannot be taken over now"):
                    self._take_free_views()
        self._set_head(head.position)

    def _set_head(self, position: int) -> None:
        self._progress.head = position
        metrics.HEAD.set(position)

    # From STANDBY to RUNNING or HELD, and back.

    def _take_free_views(self) -> None:
        owned = self._owned()
        free_to_us = [it for it in self._progress.states if not is_other(it) or served_of(it) in owned]
        standby = [it for it in free_to_us if it not in owned]
        if not standby:
            return
        if self._feed.is_silent and self._another_follows():
            return
        free = free_views(self._keeping, standby, self._follow.hung_seconds)
        taken = [view for view, it in free.items() if self._try_to_take(view, it)]
        if taken:
            # Readers learn the new cache epochs at once and need not wait for the heartbeat.
            self._announce()

    def _try_to_take(self, view: str, free: FreeView) -> bool:
        with self._passing("a view cannot be taken over now", view=view):
            return self._take(view, free)
        # It is new, and the table is locked in which its row is to be.
        return False

    def _take(self, view: str, free: FreeView) -> bool:
        """Whether the view is ours now."""
        if self._following.epoch is None:
            # Only the write database can tell of which feed a view is to be. Its rows can be read before it does.
            if not self._feed.is_silent or free.feed_epoch is None:
                return False
            if self._epoch == _UNKNOWN:
                self._epoch = free.feed_epoch
            if self._epoch != free.feed_epoch:
                return False
        taken = take_over(self._keeping, view, self._session, free, self._epoch)
        if taken is None:
            return False
        at = taken.at
        state = ViewState(Phase.RUNNING, at.position, at.mark, at.generation, taken.parked)
        if at.epoch != self._epoch:
            self._set(view, replace(state, phase=Phase.HELD, epoch=at.epoch))
            return False
        if not taken.filled:
            self._rebuilding.unfilled.add(view)
        if taken.problem:
            state = replace(state, phase=Phase.FAILED, problem=taken.problem, error=taken.error)
        self._begin(view, state, taken.cache_epochs)
        return True

    def _begin(self, view: str, state: ViewState, cache_epochs: CacheEpochs | None) -> None:
        """Follows a view that is ours and of the feed that is there."""
        kept = not is_other(view) and self._cache.begin(view, cache_epochs)
        self._rows.forget_parked(view)
        self._set(view, state)
        metrics.position_of(view).set(state.position)
        log.info("took a view over", view=view, position=state.position, cache="kept" if kept else "new")

    def _bring_over_held(self) -> None:
        with self._lock:
            held = {view: it for view, it in self._owned().items() if it.phase is Phase.HELD}
        for view, state in held.items():
            if time.monotonic() < state.retry_at:
                continue
            with self._passing("a view cannot be brought over now", view=view):
                self._bring_over(view, state)
                continue
            # Its table is locked, by a reader of many rows, say.
            self._set(view, replace(state, retry_at=time.monotonic() + self._follow.retry_seconds))

    def _bring_over(self, view: str, state: ViewState) -> None:
        """Brings a view of an epoch that the feed had before to the one that it has now.

        It goes on where it is if the feed still has what it took in, and is made anew otherwise. A view of a feed from
        elsewhere is held. While the feed is away nothing is done, and the next round asks again.
        """
        ended = self._feed.ended_epochs()
        if ended is None:
            return
        if state.epoch not in ended:
            error = (
                f"it was made from the feed {state.epoch}, and the write database has the feed {self._epoch}, which"
                " does not come from it: if that is the right database, run"
                f" `tandem rebuild {served_of(view)} --switch`"
            )
            say_problem(self._driver, view, self._session, VIEW_FAILED, error)
            log.error("a view cannot go on", view=view, error=error)
            with self._lock:
                self._set(view, replace(state, problem=VIEW_FAILED, error=error, retry_at=math.inf))
                self._announce()
            return
        brought = replace(state, phase=Phase.RUNNING, epoch=None)
        try:
            if self._feed.events(state.position, 0, self._epoch, state.mark) is None:
                return
        except HistoryChanged as error:
            log.warning("a view is made anew", view=view, position=state.position, reason=str(error))
            generation = make_anew(self._driver, self._lock, self._projections[view], self._session, self._epoch)
            brought = replace(brought, position=0, mark=0, generation=generation, parked=0)
        else:
            log.info("a view goes on in the feed's new epoch", view=view, position=state.position)
            bring_over(self._driver, view, self._session, self._epoch)
        with self._lock:
            self._begin(view, brought, None)
            self._announce()

    def _set(self, view: str, state: ViewState) -> None:
        self._progress.states[view] = state
        metrics.show(view, problem=state.problem, parked=state.parked)

    def _release(self) -> None:
        """Hands all views over to whoever takes them next."""
        for view, state in self._owned().items():
            # Each batch that is committed is in the cache too, or the cache's node is fenced: `_write` did both.
            epochs = self._cache.end(view) if state.is_followed and not is_other(view) else None
            # First: where the row cannot be had, the view is nobody's in this program all the same.
            self._set(view, ViewState(position=state.position))
            with self._passing("a view is not handed over", view=view):
                # Its owner is gone with this session all the same; the next one begins a new cache.
                hand_over(self._keeping, view, self._session, state.position, epochs)

    # What operators ask of parked rows.

    def _obey(self) -> bool:
        """Does a part of what is asked of views of ours; whether there may be more to do at once."""
        if not self._is_obeying and not self._is_due("operations", self._follow.standby_seconds):
            return False
        self._is_obeying = False
        with self._lock:
            followed = self._followed()
        if followed:
            with self._passing("what an operator asked for cannot be done now"):
                self._is_obeying = self._redriver.work(followed, self._epoch)
        return self._is_obeying

    def _write_redriven(self, move: Move, note: Callable[[], None]) -> None:
        """For Redriver. The view stays where it is."""
        view = move.projection.view
        # Before the transaction: what was folded ahead knows other rows.
        self._pipeline.forget()
        with self._lock:
            state = self._progress.states[view]
            with self._driver.transaction():
                move_views(self._driver, self._epoch, self._session, [move])
                if state.problem:
                    say_problem(self._driver, view, self._session, state.problem, state.error)
                note()
            if view in self._views.cached:
                self._cache.write({view: move.changes.values})
            self._set(view, replace(state, parked=move.changes.parked_keys))
            self._announce()

    # Between RUNNING, WAITING and FAILED.

    def _groups(self) -> tuple[list[list[str]], list[str]]:
        """The views that are to be followed now, those at the same position together; and those to be filled.

        A view that is behind must not hold the others up, nor one whose batches are to be small. One that waits or
        failed is tried alone. Of those to be filled, the furthest behind come first, so that they meet.
        """
        now = time.monotonic()
        groups: defaultdict[tuple[int, int, int, str], list[str]] = defaultdict(list)
        filling: defaultdict[tuple[int, int, int, str], list[str]] = defaultdict(list)
        with self._lock:
            states = self._followed()
        for view, state in states.items():
            if state.phase is not Phase.RUNNING and now < state.retry_at:
                continue
            found = filling if is_other(view) and not self._rebuilding.are_together(served_of(view)) else groups
            alone = "" if state.phase is Phase.RUNNING else view
            found[state.position, state.mark, self._batch_size(view), alone].append(view)
        return list(groups.values()), [] if not filling or self._rebuilding.rests else filling[min(filling)]

    def _batch_size(self, view: str) -> int:
        served = served_of(view)
        if view != served and not self._rebuilding.are_together(served):
            return self._rebuilding.batch_size(view, self._most.get(view, self._follow.batch_size))
        return self._most.get(served, self._follow.batch_size)

    def _step(self, views: Sequence[str], *, is_alone: bool) -> bool:
        """Takes the next events in; whether there may be more at once. is_alone: no other views are followed now.

        After a batch that is not full there need not be: new events are announced by a notification, and one that came
        during the step is kept until the session waits for it.
        """
        state = self._progress.states[views[0]]
        began = time.monotonic()
        self._in_hand = {}
        try:
            with self._time_for(views):
                batch = self._pipeline.step(views, state.position, state.mark, goes_on=is_alone)
        except Deposed:
            raise
        except OtherEpoch:
            # The next session is to know it when it takes the views over.
            self._look_at_head()
            raise
        except (HistoryChanged, EventsMissing) as error:
            problem = HISTORY_CHANGED if isinstance(error, HistoryChanged) else EVENTS_MISSING
            for view in views:
                self._fail(view, problem, f"{problem}: {error}")
            return False
        except Exception as error:
            return self._step_failed(views, error)
        if batch is None:
            if not self._feed.problem:
                self._recover(views)
                self._rebuilding.note_filled(views)
            return False
        if not batch.full and not batch.is_cut:
            self._rebuilding.note_filled([view for view, it in batch.moves.items() if it.after == batch.after])
        if time.monotonic() - began < self._follow.statement_seconds / 2:
            self._double(views)
        for view, move in batch.moves.items():
            if move.changes.stopped_by is not None:
                self._fail(view, VIEW_FAILED, str(move.changes.stopped_by))
        return batch.moved and (batch.full or batch.is_cut)

    def _step_failed(self, views: Sequence[str], error: Exception) -> bool:
        """Whether there may be more at once. Raises what ends the session."""
        action = self._action_after(error)
        if action is ViewAction.END_SESSION:
            raise error
        if len(views) > 1:
            # Some view's rows cannot be stored, or not be made. Trying each view alone shows which.
            return sum([self._step([view], is_alone=False) for view in views]) > 0
        [view] = views
        kind = f"{type(error).__module__}.{type(error).__name__}"
        problem = f"events after {self._progress.states[view].position}: ({kind}) {first_line(error)}"
        if action in {ViewAction.HALVE, ViewAction.PARK} and self._halve(view, first_line(error)):
            return True
        if action is ViewAction.PARK and self._park_refused(view):
            return True
        if action in {ViewAction.FAIL, ViewAction.PARK}:
            self._fail(view, VIEW_FAILED, problem)
        else:
            self._postpone(view, problem)
        return False

    def _park_refused(self, view: str) -> bool:
        """Parks those rows of the view's next event that the database refuses; whether there are any."""
        state = self._progress.states[view]
        batch = self._find([view], state.position, state.mark)
        if batch is None:
            return False
        batch.fold(self._rows)
        projection, _, _, changes, _ = batch.moves[view]
        refused = refused_rows(self._driver, projection, changes)
        if refused:
            batch.park(view, refused)
            self._write(batch)
        self._rows.forget()
        return bool(refused)

    @contextmanager
    def _time_for(self, views: Sequence[str]) -> Iterator[None]:
        """A batch that cannot be halved any more may take as long as a statement of the read database may, as long as
        no standby takes this projector for one that hangs.
        """
        if self._most.get(views[0]) != 1:
            yield
            return
        seconds = min(self._read_limits.statement_timeout, self._follow.hung_seconds / 2)
        limit_statements(self._driver, seconds, self._follow.lock_seconds)
        try:
            yield
        finally:
            if not (self._driver.closed or self._keeping.closed):
                self._limit_statements()

    def _halve(self, view: str, error: str) -> bool:
        """The view's next batch has half as many events; one event alone is tried once more. After a time-out it is
        given more time.
        """
        if self._most.get(view) == 1:
            return False
        size = self._in_hand.get(view, self._batch_size(view))
        metrics.HELD_UP.labels(view).inc()
        log.warning("a batch is halved", view=view, events=size, error=error)
        self._most[view] = max(1, size // 2)
        return True

    def _double(self, views: Sequence[str]) -> None:
        """After a batch that took little time."""
        for view in views:
            if view in self._most:
                self._most[view] *= 2
                if self._most[view] >= self._follow.batch_size:
                    del self._most[view]

    def _postpone(self, view: str, error: str) -> None:
        with self._lock:
            state = self._progress.states[view]
            if not state.is_followed:
                # Released meanwhile.
                return
            pause = min(max(2 * state.pause, _FIRST_PAUSE), self._follow.retry_seconds)
            retry_at = time.monotonic() + pause
            waiting = replace(state, phase=Phase.WAITING, problem="", error=error, retry_at=retry_at, pause=pause)
            self._set(view, waiting)
        metrics.HELD_UP.labels(view).inc()
        if state.error != error:
            log.warning("a view waits", view=view, position=state.position, error=error)

    def _fail(self, view: str, problem: str, error: str) -> None:
        with self._lock:
            state = self._progress.states[view]
            if not state.is_followed:
                # Released meanwhile.
                return
            retry_at = time.monotonic() + self._follow.retry_seconds
            self._set(view, replace(state, phase=Phase.FAILED, problem=problem, error=error, retry_at=retry_at))
            if state.error != error:
                log.error("a view cannot go on", view=view, position=state.position, error=error)
            if self._keep_problem(view, problem, error) and state.error != error:
                # Those who wait for the view need not wait any longer.
                self._announce()

    def _recover(self, views: Sequence[str]) -> None:
        """The feed goes on from where the views are, and there is nothing that they could not take in."""
        for view in views:
            with self._lock:
                state = self._progress.states[view]
                if state.phase in {Phase.FAILED, Phase.WAITING} and self._keep_problem(view, None, None):
                    log.info("a view goes on", view=view, position=state.position)
                    self._set(view, replace(state, phase=Phase.RUNNING, problem="", error="", pause=0.0))

    def _keep_problem(self, view: str, problem: str | None, error: str | None) -> bool:
        """Keeps with a view of ours why it cannot go on, None when it can; False while somebody locks its row."""
        with self._passing("it cannot be kept with the view now", view=view):
            say_problem(self._driver, view, self._session, problem, error)
            return True
        return False

    def _inspect(self, it: Inspection) -> None:
        """Compares rows of a view with what the feed makes of them, and repairs them where that is wanted."""
        try:
            state = self._progress.states.get(it.view)
            if state is None or not state.is_followed:
                raise NotNow(f"this projector does not follow {it.view}")
            projection = self._projections[it.view]
            at = Token(self._epoch, state.position, state.mark, state.generation)
            differences = self._inspector.inspect(it, projection, at)
        except Exception as error:
            it.answer.set_exception(error)
            if isinstance(error, Deposed) or self._action_after(error) is ViewAction.END_SESSION:
                raise
            return
        try:
            self._note_repaired(projection, state, [one.key for one in differences if one.repaired])
        except Exception as error:  # how the view is now, the next session finds
            it.answer.set_exception(error)
            raise
        it.answer.set_result(differences)

    def _note_repaired(self, projection: Projection, state: ViewState, repaired: Sequence[bytes]) -> None:
        view = projection.view
        if repaired and projection.logged:
            self._repaired[view].update(repaired)
        with self._lock:
            if repaired and self._progress.states.get(view) is state:
                # It may be what a view that FAILED could not go on without, and it is tried at once.
                parked = count_parked(self._driver, view)
                self._set(view, replace(state, parked=parked, retry_at=0.0))

    def _find(self, views: Sequence[str], after: int, mark: int) -> EventBatch | None:
        limit = self._batch_size(views[0])
        part = self._feed.events(after, limit, self._epoch, mark)
        if part is None or not part.events:
            return None
        events = part.events
        if not self._in_hand:
            self._in_hand = dict.fromkeys(views, len(events))
        projections = [self._projections[view] for view in views]
        # The source may have read fewer than the limit.
        full = events[-1].position < part.head
        fills = self._rebuilding.unfilled.issuperset(views)
        known, most = self._views.kinds, self._follow.batch_rows
        return EventBatch(
            projections, after, events, known, self._rows, mark_before=mark, full=full, fills=fills, max_rows=most
        )

    def _write(self, batch: EventBatch) -> None:
        """One transaction for all views, then the cache, then the announcement."""
        if batch.moved:
            self._in_hand = {view: move.after - move.before for view, move in batch.moves.items()}
            told = self._log_repaired(batch) if self._repaired else ()
            # Without the lock: others are announced however long it takes.
            move_views(self._driver, self._epoch, self._session, list(batch.moves.values()), durable=False)
            for view in told:
                del self._repaired[view]
            batch.trace.note("project", batch.moves)
            with self._lock:
                if released := batch.moves.keys() - self._followed().keys():
                    raise Deposed(f"{', '.join(sorted(released))}: released while the batch was stored")
                cached = {view: it.changes.values for view, it in batch.moves.items() if view in self._views.cached}
                self._cache.write(cached)
                batch.trace.note("cache", cached)
                for view, move in batch.moves.items():
                    if move.after > move.before:
                        generation = self._progress.states[view].generation
                        parked = move.changes.parked_keys
                        self._set(view, ViewState(Phase.RUNNING, move.after, move.mark, generation, parked))
                self._announce()
            batch.trace.end()
            metrics.BATCH_SECONDS.observe(time.perf_counter() - batch.began)
        # After the announcement, so that nobody who waits for the views waits for this.
        self._set_head(max(batch.after, self._progress.head))
        for view, move in batch.moves.items():
            if move.changes.parked:
                report_parked(view, move.changes)
            for key in move.changes.damaged:
                self._following.damage.report(view, key.hex())
            metrics.position_of(view).set(move.after)
            metrics.projected_of(view).inc(move.after - move.before)

    def _log_repaired(self, batch: EventBatch) -> list[str]:
        """Returns the views whose repaired rows are in the change log with this batch."""
        told = []
        for view in self._repaired.keys() & batch.moves.keys():
            move = batch.moves[view]
            if move.after > move.before:
                # Watches look for what changed behind where they are.
                known = {key for _, key in move.changes.log}
                move.changes.log += [(move.after, key) for key in self._repaired[view] - known]
                told.append(view)
        return told

    # In every phase.

    def _beat(self) -> None:
        """Says to other projectors that we are at work, and to readers where the views are."""
        silent = self._feed.silent_seconds
        metrics.SILENT.set(silent)
        if (silent > self._follow.release_seconds) != self._is_cut_off:
            self._is_cut_off = not self._is_cut_off
            log.warning("the feed is not read" if self._is_cut_off else "the feed is read", seconds=round(silent, 1))
        can_follow = self._following.epoch is not None and not self._feed.is_silent
        renew_session(self._keeping, self._session, follows=can_follow, idle_seconds=self._feed.idle_seconds)
        if self._is_cut_off and self._owned() and self._another_follows():
            problem = self._feed.problem
            self._release()
            raise Deposed(f"released the views, since another projector can read the feed: {problem}")
        self._announce()

    def _another_follows(self) -> bool:
        return another_follows(self._keeping, self._session, self._follow.hung_seconds)

    def _announce(self) -> None:
        with self._following.readers.trying(self._keeping):
            self._announce_over(self._keeping)

    def _announce_over(self, driver: Driver) -> None:
        """Says where the views are that are followed, and which views of ours cannot go on.

        In a transaction of `driver` it is said with the commit.

        After the rows and the cache are written. Raises Deposed where another projector took one of them over.
        """
        followed = {view: state for view, state in self._followed().items() if not is_other(view)}
        problems = {view: it.problem for view, it in self._progress.states.items() if it.problem and not is_other(view)}
        if not followed and not problems:
            return
        announcement = Announcement(
            feed_epoch=self._epoch,
            positions={view: state.position for view, state in followed.items()},
            cache_epochs={view: self._cache.epochs[view] for view in followed},
            marks={view: state.mark for view, state in followed.items()},
            generations={view: state.generation for view, state in followed.items()},
            parked={view: state.parked for view, state in followed.items() if state.parked},
            problems=problems,
        )
        announce(driver, self._session, announcement)
        self._progress.passed.note(announcement.positions)
