"""How a servicer is put behind the wire, the same way for every RPC and on both transports.

Around each call: admission (a bounded number under way), decoding, the table from errors to status, metrics, one log
line for a bug. A servicer's method is `async (request, Call) -> response message, or its bytes`. Where the contract
says `returns (stream …)`, it is an async generator of those, `(request, StreamCall)`, and is asked for the next one
when the transport has taken the one before.

A unary RPC may have a *shortcut* beside its method, for calls that can be answered at once, see `AnswerAtOnce`, or
another way for calls that threads of the servicer's answer, see `AnswerLater`. Both spare a call its way through the
event loop. Only the native transport knows them, so the method must answer the same.
"""

import asyncio
import contextlib
import threading
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.rpc import status_pb2
from grpc import aio
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
from tandem.runtime.native import DirectCall, NativeServer
from tandem.runtime.telemetry import (
    CALL_SECONDS,
    CALLS,
    CALLS_UNDER_WAY,
    STREAM_MESSAGES,
    STREAMS_OPEN,
    log,
)

# What a caller may send as x-request-id and have in our logs.
_MAX_REFERENCE = 128
# A call without a deadline still gets one: a caller that waits for ever is a leak. Longer than any wait we offer.
_LONGEST_CALL_SECONDS = 120.0
# The transport's clock of a deadline and ours started at moments that differ by as much as the event loop is late.
_DEADLINE_SLACK_SECONDS = 0.05


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
"""Answers a call, once and from any thread, with its response (a message, or the bytes of one) or its error."""

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
        self._batch = threading.Lock()

    def answer_at_once(self, answer: AnswerAtOnce, requests: Sequence[bytes]) -> Iterator[bytes | None]:
        """A batch in a thread of its own: as one call, and once closed not at all."""
        with self._batch:
            yield from [None] * len(requests) if self._closed else answer(requests)

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
        if await asyncio.to_thread(self._batch.acquire, timeout=seconds):
            self._batch.release()

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


def add_service(
    server: aio.Server,
    service: ServiceDescriptor,
    servicer: object,
    *,
    admission: Admission,
    streams: Streams,
    shortcuts: Mapping[str, AnswerAtOnce],
    later: Mapping[str, AnswerLater],
) -> None:
    """Serves every RPC of `service` with the method of `servicer` that has its name.

    shortcuts, later: of some unary RPCs, by name. Raises AttributeError when the servicer lacks a method, an RPC in the
    contract that nobody serves, and KeyError for those of an RPC that is not there.
    """
    handlers: dict[str, Any] = {}
    for method in service.methods:
        behaviour = getattr(servicer, method.name)
        if method.server_streaming:
            handlers[method.name] = grpc.unary_stream_rpc_method_handler(_guarded_stream(method, behaviour, streams))
        else:
            handlers[method.name] = grpc.unary_unary_rpc_method_handler(_guarded(method, behaviour, admission))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))
    server.add_registered_method_handlers(service.full_name, handlers)
    if isinstance(server, NativeServer):
        for name, answer in shortcuts.items():
            shortcut = _guarded_shortcut(service.methods_by_name[name], answer, admission)
            server.add_shortcut(f"/{service.full_name}/{name}", shortcut)
        for name, take in later.items():
            server.add_taker(
                f"/{service.full_name}/{name}", _guarded_later(service.methods_by_name[name], take, admission)
            )


def _guarded(method: MethodDescriptor, behaviour: Behaviour, admission: Admission) -> Any:
    request_class = message_factory.GetMessageClass(method.input_type)
    seconds = CALL_SECONDS.labels(method.name)
    ended = _Endings(method)

    async def answer(payload: bytes, context: aio.ServicerContext[Any, Any]) -> bytes:
        started = time.perf_counter()
        call = Call(context)
        try:
            admission.enter()
            try:
                response = await behaviour(_decoded(request_class, payload), call)
                encoded = _encoded(response)
            finally:
                admission.leave()
        except BaseException as error:
            refusal = ended.badly(call, error)
        else:
            ended.well()
            return encoded
        finally:
            seconds.observe(time.perf_counter() - started)
        return await _refuse(context, refusal)

    return answer


def _guarded_shortcut(method: MethodDescriptor, answer: AnswerAtOnce, admission: Admission) -> Any:
    seconds = CALL_SECONDS.labels(method.name)
    ended = _Endings(method)

    def answer_at_once(requests: Sequence[bytes], came_at: float) -> Iterator[bytes | None]:
        answered = 0
        left = len(requests)
        try:
            for response in admission.answer_at_once(answer, requests):
                left -= 1
                answered += response is not None
                yield response
        except Exception:
            # A bug; the method can do all that the shortcut can.
            log.exception("a shortcut failed", method=method.name)
            yield from [None] * left
        if answered:
            ended.well(answered)
            seconds.observe_many(time.perf_counter() - came_at, answered)

    return answer_at_once


