"""Following the feed: one thread, which holds views, folds batches into them, writes the cache and announces."""

import asyncio
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import psycopg
from prometheus_client import Counter, Gauge, Histogram
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import SQLAlchemyError

from projector.apply import Deposed, commit, plan
from projector.cache_writer import CacheWriter
from projector.fold import CannotApply, Changes
from projector.ownership import OtherFeed, leave_epochs, take_over, try_lock, unlock
from projector.projections.catalogue import PROJECTIONS
from projector.settings import ChangeLogSettings, FollowSettings
from tandem.feed.events import FeedEvent
from tandem.feed.reader import read_events, read_head
from tandem.read_store.announcement import Announcement
from tandem.read_store.tables import CACHED_VIEWS, CHANNEL, change
from tandem.runtime.database import may_pass
from tandem.runtime.listener import Listener
from tandem.runtime.telemetry import log

POSITION = Gauge("tandem_projection_position", "The last position that a view has taken in", ["view"])
HEAD = Gauge("tandem_feed_head", "The last position of the feed that this projector has seen")
PROJECTED = Counter("tandem_projected_events_total", "Events taken in, by view", ["view"])
BATCH_SECONDS = Histogram(
    "tandem_projection_batch_seconds",
    "Time from reading a batch to announcing it",
    buckets=(0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5),
)

# The pause before a session is begun anew after the read database went away.
_RECONNECT_SECONDS = 0.5


@dataclass(frozen=True)
class ViewState:
    """A view as this projector has it. `error` says why it cannot go on; it is tried again at `retry_at`.

    held: whether its lock is ours; without it we are standby for the view.
    """

    held: bool = False
    position: int = 0
    error: str = ""
    retry_at: float = 0.0


T = TypeVar("T")


class FeedChanged(Exception):
    """The feed has another epoch than the views that are followed."""


class Loop:
    """A Component. `states` may be read from any thread: each state is replaced as a whole."""

    def __init__(
        self,
        *,
        feed: Engine,
        read: Engine,
        listener: Listener,
        cache: CacheWriter,
        follow: FollowSettings,
        change_log: ChangeLogSettings,
    ) -> None:
        self._feed = feed
        self._read = read
        self._listener = listener
        self.cache = cache
        self.follow = follow
        self.change_log = change_log
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._feed_is_away = False
        self.states: dict[str, ViewState] = {view: ViewState() for view in PROJECTIONS}

    async def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="projector", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """Finishes the batch under way and leaves the cache to the next projector."""
        self._stop.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)
        self._read.dispose()
        self._feed.dispose()

    def stopping(self) -> bool:
        return self._stop.is_set()

    def read_feed(self, read: Callable[[Connection], T]) -> T | None:
        """What `read` returns of the write database; None while that is away, which is logged once."""
        try:
            with self._feed.connect() as connection:
                return read(connection)
        except SQLAlchemyError as error:
            if not may_pass(error):
                raise
            self._feed_went(error)
            return None

    def wait(self) -> None:
        """Until the feed has more, or for `poll_seconds`."""
        try:
            self._listener.wait(self.follow.poll_seconds)
            if self._feed_is_away:
                log.info("the feed is back")
                self._feed_is_away = False
        except psycopg.Error as error:
            self._feed_went(error)
            self._stop.wait(self.follow.poll_seconds)

    def _feed_went(self, error: Exception) -> None:
        if not self._feed_is_away:
            log.warning("the feed is away", error=repr(error)[:500])
        self._feed_is_away = True

    def _run(self) -> None:
        self.cache.start()
        away = False
        while not self._stop.is_set():
            try:
                with self._read.connect() as connection:
                    # Closed at the end and not pooled: the locks are to end with the session.
                    connection.detach()
                    if away:
                        log.info("the read database is back")
                        away = False
                    Session(self, connection).run()
            except (Deposed, FeedChanged) as error:
                log.warning("starting over", error=str(error))
            except (SQLAlchemyError, psycopg.Error) as error:
                # A read database that is away passes; anything else from it is tried again too, and said each time.
                if not away or not may_pass(error):
                    log.warning("the read database is away", error=repr(error)[:500])
                away = True
                self._stop.wait(_RECONNECT_SECONDS)
            except Exception:
                log.exception("the projector failed, starting over")
                self._stop.wait(_RECONNECT_SECONDS)
            finally:
                # The connection took the locks with it.
                self.states = {view: ViewState(position=state.position) for view, state in self.states.items()}
                self.cache.epochs.clear()
        self._listener.close()
        self.cache.stop()


