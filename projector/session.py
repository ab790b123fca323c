"""What one connection to the read database holds and does: the views' locks are the connection's."""

import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import psycopg
from prometheus_client import Counter, Gauge, Histogram
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from projector.apply import commit, prepare, raw
from projector.cache_writer import CacheWriter
from projector.feed import Feed, first_line
from projector.fold import Changes
from projector.ownership import OtherFeed, end_when_silent, leave_epochs, take_over, try_lock, unlock
from projector.pipeline import Batch, Pipeline
from projector.projections.catalogue import PROJECTIONS
from projector.recent import RecentRows
from projector.settings import ChangeLogSettings, FollowSettings
from shop.events import EVENTS
from shop.views import CACHED_VIEWS
from tandem.feed.head import read_head
from tandem.feed.reader import read_events
from tandem.read_store.announcement import Announcement
from tandem.read_store.tables import CHANNEL, change
from tandem.runtime.database import may_pass
from tandem.runtime.telemetry import log

POSITION = Gauge("tandem_projection_position", "The last position that a view has taken in", ["view"])
PROJECTED = Counter("tandem_projected_events_total", "Events of the feed that a view has passed", ["view"])
BATCH_SECONDS = Histogram(
    "tandem_projection_batch_seconds",
    "Time from reading a batch to announcing it",
    buckets=(0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5),
)


# Of each view's rows that are kept in memory: some thousand orders, all that is sold on a day.
_RECENT_BYTES = 2_000_000


@dataclass(frozen=True)
class ViewState:
    """A view as this projector has it. `error` says why it cannot go on; it is tried again at `retry_at`.

    held: whether its lock is ours; without it we are standby for the view.
    """

    held: bool = False
    position: int = 0
    error: str = ""
    retry_at: float = 0.0


class FeedChanged(Exception):
    """The feed has another epoch than the views that are followed."""


