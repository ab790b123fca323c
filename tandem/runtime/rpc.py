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
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.rpc import status_pb2
from grpc import aio
from prometheus_client import Counter

from tandem.runtime.calls import (
    Admission,
    AnswerAtOnce,
    AnswerLater,
    Behaviour,
    Call,
    StreamBehaviour,
    StreamCall,
    Streams,
)
from tandem.runtime.errors import (
    InvalidArgument,
    TandemError,
    Violation,
    code_of,
    internal_status,
    to_status,
)
from tandem.runtime.native import DirectCall, NativeServer
from tandem.runtime.telemetry import (
    CALL_SECONDS,
    CALLS,
    STREAM_MESSAGES,
    STREAMS_OPEN,
    log,
)

# The transport's clock of a deadline and ours started at moments that differ by as much as the event loop is late.
_DEADLINE_SLACK_SECONDS = 0.05


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
                if outcome is not None:
                    end(outcome)
                elif not direct.leave():
                    ended.by_caller(call)
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

    def by_caller(self, call: Call) -> None:
        """The transports cancel a call when the caller leaves, and when its deadline passes."""
        passed = call.seconds_left() < _DEADLINE_SLACK_SECONDS
        self._count(grpc.StatusCode.DEADLINE_EXCEEDED if passed else grpc.StatusCode.CANCELLED)

    def badly(self, call: Call, error: BaseException) -> "_Refusal":
        """What the caller is to be told; raises the error again when there is nobody to tell."""
        match error:
            case asyncio.CancelledError():
                self.by_caller(call)
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
