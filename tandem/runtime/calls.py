"""What a servicer may know of a call, the ways to answer one, and the calls under way."""

import asyncio
import contextlib
import threading
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any

from grpc import aio

from tandem.runtime.errors import Overloaded, TandemError, Unavailable
from tandem.runtime.native import DirectCall
from tandem.runtime.telemetry import CALLS_UNDER_WAY

# What a caller may send as x-request-id and have in our logs.
_MAX_REFERENCE = 128
# A call without a deadline still gets one: a caller that waits for ever is a leak. Longer than any wait we offer.
_LONGEST_CALL_SECONDS = 120.0


class Call:
    """What a servicer may know of the call it answers."""

    __slots__ = ("_context", "deadline")

    def __init__(
        self, context: aio.ServicerContext[Any, Any] | DirectCall, longest: float = _LONGEST_CALL_SECONDS
    ) -> None:
        self._context = context
        remaining = context.time_remaining()
        # Some transports say None where the caller set no deadline, some a very large number.
        left = longest if remaining is None else min(remaining, longest)
        self.deadline = time.monotonic() + left
        """When the caller stops waiting, on the clock of time.monotonic(), in seconds."""

    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()

    def gone(self) -> bool:
        """Whether the caller has left."""
        return bool(self._context.cancelled())

    def reference(self) -> str:
        """The caller's x-request-id, or a new one: what the logs call this call."""
        for key, value in self._context.invocation_metadata() or ():
            if key == "x-request-id" and isinstance(value, str) and value.isprintable() and value:
                return value[:_MAX_REFERENCE]
        return uuid.uuid4().hex


class StreamCall(Call):
    """A call that is answered with a stream; it may last for ever."""

    __slots__ = ("_wake", "stopping")

    def __init__(self, context: aio.ServicerContext[Any, Any]) -> None:
        super().__init__(context, longest=float("inf"))
        self.stopping = False
        """The server stops: the stream is to say where it is, and to end with `stopping_error`."""
        self._wake: Callable[[], None] = _nothing

    def when_stopping(self, wake: Callable[[], None]) -> None:
        """`wake` is called on the event loop when the server begins to stop."""
        self._wake = wake

    def stop(self) -> None:
        self.stopping = True
        self._wake()


def _nothing() -> None:
    pass


def stopping_error() -> Unavailable:
    """What callers get from a server that stops: nothing of theirs is lost, another server will do."""
    return Unavailable("the server is stopping", reason="STOPPING")


Behaviour = Callable[[Any, Call], Awaitable[Any]]
StreamBehaviour = Callable[[Any, StreamCall], AsyncGenerator[Any, None]]

AnswerAtOnce = Callable[[Sequence[bytes]], Iterable[bytes | None]]
"""From the serialised requests of a batch of calls to their serialised responses; each is sent before the next is made.

None for a call that is to go to the method: it waits, or is refused. What is answered must be what the method would
have answered. It runs in a thread of the transport, one at a time for a server; a transport without batches never asks.
"""

Reply = Callable[[Any], None]
"""Answers a call, once and from any thread, with its response (a message, or the bytes of one) or its error.

None leaves the call to the method.
"""

AnswerLater = Callable[[Any, Call, Reply], None]
"""Takes a call, `(request, Call, Reply)`, and returns without waiting; the reply comes later, from another thread.

What it raises is the answer too. It runs in a thread of the transport, one at a time for a server.
"""


class Admission:
    """Counts the calls under way and refuses those past the limit, at once rather than by a timeout."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._under_way = 0
        self._changed = threading.Condition()
        self._closed = False

    def answer_at_once(self, answer: AnswerAtOnce, requests: Sequence[bytes]) -> Iterator[bytes | None]:
        """A batch is one call; where `enter` would refuse it, it is left to the method."""
        try:
            self.enter()
        except TandemError:
            yield from [None] * len(requests)
            return
        try:
            yield from answer(requests)
        finally:
            self.leave()

    def enter(self) -> None:
        """Raises Overloaded past the limit, and Unavailable once closed. From any thread, as `leave`."""
        with self._changed:
            if self._closed:
                raise stopping_error()
            if self._under_way >= self._limit:
                raise Overloaded(f"more than {self._limit} calls are under way")
            self._under_way += 1
            CALLS_UNDER_WAY.set(self._under_way)

    def leave(self) -> None:
        with self._changed:
            self._under_way -= 1
            if self._closed:
                self._changed.notify_all()
            CALLS_UNDER_WAY.set(self._under_way)

    async def close(self, seconds: float) -> None:
        """Refuses new calls, and waits at most `seconds` for those under way."""
        with self._changed:
            self._closed = True
        await asyncio.to_thread(self._wait_until_idle, seconds)

    def _wait_until_idle(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._under_way, seconds)


class Streams:
    """The streams that are open. Servicers bound their number; `Admission` counts calls that are soon answered."""

    def __init__(self) -> None:
        self._open: set[StreamCall] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False

    def enter(self, call: StreamCall) -> None:
        """Raises Unavailable once closed."""
        if self._closed:
            raise stopping_error()
        self._open.add(call)
        self._idle.clear()

    def leave(self, call: StreamCall) -> None:
        self._open.discard(call)
        if not self._open:
            self._idle.set()

    async def close(self, seconds: float) -> None:
        """Refuses new streams, tells the open ones to end, and waits at most `seconds` for them."""
        self._closed = True
        for call in list(self._open):
            call.stop()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), seconds)