def _guarded_later(method: MethodDescriptor, take: AnswerLater, admission: Admission) -> Callable[[DirectCall], None]:
    request_class = message_factory.GetMessageClass(method.input_type)
    seconds = CALL_SECONDS.labels(method.name)
    ended = _Endings(method)

    def take_directly(direct: DirectCall) -> None:
        call = Call(direct)

        def end(outcome: Any) -> None:
            try:
                if isinstance(outcome, BaseException):
                    raise outcome
                direct.respond(_encoded(outcome))
            except BaseException as error:
                code, status = ended.badly(call, error)
                direct.fail(code, status.message, _details_of(status))
            else:
                ended.well()
            seconds.observe(time.perf_counter() - direct.came_at)

        def reply(outcome: Any) -> None:
            try:
                end(outcome)
            finally:
                admission.leave()

        try:
            admission.enter()
        except TandemError as refusal:
            end(refusal)
            return
        try:
            take(_decoded(request_class, direct.request), call, reply)
        except BaseException as error:
            reply(error)

    return take_directly


def _guarded_stream(method: MethodDescriptor, behaviour: StreamBehaviour, streams: Streams) -> Any:
    request_class = message_factory.GetMessageClass(method.input_type)
    opened = STREAMS_OPEN.labels(method.name)
    messages = STREAM_MESSAGES.labels(method.name)
    ended = _Endings(method)

    async def answer(payload: bytes, context: aio.ServicerContext[Any, Any]) -> None:
        call = StreamCall(context)
        opened.inc()
        try:
            streams.enter(call)
            try:
                # Closed at once when the call is cancelled, and not when the collector comes by.
                async with contextlib.aclosing(behaviour(_decoded(request_class, payload), call)) as responses:
                    async for response in responses:
                        await context.write(_encoded(response))
                        messages.inc()
            finally:
                streams.leave(call)
        except BaseException as error:
            refusal = ended.badly(call, error)
        else:
            ended.well()
            return
        finally:
            opened.dec()
        await _refuse(context, refusal)

    return answer


class _Endings:
    """How the calls of a method end: counted, and a bug logged once."""

    def __init__(self, method: MethodDescriptor) -> None:
        self._method = method.name
        self._counters: dict[grpc.StatusCode, Counter] = {}

    def well(self, calls: int = 1) -> None:
        self._count(grpc.StatusCode.OK, calls)

    def badly(self, call: Call, error: BaseException) -> "_Refusal":
        """What the caller is to be told; raises the error again when there is nobody to tell."""
        match error:
            case asyncio.CancelledError():
                # The transports cancel a call when the caller leaves, and when its deadline passes.
                passed = call.seconds_left() < _DEADLINE_SLACK_SECONDS
                self._count(grpc.StatusCode.DEADLINE_EXCEEDED if passed else grpc.StatusCode.CANCELLED)
                raise error
            case TandemError():
                log.debug("call refused", method=self._method, reason=error.reason, reference=call.reference())
                refusal = code_of(error), to_status(error)
            case Exception():
                reference = call.reference()
                log.exception("call failed", method=self._method, reference=reference)
                refusal = grpc.StatusCode.INTERNAL, internal_status(reference)
            case _:
                raise error
        self._count(refusal[0])
        return refusal

    def _count(self, code: grpc.StatusCode, calls: int = 1) -> None:
        if code not in self._counters:
            self._counters[code] = CALLS.labels(self._method, code.name)
        self._counters[code].inc(calls)


_Refusal = tuple[grpc.StatusCode, status_pb2.Status]


async def _refuse(context: aio.ServicerContext[Any, Any], refusal: _Refusal) -> NoReturn:
    """Outside of the handlers above: abort() raises, and what it raises is the transport's to see."""
    code, status = refusal
    await context.abort(code, status.message, _details_of(status))
    raise AssertionError("abort() returned")


def _details_of(status: status_pb2.Status) -> tuple[tuple[str, bytes]]:
    """As trailing metadata."""
    return (("grpc-status-details-bin", status.SerializeToString()),)


def _encoded(response: Any) -> bytes:
    return response if isinstance(response, bytes) else bytes(response.SerializeToString())


def _decoded(request_class: type[Message], payload: bytes) -> Message:
    try:
        return request_class.FromString(payload)
    except DecodeError:
        name = request_class.DESCRIPTOR.full_name
        raise InvalidArgument([Violation("", f"the request is not a {name}", "MALFORMED")]) from None
