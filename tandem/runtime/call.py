"""A call, as every handler sees it, whatever transport it came by; and how its end is counted.

A unary call has one way to be answered: a transport makes it, a worker (tandem.runtime.worker) answers it or hands it
to the next stage. Exactly one place has a call at any time, so it is answered once:

    received ──▶ in a worker's queue ──▶ in a handler ──▶ answered: `reply` or `fail`
                        ▲                     │  └──────▶ dropped: its caller has gone
                        └─────── parked ◀─────┘           (waits for something, or for another worker)

Whoever ran the handler settles the calls that were answered in it: the counts and the room of a whole batch at once.
"""

import asyncio
import contextlib
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2, status_pb2
from prometheus_client import Counter

from tandem.runtime.errors import (
    InvalidArgument,
    Overloaded,
    TandemError,
    Unavailable,
    Violation,
    code_of,
    internal_status,
    to_status,
)
from tandem.runtime.telemetry import CALL_SECONDS, CALLS, CALLS_UNDER_WAY, log

# What a caller may send as x-request-id and have in our logs.
_MAX_REFERENCE = 128
# A call without a deadline still gets one: a caller that waits for ever is a leak. Longer than any wait we offer.
_LONGEST_CALL_SECONDS = 120.0
# The transport's clock of a deadline and ours started at moments that differ by as much as a thread is late.
_DEADLINE_SLACK_SECONDS = 0.05

Metadata = Sequence[tuple[str, str | bytes]]


class Stage(Protocol):
    """Whoever a call can be handed to: a worker, or a place where calls are parked."""

    def put_all(self, calls: Sequence["Call"]) -> None:
        """Takes the calls over, from any thread, without waiting. What it cannot take it fails."""


class Admission:
    """Counts the calls under way and refuses those past the limit, at once rather than by a time-out."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._under_way = 0
        self._changed = threading.Condition()
        self._closed = False

    def enter(self, wanted: int) -> int:
        """How many of so many calls are admitted. From any thread, as `leave`."""
        with self._changed:
            admitted = 0 if self._closed else min(wanted, self._limit - self._under_way)
            self._under_way += admitted
            CALLS_UNDER_WAY.set(self._under_way)
            return admitted

    def leave(self, calls: int) -> None:
        with self._changed:
            self._under_way -= calls
            if self._closed:
                self._changed.notify_all()
            CALLS_UNDER_WAY.set(self._under_way)

    def refusal(self) -> TandemError:
        """What a call is told that was not admitted."""
        return stopping_error() if self._closed else Overloaded(f"more than {self._limit} calls are under way")

    async def close(self, seconds: float) -> None:
        """Refuses new calls, and waits at most `seconds` for those under way."""
        with self._changed:
            self._closed = True
        await asyncio.to_thread(self._wait_until_idle, seconds)

    def _wait_until_idle(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._under_way, seconds)


def stopping_error() -> Unavailable:
    """What callers get from a server that stops: nothing of theirs is lost, another server will do."""
    return Unavailable("the server is stopping", reason="STOPPING")


class Method:
    """An RPC that is served, with its counters. admission: None for calls that the program makes itself."""

    def __init__(
        self,
        name: str,
        request_class: type[Message],
        *,
        admission: Admission | None = None,
        max_response_bytes: int = 2**31,
    ) -> None:
        self.name = name
        self.request_class = request_class
        self.admission = admission
        self.max_response_bytes = max_response_bytes
        self._seconds = CALL_SECONDS.labels(name)
        self._counters: dict[grpc.StatusCode, Counter] = {}

    def count(self, code: grpc.StatusCode, calls: int = 1) -> None:
        if code not in self._counters:
            self._counters[code] = CALLS.labels(self.name, code.name)
        self._counters[code].inc(calls)

    def settle(self, code: grpc.StatusCode, seconds: float, calls: int) -> None:
        """So many calls ended alike, so long after they came."""
        self.count(code, calls)
        self._seconds.observe_many(seconds, calls)
        if self.admission is not None:
            self.admission.leave(calls)


class Context(ABC):
    """What is known of a call beside its request: unary or stream, by either transport."""

    longest_seconds = _LONGEST_CALL_SECONDS
    _deadline: float | None = None

    came_at: float
    """On the clock of time.monotonic()."""

    @abstractmethod
    def metadata(self) -> Metadata: ...

    @abstractmethod
    def _time_remaining(self) -> float | None:
        """Seconds from `came_at` to the caller's deadline; None or a very large number where there is none."""

    @property
    def deadline(self) -> float:
        """When the caller stops waiting, on the clock of time.monotonic(), in seconds."""
        if self._deadline is None:
            remaining = self._time_remaining()
            left = self.longest_seconds if remaining is None else min(remaining, self.longest_seconds)
            self._deadline = self.came_at + left
        return self._deadline

    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()

    def reference(self) -> str:
        """The caller's x-request-id, or a new one: what the logs call this call."""
        for key, value in self.metadata():
            if key == "x-request-id" and isinstance(value, str) and value.isprintable() and value:
                return value[:_MAX_REFERENCE]
        return uuid.uuid4().hex


