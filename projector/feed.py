"""The write database, as the loop reads it: it may be away for any time."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

import psycopg
from prometheus_client import Gauge
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from tandem.feed.head import read_head
from tandem.runtime.listener import Listener
from tandem.runtime.telemetry import log

HEAD = Gauge("tandem_feed_head", "The last position of the feed that this projector has seen")

T = TypeVar("T")

# An attempt may block for the time-out of a connection, and the views' heartbeat waits that long: not every poll tries.
_RETRY_SECONDS = 1.0


class Feed:
    """The feed, read and waited for. For one thread; `head` and `problem` may be read from any.

    head: the last position that was seen. problem: why the write database cannot be read; empty while it can.
    """

    def __init__(self, engine: Engine, listener: Listener, poll_seconds: float) -> None:
        self._engine = engine
        self._connection: Connection | None = None
        self._listener = listener
        self._poll_seconds = poll_seconds
        self._retry_at = 0.0
        self._listen_at = 0.0
        self.head = 0
        self.problem = ""

    def read(self, query: Callable[[Connection], T]) -> T | None:
        """What `query` returns of the write database; None while that is away, which is logged once."""
        if self.problem and time.monotonic() < self._retry_at:
            return None
        try:
            # Kept: to get it from the engine and give it back takes longer than to read an event.
            if self._connection is None:
                self._connection = self._engine.connect()
            answer = query(self._connection)
        except SQLAlchemyError as error:
            self._disconnect()
            # Whatever it is, the views' rows are not concerned: a database without the feed's tables is one that will
            # have them once the command server is migrated.
            self._went(error)
            return None
        if self.problem:
            log.info("the feed is back")
            self.problem = ""
        return answer

    def saw(self, head: int) -> None:
        self.head = head
        HEAD.set(head)

    def wait(self, stop: threading.Event) -> None:
        """Until the feed has more, or for `poll_seconds`: the poll is enough where there is nothing to listen on."""
        if self.problem or time.monotonic() < self._listen_at:
            stop.wait(self._poll_seconds)
            return
        try:
            self._listener.wait(self._poll_seconds)
            self._listen_at = 0.0
        except psycopg.Error as error:
            if not self._listen_at:
                log.warning("cannot listen to the feed", error=first_line(error))
            self._listen_at = time.monotonic() + _RETRY_SECONDS

    def close(self) -> None:
        self._listener.close()
        self._disconnect()
        self._engine.dispose()

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _went(self, error: Exception) -> None:
        problem = problem_of(error)
        if problem != self.problem:
            log.warning("the feed is away", error=problem)
        self.problem = problem
        self._retry_at = time.monotonic() + _RETRY_SECONDS


def has_feed(engine: Engine) -> bool:
    """Whether the write database answers and has a feed."""
    try:
        with engine.connect() as connection:
            read_head(connection)
    except SQLAlchemyError as error:
        log.debug("the feed is not there", error=first_line(error))
        return False
    return True


def problem_of(error: Exception) -> str:
    """What to say of a write database that cannot be read."""
    return f"the write database cannot be read: {first_line(error)}"


def first_line(error: Exception) -> str:
    """What an error says, without the statement and its values, which SQLAlchemy puts on the lines after."""
    return str(error).partition("\n")[0][:500] or type(error).__name__
