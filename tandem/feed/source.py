"""The feed as a thread follows it: read from the write database, which may be away for any time, and waited for."""

import threading
import time
import uuid
from collections.abc import Callable, Collection
from typing import Any, Protocol, TypeVar

import psycopg
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from tandem.feed.archive import Archive
from tandem.feed.events import EventContract
from tandem.feed.head import FeedHead, read_ended_epochs, read_head, read_marked_head
from tandem.feed.reader import FeedPart, HistoryChanged, ScannedPart, read_events, scan_history
from tandem.feed.table import CHANNEL
from tandem.runtime.database import create_database_engine, first_line
from tandem.runtime.listener import Listener
from tandem.runtime.settings import DatabaseSettings, SettingsError
from tandem.runtime.sqlstate import ViewAction, failure_of
from tandem.runtime.telemetry import log

T = TypeVar("T")

# After a failure, calls try no more often than this: an attempt may last as long as a connection's time-out, and the
# caller has other work.
_RETRY_SECONDS = 1.0
# That anybody reads at once.
_MOST_EVENTS = 10_000


class Feed(Protocol):
    """The events of a feed, wherever they are read. For one thread; `problem` may be read from any.

    What cannot be asked is None, which is logged once, and asked again no more often than once a second.
    """

    @property
    def problem(self) -> str:
        """Why it cannot be read; empty while it can."""
        ...

    def head(self) -> FeedHead | None:
        """Of which epoch it is, and its last position, as it was some seconds ago at most."""
        ...

    def events(self, after: int, limit: int, epoch: uuid.UUID, mark: int) -> FeedPart | None:
        """At most `limit` events of the feed `epoch` that follow a position, without a gap; with 0 it is only compared.

        mark: of the event at the position, 0 where it is not known. Raises OtherEpoch, HistoryChanged and
        EventsMissing.
        """
        ...

    def scan(
        self,
        after: int,
        until: int,
        limit: int,
        epoch: uuid.UUID,
        *,
        kinds: Collection[str],
        texts: Collection[str] = (),
    ) -> ScannedPart | None:
        """Looks back at a part of it, as `tandem.feed.reader.scan_events` does. Raises as `events` does."""
        ...

    def ended_epochs(self) -> frozenset[uuid.UUID] | None:
        """The epochs that it had before."""
        ...

    def wait(self, stop: threading.Event, seconds: float | None = None) -> None:
        """Until there may be more; for a while, and for `seconds` at most."""
        ...

    def close(self) -> None: ...


class FeedSource:
    """The feed's table: a connection that reads it and one that listens.

    problem: why the write database cannot be read; empty while it can.
    """

    def __init__(
        self,
        database: DatabaseSettings,
        contract: EventContract[Any],
        *,
        name: str,
        poll_seconds: float,
        archive: Archive | None = None,
        whole: bool = False,
    ) -> None:
        """name: what pg_stat_activity shows. archive: where the oldest events may be.

        poll_seconds: how soon `wait` makes up for a lost notification.

        whole: for a reader who answers for all that was acknowledged, and not only for what it has read: `events`
        raises HistoryChanged also where a commit is lost that nobody had read.
        """
        self._whole = whole
        self._engine = create_database_engine(database, name=name, pool_size=1, by_key=True, autocommit=True)
        self._listener = Listener(database, CHANNEL, f"{name}-listener")
        self._contract = contract
        self._archive = archive
        self._poll_seconds = poll_seconds
        self._connection: Connection | None = None
        self._retry_at = 0.0
        self._listen_at = 0.0
        self._most = _MOST_EVENTS
        self._quick_seconds = database.statement_timeout / 2
        self._timed_out = False
        self.problem = ""

    def head(self) -> FeedHead | None:
        """None while the write database is away, which is logged once."""
        return self.read(read_head)

    def marked_head(self) -> FeedHead | None:
        """As `head`, with the mark of the event there."""
        return self.read(read_marked_head)

    def events(self, after: int, limit: int, epoch: uuid.UUID, mark: int) -> FeedPart | None:
        """At most `limit` events of the feed `epoch` that follow a position. None as in `head`.

        mark: of the event at the position. Fewer at once while the database is slow: half as many after a statement's
        time-out, then twice as many again. Raises OtherEpoch, HistoryChanged and EventsMissing.
        """
        limit = min(limit, self._most)
        began = time.monotonic()
        found = self.read(
            lambda connection: read_events(
                connection, self._contract, after, limit, epoch=epoch, mark=mark, archive=self._archive
            )
        )
        if found is not None:
            if time.monotonic() - began < self._quick_seconds:
                self._most = max(self._most, 2 * len(found.events))
            if self._whole and found.lost_position is not None:
                raise HistoryChanged(f"event {found.lost_position} was acknowledged, and is not in the feed")
            return found
        if self._timed_out:
            self._most = max(1, limit // 2)
        return None

    def scan(
        self,
        after: int,
        until: int,
        limit: int,
        epoch: uuid.UUID,
        *,
        kinds: Collection[str],
        texts: Collection[str] = (),
    ) -> ScannedPart | None:
        return self.read(
            lambda connection: scan_history(
                connection,
                self._contract,
                after,
                until,
                limit,
                epoch=epoch,
                kinds=kinds,
                texts=texts,
                archive=self._archive,
            )
        )

    def ended_epochs(self) -> frozenset[uuid.UUID] | None:
        """The epochs that the feed had before. None as in `head`."""
        return self.read(read_ended_epochs)

    def wait(self, stop: threading.Event, seconds: float | None = None) -> None:
        """Until the feed has more, or for `poll_seconds`, or `seconds` where that is less."""
        longest = self._poll_seconds if seconds is None else min(seconds, self._poll_seconds)
        if self.problem or time.monotonic() < self._listen_at:
            stop.wait(longest)
            return
        try:
            self._listener.wait(longest)
            self._listen_at = 0.0
        except (psycopg.Error, SettingsError) as error:
            if not self._listen_at:
                log.warning("cannot listen to the feed", error=first_line(error))
            self._listen_at = time.monotonic() + _RETRY_SECONDS

    def close(self) -> None:
        self._listener.close()
        self._disconnect()
        self._engine.dispose()

    def read(self, query: Callable[[Connection], T]) -> T | None:
        """What a query of the feed returns, which may run for no longer than a statement. None as in `head`."""
        if self.problem and time.monotonic() < self._retry_at:
            return None
        try:
            # Kept: to get it from the engine and give it back takes 35 µs, nearly as long as reading an event (44 µs).
            if self._connection is None:
                self._connection = self._engine.connect()
            answer = query(self._connection)
        except SQLAlchemyError as error:
            # Whatever it is, it passes: a database without the feed's tables will have them once it is migrated.
            self._disconnect()
            self._timed_out = failure_of(error).view is ViewAction.HALVE
            problem = problem_of(error)
            if problem != self.problem:
                log.warning("the feed is away", error=problem)
            self.problem = problem
            self._retry_at = time.monotonic() + (0.0 if self._timed_out else _RETRY_SECONDS)
            return None
        if self.problem:
            log.info("the feed is back")
            self.problem = ""
        return answer

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def problem_of(error: Exception) -> str:
    """What to say of a write database that cannot be read."""
    return f"the write database cannot be read: {first_line(error)}"
