"""What operators ask a database: whoever asks has an answer before the call's deadline, also where nobody answers.

A thread that waits for a silent database cannot be called back: it is over when the driver gives the server up
(tandem.runtime.database). So it waits on a thread that is kept for that, and the caller waits no longer than it may.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, Protocol, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from tandem.runtime.call import Call
from tandem.runtime.database import first_line, read_pooled
from tandem.runtime.errors import Unavailable
from tandem.runtime.sqlstate import QueryAction, failure_of
from tandem.runtime.telemetry import log

T = TypeVar("T")
S = TypeVar("S")
S_co = TypeVar("S_co", covariant=True)

# Of the time that a call has left, for the way back.
_RESERVED_SECONDS = 0.2


def of_database(engine: Engine, what: str, *, at_once: int) -> "Inquiries[Connection]":
    """The engine has a connection for each of the questions at once."""

    def read(query: Callable[[Connection], T], /) -> T:
        return read_pooled(engine, query)

    return Inquiries(read, what, at_once=at_once)


def answer_by(call: Call) -> float:
    """When a call is to be answered, on the clock of time.monotonic()."""
    return call.deadline - _RESERVED_SECONDS


class Read(Protocol[S_co]):
    """How a store is asked: raises SQLAlchemyError or Unavailable while it is away."""

    def __call__(self, query: Callable[[S_co], T], /) -> T: ...


class Inquiries(Generic[S]):
    """Asks one store, for any thread. S: what a query is given, such as a Connection."""

    def __init__(self, read: "Read[S]", what: str, *, at_once: int) -> None:
        """what: the store's name in errors. at_once: questions that `read` takes."""
        self.what = what
        self._read = read
        self._at_once = at_once
        self._threads = ThreadPoolExecutor(at_once, f"asks-{what.replace(' ', '-')}")
        self._lock = threading.Lock()
        # Questions that nobody waits for any more, and that have no answer yet.
        self._late = 0

    async def stop(self) -> None:
        """Waits for what is asked: for as long as a database may be silent."""
        await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)

    def ask(self, query: Callable[[S], T], until: float) -> T:
        """What a query reads. until: on the clock of time.monotonic(). Raises Unavailable, and at once where as many as
        may be asked at once have no answer.
        """
        with self._lock:
            if self._late >= self._at_once:
                raise self._unreachable("does not answer")
        asked = self._threads.submit(self._read, query)
        try:
            return asked.result(max(0.0, until - time.monotonic()))
        except TimeoutError:
            if not asked.cancel():
                with self._lock:
                    self._late += 1
                asked.add_done_callback(self._has_answered)
            raise self._unreachable("has not answered in time") from None
        except SQLAlchemyError as error:
            if failure_of(error).query is QueryAction.BUG:
                raise
            log.warning("a database is away for an operator", database=self.what, error=first_line(error))
            raise self._unreachable(f"is away: {first_line(error)}") from error

    def _has_answered(self, asked: "Future[Any]") -> None:
        with self._lock:
            self._late -= 1
        if (error := asked.exception()) is not None:
            log.debug("a database answered too late", database=self.what, error=repr(error)[:500])

    def _unreachable(self, problem: str) -> Unavailable:
        return Unavailable(f"the {self.what} {problem}", reason="STORE_UNAVAILABLE")
