"""Rows of views that are followed here, examined from another thread: replayed beside the view, and compared by the
session that owns it.

Repairs (repair.py) and the audit (audit.py) do it, each with connections of its own.
"""

import threading
import uuid
from collections.abc import Callable, Collection
from typing import Any, Protocol, TypeVar

import psycopg
from prometheus_client import Counter
from sqlalchemy.exc import SQLAlchemyError

from tandem.feed.lookup import Lookup, Lookups
from tandem.feed.verification import Difference
from tandem.projection.cache_writer import CacheWriter
from tandem.projection.inspection import Behind, Inspection, Inspections, NotNow
from tandem.projection.replay import Replay, Wanted
from tandem.projection.views import Progress, Views, ViewState
from tandem.read_store.damage import DamagedRows
from tandem.runtime.database import create_database_engine
from tandem.runtime.errors import Unavailable
from tandem.runtime.settings import DatabaseSettings

T = TypeVar("T")

REPAIRED = Counter("tandem_rows_repaired_total", "Rows, or their cache entries, that were made again", ["view"])

STOP_SECONDS = 2.0
"""That a stop waits for a thread which may wait for a silent database. It only reads, and ends with the process."""

# How often a wait for a session looks whether the program stops.
_ANSWER_SECONDS = 0.2

PASSING = (NotNow, SQLAlchemyError, psycopg.Error)
"""What keeps rows from being compared now, and is over some time."""


class Followed(Protocol):
    """What the thread that follows the feed shows to others: tandem.projection.following.Following."""

    views: Views
    progress: Progress
    cache: CacheWriter
    inspections: Inspections
    damage: DamagedRows
    epoch: uuid.UUID | None


class Examiner:
    """Replays rows of the views that this program follows, and has its session compare them. For one thread.

    stopping: ends every wait, with NotNow.
    """

    def __init__(self, following: Followed, feed: Lookups, read_database: DatabaseSettings, name: str) -> None:
        """feed: for this one alone. name: in pg_stat_activity."""
        self.following = following
        self.stopping = threading.Event()
        self.feed = feed
        self.read = create_database_engine(
            read_database, name=name, pool_size=1, by_key=True, autocommit=True, idles=True
        )

    def close(self) -> None:
        self.feed.close()
        self.read.dispose()

    def state(self, view: str) -> ViewState:
        """Of a view that this program follows. Raises NotNow."""
        state = self.following.progress.states.get(view)
        if state is None or not state.is_followed:
            raise NotNow(f"this projector does not follow {view}")
        return state

    def begin(self, view: str, wanted: Wanted, **limits: Any) -> Replay:
        """A replay of rows, at position 0. limits: as Replay has them. Raises NotNow."""
        views = self.following.views
        return Replay(views.contract, views.projection(view), wanted, epoch=self.epoch, **limits)

    @property
    def epoch(self) -> uuid.UUID:
        """The feed's. Raises NotNow."""
        if (epoch := self.following.epoch) is None:
            raise NotNow("the feed is away")
        return epoch

    def advance(self, replay: Replay, until: int) -> int:
        """One step of it; returns how many events it read. Raises as `Replay.advance` does, and NotNow."""
        if self.stopping.is_set():
            raise NotNow("the program stops")
        return self.look_up(lambda feed: replay.advance(feed, until))

    def look_up(self, query: Callable[[Lookup], T]) -> T:
        """What a query of the feed finds. Raises as it does, and NotNow and SQLAlchemyError while the feed is away."""
        try:
            return self.feed.read(query)
        except Unavailable as error:
            raise NotNow(error.message) from error

    def ask(
        self, view: str, keys: Collection[bytes], replay: Replay, generation: int, *, repair: bool, whole: bool
    ) -> list[Difference]:
        """Has the session compare rows, and repair them if it is to; parameters as Inspection has them.

        Raises as Inspection.answer does, but for Behind: then it replays what the view has gone on by.
        """
        while True:
            state = self.state(view)
            while replay.position < state.position:
                self.advance(replay, state.position)
            asked = Inspection(view, keys, replay, generation, repair=repair, whole=whole)
            self.following.inspections.ask(asked)
            try:
                return self._answer_to(asked)
            except Behind:
                continue

    def _answer_to(self, asked: Inspection) -> list[Difference]:
        while not self.stopping.is_set():
            try:
                return asked.answer.result(_ANSWER_SECONDS)
            except TimeoutError:
                continue
        raise NotNow("the program stops")
