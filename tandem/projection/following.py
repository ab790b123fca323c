"""The thread that projects: it opens a connection to the read database and runs a `Session` on it, and another one when
that ends. `session.py` says what a session does.
"""

import asyncio
import threading
import uuid
from collections import defaultdict
from typing import Any

import psycopg
from sqlalchemy.exc import SQLAlchemyError

from tandem.feed.archive import Archive
from tandem.feed.events import EventContract
from tandem.feed.reader import OtherEpoch
from tandem.feed.source import Feed, FeedSource
from tandem.projection import metrics
from tandem.projection.cache_writer import CacheWriter
from tandem.projection.comparison import Comparisons
from tandem.projection.inspection import Inspections
from tandem.projection.session import Session
from tandem.projection.settings import ChangeLogSettings, FollowSettings
from tandem.projection.statements import Deposed
from tandem.projection.views import Progress, Views, ViewState
from tandem.projection.watched_feed import WatchedFeed
from tandem.read_store.damage import DamagedRows
from tandem.read_store.tables import is_other
from tandem.runtime.database import create_database_engine, first_line
from tandem.runtime.notifications import Notified
from tandem.runtime.settings import DatabaseSettings
from tandem.runtime.supervised import SupervisedThread
from tandem.runtime.telemetry import log

# What pg_stat_activity shows.
_NAME = "tandem-projector"
# The pause before a session is begun anew after the read database went away.
_RECONNECT_SECONDS = 0.5
# How often a stop looks whether the thread that follows has ended.
_STOP_LOOK_SECONDS = 0.05


def table_feed(
    database: DatabaseSettings, contract: EventContract[Any], follow: FollowSettings, archive: Archive
) -> FeedSource:
    """The feed's table, to be followed."""
    # A read that takes longer is halved, before it looks as if the feed could not be read at all.
    seconds = min(database.statement_timeout, follow.release_seconds / 2)
    database = database.model_copy(update={"statement_timeout": seconds})
    # Connections of its own: nobody who asks how far the views are may hold it up.
    return FeedSource(database, contract, name=_NAME, poll_seconds=follow.poll_seconds, archive=archive, whole=True)


class Following:
    """A Component: the thread that projects. Other threads may read `progress`; its sessions use all the rest."""

    def __init__(
        self,
        views: Views,
        *,
        feed: Feed,
        read_database: DatabaseSettings,
        cache: CacheWriter,
        follow: FollowSettings,
        change_log: ChangeLogSettings,
    ) -> None:
        """feed: for this thread alone."""
        self.progress = Progress({view: ViewState() for view in views.projections})
        self.views = views
        self.feed = WatchedFeed(feed, poll_seconds=follow.poll_seconds)
        self._read = create_database_engine(read_database, name=_NAME, pool_size=2, by_key=True, autocommit=True)
        self.read_database = read_database
        self.cache = cache
        self.comparisons = Comparisons(read_database)
        self.follow = follow
        self.change_log = change_log
        # Rows that others want to have compared with the feed, and keys of rows that nobody can read.
        self.inspections = Inspections()
        self.damage = DamagedRows()
        # Of watched views: rows that were repaired, which the change log is to have with the next batch that is stored.
        self.repaired: defaultdict[str, set[bytes]] = defaultdict(set)
        self.stopping = threading.Event()
        # The session owns nothing any more.
        self.released = threading.Event()
        # Of the last session, for the next one: that it is over, and of which feed the write database is.
        self.session: uuid.UUID | None = None
        self.epoch: uuid.UUID | None = None
        # Whether announcements come to those who read the views.
        self.readers = Notified("the readers of the views")
        self._thread = SupervisedThread("projector", self._run)

    async def start(self) -> None:
        self.cache.start()
        self._thread.start()

    async def stop(self) -> None:
        """Finishes the batch under way and hands the cache over to the next projector."""
        self.stopping.set()
        await asyncio.to_thread(self._wait_until_released)

    def _wait_until_released(self) -> None:
        """Also while the thread waits for a write database that does not answer: it has nothing left to do then."""
        while not (self._thread.join(_STOP_LOOK_SECONDS) or self._is_released()):
            pass

    def _is_released(self) -> bool:
        return self.released.is_set() and self.feed.is_silent

    def _run(self) -> None:
        problem = ""
        while not self.stopping.is_set():
            self.feed.begin()
            try:
                with self._read.connect() as connection, self._read.connect() as keeping:
                    # Closed at the end and not pooled: the lock is to end with the session.
                    connection.detach()
                    keeping.detach()
                    session = Session(connection, keeping, self)
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
            finally:
                # The connection took its lock with it.
                self.comparisons.forget()
                for view, state in list(self.progress.states.items()):
                    if is_other(view):
                        # The next session adds it again, if it is still there.
                        del self.progress.states[view]
                        metrics.forget(view)
                    else:
                        metrics.show(view, problem="", parked=0)
                        self.progress.states[view] = ViewState(position=state.position)
                self.cache.epochs.clear()
                self.inspections.give_back("the session is over")
        # By this thread: who stops it need not wait for its end.
        self.cache.stop()
        self.comparisons.stop()
        self.feed.close()
        self._read.dispose()
