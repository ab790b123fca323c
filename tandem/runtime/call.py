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
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError, Message
from google.rpc import status_pb2
from prometheus_client import Counter

from tandem.runtime.errors import (
    InvalidArgument,
    Overloaded,
    TandemError,
    TooLarge,
    Unavailable,
    Violation,
    code_of,
    internal_status,
    to_status,
)
from tandem.runtime.identity import UNASKED, Identity, Permission
from tandem.runtime.malformed import malformed_field
from tandem.runtime.telemetry import (
    CALL_SECONDS,
    CALLS,
    CALLS_ANSWERED_TWICE,
    CALLS_UNDER_WAY,
    STREAM_MESSAGES,
    STREAMS_OPEN,
    CallHistogram,
    log,
)
from tandem.runtime.tracing import TRACING

if TYPE_CHECKING:
    from opentelemetry.trace import Span

# What a caller may send as x-request-id and have in our logs.
_MAX_REFERENCE = 128
# A call without a deadline gets this one, longer than any wait we offer: a caller that waits for ever is a leak.
_LONGEST_CALL_SECONDS = 120.0
# The transport's clock of a deadline and ours started at moments that differ by as much as a thread is late.
_DEADLINE_SLACK_SECONDS = 0.05

# Kept: to look a member of an enumeration up takes a fifth of the time that an answer takes.
OK = grpc.StatusCode.OK

Metadata = Sequence[tuple[str, str | bytes]]


class Stage(Protocol):
    """Whoever a call can be handed to: a worker, or a place where calls are parked."""

    def put_all(self, calls: Sequence["Call"]) -> None:
        """Takes the calls over, from any thread, without waiting. What it cannot take it fails."""


class Guard(Protocol):
    """Of an RPC: see tandem.runtime.guards."""

    def check(self, call: "Context") -> None:
        """Says who calls, and whose rows that gives. Raises TandemError for who may not."""

    reads_requests: bool
    """Whether it ever looks at one."""

    def looks_at(self, call: "Context") -> bool:
        """Whether `check_request` is to be called too."""

    def check_request(self, call: "Context", request: Any) -> None:
        """Raises TandemError for what the caller may not ask for."""


class Guards(Protocol):
    """Of a server."""

    @property
    def admit(self) -> Callable[[list["RemoteCall"]], list["RemoteCall"]]:
        """Those calls of one worker that may be answered, which `settle` makes room after; the others are refused."""

    def of(self, path: str) -> Guard | None: ...


