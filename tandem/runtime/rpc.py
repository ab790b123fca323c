"""How a servicer is put behind the wire, the same way for every RPC and on both transports.

Around each call: admission (a bounded number under way), decoding, the table from errors to status, metrics, one log
line for a bug. A servicer's method is `async (request, Call) -> response message, or its bytes`.
"""

import asyncio
import contextlib
import time
import uuid
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
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
from tandem.runtime.telemetry import CALL_SECONDS, CALLS, CALLS_UNDER_WAY, log

# What a caller may send as x-request-id and have in our logs.
_MAX_REFERENCE = 128
# A call without a deadline still gets one: a caller that waits for ever is a leak. Longer than any wait we offer.
_LONGEST_CALL_SECONDS = 120.0
# The transport's clock of a deadline and ours started at moments that differ by as much as the event loop is late.
_DEADLINE_SLACK_SECONDS = 0.05


class Call:
    """What a servicer may know of the call it answers."""

    __slots__ = ("_context", "deadline")

    def __init__(self, context: aio.ServicerContext[Any, Any]) -> None:
        self._context = context
        remaining = context.time_remaining()
        # Some transports say None where the caller set no deadline, some a very large number.
        left = _LONGEST_CALL_SECONDS if remaining is None else min(remaining, _LONGEST_CALL_SECONDS)
        self.deadline = time.monotonic() + left
        """When the caller stops waiting, on the clock of time.monotonic(), in seconds."""

    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()

    def reference(self) -> str:
        """The caller's x-request-id, or a new one: what the logs call this call."""
        for key, value in self._context.invocation_metadata() or ():
            if key == "x-request-id" and isinstance(value, str) and value.isprintable() and value:
                return value[:_MAX_REFERENCE]
        return uuid.uuid4().hex


Behaviour = Callable[[Any, Call], Awaitable[Any]]


class Admission:
    """Counts the calls under way and refuses those past the limit, at once rather than by a timeout."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False

    def enter(self) -> None:
        """Raises Overloaded past the limit, and Unavailable once closed."""
        if self._closed:
            raise Unavailable("the server is stopping", reason="STOPPING")
        if self._under_way >= self._limit:
            raise Overloaded(f"more than {self._limit} calls are under way")
        self._under_way += 1
        self._idle.clear()
        CALLS_UNDER_WAY.set(self._under_way)

    def leave(self) -> None:
        self._under_way -= 1
        if not self._under_way:
            self._idle.set()
        CALLS_UNDER_WAY.set(self._under_way)

    async def close(self, seconds: float) -> None:
        """Refuses new calls, and waits at most `seconds` for those under way."""
        self._closed = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), seconds)


def add_service(server: aio.Server, service: ServiceDescriptor, servicer: object, admission: Admission) -> None:
    """Serves every RPC of `service` with the method of `servicer` that has its name.

    Raises AttributeError when the servicer lacks one: an RPC in the contract that nobody serves.
    """
    handlers: dict[str, Any] = {}
    for method in service.methods:
        behaviour = _guarded(method, getattr(servicer, method.name), admission)
        handlers[method.name] = grpc.unary_unary_rpc_method_handler(behaviour)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))
    server.add_registered_method_handlers(service.full_name, handlers)


def _guarded(method: MethodDescriptor, behaviour: Behaviour, admission: Admission) -> Any:
    request_class = message_factory.GetMessageClass(method.input_type)
    seconds = CALL_SECONDS.labels(method.name)

    @cache
    def answered(code: grpc.StatusCode) -> Counter:
        return CALLS.labels(method.name, code.name)

    async def answer(payload: bytes, context: aio.ServicerContext[Any, Any]) -> bytes:
        started = time.perf_counter()
        call = Call(context)
        code = grpc.StatusCode.OK
        try:
            admission.enter()
            try:
                response = await behaviour(_decoded(request_class, payload), call)
                return response if isinstance(response, bytes) else response.SerializeToString()
            finally:
                admission.leave()
        except asyncio.CancelledError:
            # The transports cancel a call when the caller leaves, and when its deadline passes.
            passed = call.seconds_left() < _DEADLINE_SLACK_SECONDS
            code = grpc.StatusCode.DEADLINE_EXCEEDED if passed else grpc.StatusCode.CANCELLED
            raise
        except TandemError as error:
            code, status = code_of(error), to_status(error)
            log.debug("call refused", method=method.name, reason=error.reason, reference=call.reference())
        except Exception:
            reference = call.reference()
            code, status = grpc.StatusCode.INTERNAL, internal_status(reference)
            log.exception("call failed", method=method.name, reference=reference)
        finally:
            answered(code).inc()
            seconds.observe(time.perf_counter() - started)
        details = (("grpc-status-details-bin", status.SerializeToString()),)
        # Outside of the handlers above: abort() raises, and what it raises is the transport's to see.
        await context.abort(code, status.message, details)
        raise AssertionError("abort() returned")

    return answer


def _decoded(request_class: type[Message], payload: bytes) -> Message:
    try:
        return request_class.FromString(payload)
    except DecodeError:
        name = request_class.DESCRIPTOR.full_name
        raise InvalidArgument([Violation("", f"the request is not a {name}", "MALFORMED")]) from None