class Session:
    """What one connection to the read database holds: the views' locks are the connection's."""

    def __init__(self, loop: Loop, connection: Connection) -> None:
        self._loop = loop
        self._connection = connection
        self._epoch = uuid.UUID(int=0)
        self._due: defaultdict[str, float] = defaultdict(float)

    def run(self) -> None:
        """Until the loop stops, or an error ends the session."""
        loop = self._loop
        while not loop.stopping():
            if self._is_due("take", loop.follow.standby_seconds):
                self._take_free_views()
            progressed = False
            for views in self._groups():
                progressed |= self._step(views)
            if self._is_due("heartbeat", loop.follow.heartbeat_seconds):
                self._look_at_head()
                self._announce()
            if loop.cache.revive():
                self._announce()
            if self._is_due("purge", loop.change_log.purge_every_seconds):
                self._purge()
            if not progressed:
                loop.wait()
        for view, state in self._followed().items():
            # Every committed batch is in the cache, or its node is fenced: the step that committed it saw to that.
            leave_epochs(self._connection, view, state.position, loop.cache.end(view))
            unlock(self._connection, view)

    def _is_due(self, what: str, every: float) -> bool:
        now = time.monotonic()
        if now < self._due[what]:
            return False
        self._due[what] = now + every
        return True

    def _held(self) -> dict[str, ViewState]:
        return {view: state for view, state in self._loop.states.items() if state.held}

    def _followed(self) -> dict[str, ViewState]:
        """The held views that belong to this feed."""
        return {view: state for view, state in self._held().items() if view in self._loop.cache.epochs}

    def _look_at_head(self) -> None:
        head = self._loop.read_feed(read_head)
        if head is not None:
            HEAD.set(head.position)
            if self._followed() and head.epoch != self._epoch:
                raise FeedChanged(f"the feed is {head.epoch} now, it was {self._epoch}")

    def _take_free_views(self) -> None:
        free = [view for view, state in self._loop.states.items() if not state.held]
        head = self._loop.read_feed(read_head) if free else None
        if head is None:
            return
        self._epoch = head.epoch
        for view in free:
            if try_lock(self._connection, view):
                self._take(view)

    def _take(self, view: str) -> None:
        try:
            taken = take_over(self._connection, view, self._epoch)
        except OtherFeed as error:
            # Held, and not followed: were it let go, the next round would take it again.
            self._fail(view, ViewState(held=True, retry_at=float("inf")), str(error))
            return
        self._loop.cache.begin(view, taken.left)
        self._loop.states[view] = ViewState(held=True, position=taken.position)
        POSITION.labels(view).set(taken.position)
        log.info("took a view over", view=view, position=taken.position, cache="kept" if taken.left else "new")

    def _groups(self) -> list[list[str]]:
        """The held views that are to be followed now, those at the same position together.

        One that is behind must not hold the others up, and one that failed is tried alone.
        """
        now = time.monotonic()
        groups: defaultdict[tuple[int, str], list[str]] = defaultdict(list)
        for view, state in self._held().items():
            if not state.error:
                groups[state.position, ""].append(view)
            elif now >= state.retry_at:
                groups[state.position, view].append(view)
        return list(groups.values())

    def _step(self, views: Sequence[str]) -> bool:
        """Takes the next events in; False if there were none."""
        started = time.perf_counter()
        position = self._loop.states[views[0]].position
        limit = self._loop.follow.batch_size
        events = self._loop.read_feed(lambda feed: read_events(feed, position, limit))
        if not events:
            return False
        try:
            moved = self._take_in(views, events)
        except SQLAlchemyError as error:
            if may_pass(error):
                raise
            if len(views) > 1:
                # Some view's rows cannot be stored: alone, each shows whether it is the one.
                return sum(self._step([view]) for view in views) > 0
            self._fail(views[0], self._loop.states[views[0]], repr(error)[:1000])
            return False
        if moved:
            self._announce()
            BATCH_SECONDS.observe(time.perf_counter() - started)
        return moved

    def _take_in(self, views: Sequence[str], events: Sequence[FeedEvent]) -> bool:
        """One transaction for all the views that can take the events in, then the cache."""
        changes: dict[str, Changes] = {}
        for view in views:
            try:
                changes[view] = plan(self._connection, view, events)
            except CannotApply as error:
                self._fail(view, self._loop.states[view], str(error))
        if not changes:
            return False
        before = {view: self._loop.states[view].position for view in changes}
        after = events[-1].position
        commit(self._connection, self._epoch, before, after, changes)
        for view, changed in changes.items():
            if view in CACHED_VIEWS:
                self._loop.cache.write(view, {key: row.value if row else None for key, row in changed.rows.items()})
            self._loop.states[view] = ViewState(held=True, position=after)
            POSITION.labels(view).set(after)
            PROJECTED.labels(view).inc(len(changed.log))
        HEAD.set(after)
        return True

    def _fail(self, view: str, state: ViewState, error: str) -> None:
        if state.error != error:
            log.error("a view cannot go on", view=view, position=state.position, error=error)
        retry_at = max(state.retry_at, time.monotonic() + self._loop.follow.retry_seconds)
        self._loop.states[view] = replace(state, error=error, retry_at=retry_at)

    def _announce(self) -> None:
        """After the rows and the cache, on the connection that holds the locks: whoever lost them cannot announce."""
        followed = self._followed()
        if not followed:
            return
        announcement = Announcement(
            feed_epoch=self._epoch,
            positions={view: state.position for view, state in followed.items()},
            cache_epochs={view: self._loop.cache.epochs[view] for view in followed},
        )
        self._connection.execute(
            text("SELECT pg_notify(:channel, :payload)"), {"channel": CHANNEL, "payload": announcement.encode()}
        )

    def _purge(self) -> None:
        keep, most = self._loop.change_log.keep_hours, self._loop.change_log.purge_batch
        purged = self._connection.execute(_PURGE, {"keep": keep, "most": most}).rowcount
        if purged == most:
            self._due["purge"] = 0.0  # there is more


_PURGE = text(f"""
DELETE FROM {change.fullname} WHERE (view, position, key) IN (
  SELECT view, position, key FROM {change.fullname}
  WHERE changed_at < now() - make_interval(secs => :keep * 3600) ORDER BY changed_at LIMIT :most
)
""")  # noqa: S608 - only the table's name is put in