class Call(Context):
    """A unary call. Handlers call `reply` or `fail`, once, from any thread.

    payload: the serialised request. asked: what the first handler made of the request, for the stages after it.
    """

    # Defaults of the class: to set them for each call would take a third of the time that it takes to make one.
    code: grpc.StatusCode | None = None
    """How the call ended; None while it is under way."""
    next: Stage | None = None
    """Where the handler wants it to go. The worker hands it on when the handler has returned."""
    asked: Any = None
    gone = False
    """Whether the caller has left, or its deadline passed: nobody reads an answer."""
    when_gone: Callable[["Call"], None] | None = None
    """Set by whoever parks the call, to let go of it at once. It is called by the transport, on any thread."""
    _request: Any = None

    method: Method
    payload: bytes

    @property
    def request(self) -> Any:
        """The request, parsed once. Raises InvalidArgument for bytes that are no such message."""
        if self._request is None:
            try:
                self._request = self.method.request_class.FromString(self.payload)
            except DecodeError:
                name = self.method.request_class.DESCRIPTOR.full_name
                raise InvalidArgument([Violation("", f"the request is not a {name}", "MALFORMED")]) from None
        return self._request

    @abstractmethod
    def reply(self, response: Message | bytes) -> None:
        """Answers with a message, or the bytes of one."""

    @abstractmethod
    def fail(self, error: Exception) -> None:
        """Answers with an error: a TandemError is told to the caller, any other is a bug and logged once."""

    def drop(self) -> None:
        """Ends a call whose caller has gone."""
        passed = self.seconds_left() < _DEADLINE_SLACK_SECONDS
        self.code = grpc.StatusCode.DEADLINE_EXCEEDED if passed else grpc.StatusCode.CANCELLED
        self._forget()

    def leave(self) -> None:
        """The transport says that the caller has gone."""
        self.gone = True
        when_gone = self.when_gone
        if when_gone is not None:
            when_gone(self)

    @abstractmethod
    def _forget(self) -> None:
        """Nothing is sent: the caller has gone."""


class RemoteCall(Call):
    """A call that came over the network. Transports derive from it."""

    def reply(self, response: Message | bytes) -> None:
        """Answers with a message, or the bytes of one."""
        try:
            encoded = response if isinstance(response, bytes) else bytes(response.SerializeToString())
        except Exception as error:
            self.fail(error)
            return
        if len(encoded) > self.method.max_response_bytes:
            self.code = grpc.StatusCode.RESOURCE_EXHAUSTED
            self._send_failure(self.code, too_large("the response", len(encoded), self.method.max_response_bytes))
            return
        self.code = grpc.StatusCode.OK
        self._send(encoded)

    def fail(self, error: Exception) -> None:
        """Answers with an error: a TandemError is told to the caller, any other is a bug and logged once."""
        if isinstance(error, TandemError):
            log.debug("call refused", method=self.method.name, reason=error.reason, reference=self.reference())
        self.code, status = failure_of(error, self.method.name, self.reference)
        self._send_failure(self.code, status)

    @abstractmethod
    def _send(self, response: bytes) -> None: ...

    @abstractmethod
    def _send_failure(self, code: grpc.StatusCode, status: status_pb2.Status) -> None: ...


class LocalCall(Call):
    """A call that the program makes itself: a command that time gives, say. `future` has the response or the error."""

    def __init__(self, method: Method, request: Message, *, seconds: float, metadata: Metadata = ()) -> None:
        self.method = method
        self.payload = b""
        self.came_at = time.monotonic()
        self.future: Future[Any] = Future()
        self._request = request
        self._seconds = seconds
        self._metadata = metadata

    def metadata(self) -> Metadata:
        return self._metadata

    def _time_remaining(self) -> float:
        return self._seconds

    def reply(self, response: Message | bytes) -> None:
        """The message as it is."""
        self.code = grpc.StatusCode.OK
        self.future.set_result(response)

    def fail(self, error: Exception) -> None:
        self.code = code_of(error) if isinstance(error, TandemError) else grpc.StatusCode.INTERNAL
        self.future.set_exception(error)

    def _forget(self) -> None:
        self.future.cancel()


def settle(calls: Sequence[Call]) -> None:
    """Counts calls that have ended, and makes room for others: calls that came together and ended alike at once."""
    now = time.monotonic()
    first: Call | None = None
    alike = 0
    for call in calls:
        if (
            first is not None
            and call.code is first.code
            and call.came_at == first.came_at
            and call.method is first.method
        ):
            alike += 1
            continue
        if first is not None:
            assert first.code is not None, "ended"
            first.method.settle(first.code, now - first.came_at, alike)
        first, alike = call, 1
    if first is not None:
        assert first.code is not None, "ended"
        first.method.settle(first.code, now - first.came_at, alike)


def failure_of(
    error: Exception, method: str, reference_of: Callable[[], str]
) -> tuple[grpc.StatusCode, status_pb2.Status]:
    """What the caller is told of an error. A bug is logged, under the reference that the caller gets."""
    if isinstance(error, TandemError):
        return code_of(error), to_status(error)
    reference = reference_of()
    log.error("call failed", method=method, reference=reference, exc_info=error)
    return grpc.StatusCode.INTERNAL, internal_status(reference)


def too_large(what: str, size: int, limit: int) -> status_pb2.Status:
    return status_pb2.Status(
        code=code_pb2.RESOURCE_EXHAUSTED, message=f"{what} has {size} bytes; at most {limit} are allowed"
    )


class StreamCall(Context):
    """A call that is answered with a stream; it may last for ever. Transports derive from it."""

    longest_seconds = float("inf")
    stopping = False
    """The server stops: the stream is to say where it is, and to end with `stopping_error`."""
    _wake: Callable[[], None] | None = None

    def when_stopping(self, wake: Callable[[], None]) -> None:
        """`wake` is called on the event loop when the server begins to stop."""
        self._wake = wake

    def stop(self) -> None:
        self.stopping = True
        if self._wake is not None:
            self._wake()


StreamHandler = Callable[[Any, StreamCall], AsyncGenerator[Any, None]]
"""(request, call) -> response messages, or the bytes of them. It is asked for the next when the last has been taken."""


class Streams:
    """The streams that are open. Handlers bound their number; `Admission` counts calls that are soon answered."""

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