class Admission:
    """Counts the calls under way and refuses those past the limit, at once rather than by a time-out."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._under_way = 0
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._closed = False
        CALLS_UNDER_WAY.set_function(lambda: self._under_way)

    def admit(self, calls: list["RemoteCall"]) -> list["RemoteCall"]:
        """Those calls that may be answered, which `settle` makes room after; the others are refused."""
        admitted = self.enter(len(calls))
        if admitted == len(calls):
            return calls
        refusal = stopping_error() if self._closed else Overloaded(f"more than {self._limit} calls are under way")
        for call in calls[admitted:]:
            call.fail(refusal)
            call.count_unadmitted()
        return calls[:admitted]

    def enter(self, wanted: int) -> int:
        """How many of so many calls are admitted. From any thread, as `exit`."""
        with self._lock:
            admitted = 0 if self._closed else min(wanted, self._limit - self._under_way)
            self._under_way += admitted
            return admitted

    def exit(self, calls: int) -> None:
        with self._lock:
            self._under_way -= calls
            if self._closed:
                self._changed.notify_all()

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


CODES = {code.value[0]: code for code in grpc.StatusCode}
"""By their numbers, as google.rpc.Status has them."""


def trailers_of(status: status_pb2.Status) -> tuple[tuple[str, bytes]]:
    return (("grpc-status-details-bin", status.SerializeToString()),)


def status_of(error: Exception, method: str, call: "Context") -> status_pb2.Status:
    """A TandemError is told to the caller. Any other is a bug: logged, under the reference that the caller gets."""
    reference = call.reference()
    if isinstance(error, TandemError):
        log.debug("call refused", method=method, reason=error.reason, reference=reference)
        return to_status(error)
    log.error("call failed", method=method, reference=reference, exc_info=error)
    return internal_status(reference)


def too_large(what: str, size: int, limit: int) -> status_pb2.Status:
    """For a message of `size` bytes."""
    return to_status(TooLarge(what, size, limit))


def decoded(request_class: type[Message], payload: bytes) -> Message:
    """What of the bytes this program knows. Raises InvalidArgument for bytes that are no such message.

    What it does not know it cannot check, so nobody behind this sees it: the fields of a newer contract, in the message
    and in all that it holds. That costs 0.1 to 0.3 µs.
    """
    try:
        request = request_class.FromString(payload)
    except DecodeError:
        name = request_class.DESCRIPTOR.full_name
        field = malformed_field(request_class, payload)
        raise InvalidArgument([Violation(field, f"the request is not a {name}", "MALFORMED")]) from None
    request.DiscardUnknownFields()
    return request


@dataclass(frozen=True, eq=False)
class Method:
    """A unary RPC, and how its calls are counted."""

    name: str
    request_class: type[Message]
    admission: Admission | None = None
    """None for calls that the program makes itself."""
    max_response_bytes: int = 2**31
    guard: Guard | None = None
    """None where nobody is asked who he is."""

    def settle(self, code: grpc.StatusCode, seconds: float, calls: int) -> None:
        """So many calls that were admitted ended alike, so long after they came."""
        self.count(code, seconds, calls)
        if self.admission is not None:
            self.admission.exit(calls)

    def count(self, code: grpc.StatusCode, seconds: float, calls: int = 1) -> None:
        """As `settle`, for calls that were not admitted."""
        (self._answered if code is OK else CALLS.labels(self.name, code.name)).inc(calls)
        self._seconds.observe_many(seconds, calls)

    @cached_property
    def _answered(self) -> Counter:
        return CALLS.labels(self.name, OK.name)

    @cached_property
    def _seconds(self) -> CallHistogram:
        return CALL_SECONDS.labels(self.name)


class _Uncounted(Method):
    """Of what a stream asks a worker for, which is no call of its own."""

    def settle(self, code: grpc.StatusCode, seconds: float, calls: int) -> None:
        pass


UNCOUNTED = _Uncounted("a stream's own question", Empty)


class Context(ABC):
    """What is known of a call beside its request: unary or stream, by either transport."""

    longest_seconds = _LONGEST_CALL_SECONDS
    _deadline: float | None = None

    permission: Permission = UNASKED
    """Who calls, and what of the rows that lets the caller see. Its guard sets it."""

    came_at: float
    """On the clock of time.monotonic()."""
    span: "Span | None" = None
    """Once somebody needs it: see tandem.runtime.tracing."""

    @abstractmethod
    def metadata(self) -> Metadata: ...

    @abstractmethod
    def _time_remaining(self) -> float | None:
        """Seconds from `came_at` to the caller's deadline; None or a very large number where there is none."""

    def certificate_subject(self) -> str:
        """Whom the connection's certificate names, as its authority says; empty where there is none."""
        return ""

    @property
    def identity(self) -> Identity | None:
        """Who calls; None where nobody is asked."""
        return self.permission.identity

    @property
    def owner(self) -> str | None:
        """Whose rows alone the caller may see, in lower case; None for all."""
        return self.permission.owner

    @property
    def actor(self) -> str:
        """Who causes what the call does; empty where nobody is asked."""
        return "" if self.identity is None else self.identity.actor

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

    def code_of_gone(self) -> grpc.StatusCode:
        """How a call ended whose caller has gone. Transports say the same of a caller that left and of its deadline."""
        passed = self.seconds_left() < _DEADLINE_SLACK_SECONDS
        return grpc.StatusCode.DEADLINE_EXCEEDED if passed else grpc.StatusCode.CANCELLED

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

    # Defaults of the class: an instance has only what differs, so to make one costs less.
    code: grpc.StatusCode | None = None
    """How the call ended; None while it is under way."""
    next: Stage | None = None
    """Where the handler wants it to go. The worker hands it on when the handler has returned."""
    asked: Any = None
    begun = False
    """Whether something of it is done already: whoever ends it before its end does not say that nothing was done."""
    gone = False
    """Whether the caller has left, or its deadline passed: nobody reads an answer."""
    when_gone: Callable[["Call"], None] | None = None
    """Set by whoever parks the call, to let go of it at once when its caller goes.

    The transport sets `gone` and then looks at `when_gone`, on a thread of its own. So whoever parks a call sets
    `when_gone` first and then looks at `gone` again: at least one of the two sees the other, and maybe both do. Letting
    go must therefore be decided under the lock of the place where the call is parked: who takes it out of there drops
    and settles it, who does not find it does nothing. `when_gone` may also be called after the call went on from there.
    It must not wait.
    """
    _request: Any = None

    method: Method
    payload: bytes

    @property
    def request(self) -> Any:
        """The request, parsed once. Raises InvalidArgument for bytes that are no such message."""
        if self._request is None:
            self._request = decoded(self.method.request_class, self.payload)
        return self._request

    @abstractmethod
    def reply(self, response: Message | bytes) -> None:
        """Answers with a message, or the bytes of one."""

    @abstractmethod
    def fail(self, error: Exception) -> None:
        """Answers with an error: a TandemError is told to the caller, any other is a bug and logged."""

    def drop(self) -> None:
        """Ends a call whose caller has gone."""
        self.code = self.code_of_gone()
        self._forget()

    def caller_left(self) -> None:
        """The transport says that the caller has gone."""
        self.gone = True
        if self.when_gone is not None:
            try:
                self.when_gone(self)
            except Exception:
                # A bug, and not the transport's, which has other calls to look after.
                log.exception("a call could not be let go of", method=self.method.name)

    @abstractmethod
    def _forget(self) -> None:
        """Nothing is sent: the caller has gone."""

    def _answered_twice(self) -> None:
        """A bug of a handler. The caller has its first answer; a second one could reach another call."""
        CALLS_ANSWERED_TWICE.inc()
        log.error("call answered twice", method=self.method.name, reference=self.reference(), stack_info=True)