class Session:
    """Follows the feed with the views that it can get, until it is stopped or an error ends it."""

    def __init__(
        self,
        connection: Connection,
        *,
        feed: Feed,
        cache: CacheWriter,
        follow: FollowSettings,
        change_log: ChangeLogSettings,
        states: dict[str, ViewState],
        stop: threading.Event,
    ) -> None:
        """connection: in autocommit mode, and closed after the session. states: of all views, none of them held."""
        self._connection = connection
        self._feed = feed
        self._cache = cache
        self._follow = follow
        self._change_log = change_log
        self._states = states
        self._stop = stop
        self._epoch = uuid.UUID(int=0)
        self._pipeline = Pipeline(self._find, self._write)
        self._recent = _nothing()
        self._due: defaultdict[str, float] = defaultdict(float)

    def begin(self) -> None:
        """Raises SQLAlchemyError when the read database is not there, or not migrated."""
        end_when_silent(self._connection, self._follow.hung_seconds)
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
            # Every committed batch is in the cache, or its node is fenced: the step that committed it saw to that.
            leave_epochs(self._connection, view, state.position, self._cache.end(view))
            unlock(self._connection, view)

    def _is_due(self, what: str, every: float) -> bool:
        now = time.monotonic()
        if now < self._due[what]:
            return False
        self._due[what] = now + every
        return True

    def _held(self) -> dict[str, ViewState]:
        return {view: state for view, state in self._states.items() if state.held}

    def _followed(self) -> dict[str, ViewState]:
        """The held views that belong to this feed."""
        return {view: state for view, state in self._held().items() if view in self._cache.epochs}

    def _look_at_head(self) -> bool:
        """Makes sure that the feed is still the one we follow; False while it cannot be read."""
        head = self._feed.read(read_head)
        if head is None:
            return False
        if self._followed() and head.epoch != self._epoch:
            raise FeedChanged(f"the feed is {head.epoch} now, it was {self._epoch}")
        self._epoch = head.epoch
        self._feed.saw(head.position)
        return True

    def _take_free_views(self) -> None:
        free = [view for view, state in self._states.items() if not state.held]
        if not free or not self._look_at_head():
            return
        taken = [view for view in free if try_lock(self._connection, view)]
        for view in taken:
            self._take(view)
        if taken:
            # Readers learn the new cache epochs at once and need not wait for the heartbeat.
            self._announce()

    def _take(self, view: str) -> None:
        try:
            taken = take_over(self._connection, view, self._epoch)
        except OtherFeed as error:
            # Held, and not followed: were it let go, the next round would take it again.
            self._fail(view, ViewState(held=True, retry_at=float("inf")), str(error))
            return
        self._cache.begin(view, taken.left)
        self._states[view] = ViewState(held=True, position=taken.position)
        _position(view).set(taken.position)
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
        """Takes the next events in; whether there may be more at once.

        Behind a batch that is not full, what comes is announced, and the announcement waits for us if it came already.
        """
        state = self._states[views[0]]
        try:
            batch = self._pipeline.step(views, state.position)
        except (SQLAlchemyError, psycopg.Error) as error:
            if may_pass(error):
                raise
            # What is remembered may be of before what was committed.
            self._recent = _nothing()
            if len(views) > 1:
                # Some view's rows cannot be stored: alone, each shows whether it is the one.
                return sum(self._step([view]) for view in views) > 0
            kind = f"{type(error).__module__}.{type(error).__name__}"
            self._fail(views[0], state, f"events after {state.position}: ({kind}) {first_line(error)}")
            return False
        if batch is None:
            return False
        for view, move in batch.moves.items():
            self._recent[view].keep(move.changes.rows)
            if move.changes.stopped_by is not None:
                self._fail(view, self._states[view], str(move.changes.stopped_by))
        return batch.moved and batch.full

    def _find(self, views: Sequence[str], after: int, folded: Mapping[str, Changes]) -> Batch | None:
        limit = self._follow.batch_size
        events = self._feed.read(lambda feed: read_events(feed, EVENTS, after, limit, self._epoch))
        if not events:
            return None
        prepared = prepare(self._connection, views, events, self._recent, folded)
        return Batch(prepared, after, events, full=len(events) == limit)

    def _write(self, batch: Batch) -> None:
        """One transaction for all views, then the cache, then what is said of the views."""
        if batch.moved:
            commit(self._connection, self._epoch, batch.moves)
            self._cache.write({view: it.values for view, it in batch.changes.items() if view in CACHED_VIEWS})
            for view, move in batch.moves.items():
                if move.after > move.before:
                    self._states[view] = ViewState(held=True, position=move.after)
            self._announce()
            BATCH_SECONDS.observe(time.perf_counter() - batch.began)
        # Once the views are announced: whoever waits for them does not wait for this.
        self._feed.saw(max(batch.after, self._feed.head))
        for view, move in batch.moves.items():
            _position(view).set(move.after)
            _projected(view).inc(move.after - move.before)

    def _fail(self, view: str, state: ViewState, error: str) -> None:
        if state.error != error:
            log.error("a view cannot go on", view=view, position=state.position, error=error)
        retry_at = max(state.retry_at, time.monotonic() + self._follow.retry_seconds)
        self._states[view] = replace(state, error=error, retry_at=retry_at)

    def _announce(self) -> None:
        """After the rows and the cache, on the connection that holds the locks: whoever lost them cannot announce."""
        followed = self._followed()
        if not followed:
            return
        announcement = Announcement(
            feed_epoch=self._epoch,
            positions={view: state.position for view, state in followed.items()},
            cache_epochs={view: self._cache.epochs[view] for view in followed},
        )
        raw(self._connection).execute("SELECT pg_notify(%s, %s)", (CHANNEL, announcement.encode()), prepare=True)

    def _purge(self) -> None:
        keep, most = self._change_log.keep_hours, self._change_log.purge_batch
        try:
            purged = self._connection.execute(_PURGE, {"keep": keep, "most": most}).rowcount
        except DBAPIError as error:
            if error.connection_invalidated:
                raise
            # Too slow, or refused: old rows take room, and no view need stop for that.
            log.warning("the change log is not purged", error=first_line(error))
            return
        if purged == most:
            self._due["purge"] = 0.0  # there is more


# With every batch, and looked up by its label each time takes longer than to set it.
_position = cache(POSITION.labels)
_projected = cache(PROJECTED.labels)


def _nothing() -> dict[str, RecentRows]:
    return {view: RecentRows(_RECENT_BYTES) for view in PROJECTIONS}


_PURGE = text(f"""
DELETE FROM {change.fullname} WHERE (view, position, key) IN (
  SELECT view, position, key FROM {change.fullname}
  WHERE changed_at < now() - make_interval(secs => :keep * 3600) ORDER BY changed_at LIMIT :most
)
""")  # noqa: S608 - only the table's name is put in