class RemoteCall(Call):
    """A call that came over the network. Transports derive from it.

    An answer to a caller that has gone is counted as what the caller saw: the call was cancelled, or too late.
    """

    def reply(self, response: Message | bytes) -> None:
        if self.gone or self.code is not None:
            self._answer_nobody()
            return
        try:
            data = response if isinstance(response, bytes) else bytes(response.SerializeToString())
        except Exception as error:
            self.fail(error)
            return
        if len(data) > self.method.max_response_bytes:
            self.fail_with(too_large("the response", len(data), self.method.max_response_bytes))
            return
        self.code = OK
        self._send(data)

    def fail(self, error: Exception) -> None:
        self.fail_with(status_of(error, self.method.name, self))

    def fail_with(self, status: status_pb2.Status) -> None:
        if self.gone or self.code is not None:
            self._answer_nobody()
            return
        self.code = CODES[status.code]
        self._send_failure(status)

    def count_unadmitted(self) -> None:
        """Counts a call that was refused before it was admitted."""
        assert self.code is not None, "ended"
        self.method.count(self.code, time.monotonic() - self.came_at)
        if TRACING.is_on:
            _end_spans([self])

    def _answer_nobody(self) -> None:
        if self.code is not None:
            self._answered_twice()
        else:
            self.drop()

    @abstractmethod
    def _send(self, response: bytes) -> None: ...

    @abstractmethod
    def _send_failure(self, status: status_pb2.Status) -> None: ...


class LocalCall(Call):
    """A call that the program makes itself, such as a command whose time has come.

    `future` has the response, a message as the handler made it, or the error. To cancel it ends the call.
    """

    def __init__(self, method: Method, request: Message, *, seconds: float, metadata: Metadata = ()) -> None:
        self.method = method
        self.payload = request.SerializeToString()
        self.came_at = time.monotonic()
        self.future: Future[Any] = Future()
        self.future.add_done_callback(self._end_if_cancelled)
        self._request = request
        self._seconds = seconds
        self._metadata = metadata

    def metadata(self) -> Metadata:
        return self._metadata

    def _time_remaining(self) -> float:
        return self._seconds

    def reply(self, response: Message | bytes) -> None:
        if self._may_answer():
            self.code = OK
            self.future.set_result(response)

    def fail(self, error: Exception) -> None:
        if self._may_answer():
            self.code = code_of(error) if isinstance(error, TandemError) else grpc.StatusCode.INTERNAL
            self.future.set_exception(error)

    def _may_answer(self) -> bool:
        if self.code is not None:
            self._answered_twice()
            return False
        if not self.future.set_running_or_notify_cancel():
            self.code = grpc.StatusCode.CANCELLED
            return False
        return True

    def _forget(self) -> None:
        self.future.cancel()

    def _end_if_cancelled(self, future: "Future[Any]") -> None:
        if future.cancelled() and not self.gone:
            self.caller_left()


def settle(calls: Sequence[Call]) -> None:
    """Counts calls that have ended, and makes room for others: calls that came together and ended alike at once."""
    if not calls:
        return
    if TRACING.is_on:
        _end_spans(calls)
    now = time.monotonic()
    method, code, came_at = calls[0].method, calls[0].code, calls[0].came_at
    alike = 0
    for call in calls:
        if call.code is not code or call.came_at != came_at or call.method is not method:
            assert code is not None, "ended"
            method.settle(code, now - came_at, alike)
            method, code, came_at = call.method, call.code, call.came_at
            alike = 0
        alike += 1
    assert code is not None, "ended"
    method.settle(code, now - came_at, alike)


def _end_spans(calls: Sequence[Call]) -> None:
    for call in calls:
        if call.method is not UNCOUNTED:
            assert call.code is not None, "ended"
            TRACING.end_call(call, call.method.name, call.code.name)


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

    def exit(self, call: StreamCall) -> None:
        self._open.discard(call)
        if not self._open:
            self._idle.set()

    async def close(self, seconds: float) -> None:
        """Refuses new streams, asks the open ones to end, and waits at most `seconds` for them."""
        self._closed = True
        for call in list(self._open):
            call.stop()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), seconds)


@dataclass(frozen=True, eq=False)
class StreamMethod:
    """A server-streaming RPC, with all that stands around its handler: size, decoding, errors to status, metrics."""

    name: str
    request_class: type[Message]
    handler: StreamHandler
    streams: Streams
    max_request_bytes: int
    max_response_bytes: int
    guard: Guard | None = None

    async def run(
        self, call: StreamCall, payload: bytes, write: Callable[[bytes], Awaitable[object]]
    ) -> status_pb2.Status | None:
        """Answers a call until the stream ends; returns how it failed, for the caller.

        write: returns when the transport has taken the message. CancelledError is raised again: the caller has gone.
        """
        STREAMS_OPEN.labels(self.name).inc()
        try:
            failure = await self._answer(call, payload, write)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                self._ended(call, call.code_of_gone())
                raise
            # The handler's own: the caller has not gone, and gets an error.
            bug = RuntimeError("a stream's handler was cancelled, and not by its caller")
            bug.__cause__ = error
            failure = status_of(bug, self.name, call)
        except Exception as error:
            failure = status_of(error, self.name, call)
        finally:
            STREAMS_OPEN.labels(self.name).dec()
        self._ended(call, OK if failure is None else CODES[failure.code])
        return failure

    def _ended(self, call: StreamCall, code: grpc.StatusCode) -> None:
        self.count(code)
        if TRACING.is_on:
            TRACING.end_call(call, self.name, code.name)

    def count(self, code: grpc.StatusCode) -> None:
        """A stream that ended."""
        CALLS.labels(self.name, code.name).inc()

    async def _answer(
        self, call: StreamCall, payload: bytes, write: Callable[[bytes], Awaitable[object]]
    ) -> status_pb2.Status | None:
        sent = STREAM_MESSAGES.labels(self.name)
        if self.guard is not None:
            self.guard.check(call)
        if len(payload) > self.max_request_bytes:
            return too_large("the request", len(payload), self.max_request_bytes)
        self.streams.enter(call)
        try:
            request = decoded(self.request_class, payload)
            if self.guard is not None and self.guard.looks_at(call):
                self.guard.check_request(call, request)
            # Closed at once when the call is cancelled, and not when the collector comes by.
            async with contextlib.aclosing(self.handler(request, call)) as responses:
                async for response in responses:
                    data = response if isinstance(response, bytes) else response.SerializeToString()
                    if len(data) > self.max_response_bytes:
                        return too_large("the response", len(data), self.max_response_bytes)
                    if self.guard is not None:
                        # It may last for days, a token does not.
                        self.guard.check(call)
                    await write(data)
                    sent.inc()
        finally:
            self.streams.exit(call)
        return None


StreamMethods = Mapping[str, StreamMethod]
"""By path, as `tandem.runtime.worker.Workers`."""


@dataclass(frozen=True)
class Servicer:
    """A method of a library's servicer, of health or reflection: grpcio serves it behind both transports.

    answer: (requests, context); it writes its responses to the context. There is one request at least.
    """

    request_class: type[Message]
    answer: Callable[[AsyncIterator[Any], Any], Awaitable[None]]
    guard: Guard | None = None
    """None for health, which is answered to everybody."""


Servicers = Mapping[str, Servicer]
"""By path."""
