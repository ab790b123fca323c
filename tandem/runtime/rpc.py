"""How a servicer is put behind the wire, the same way for every RPC and on both transports.

Around each call: admission (a bounded number under way), decoding, the table from errors to status, metrics, one log
line for a bug. A servicer's method is `async (request, Call) -> response message, or its bytes`.
"""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError
from google.rpc import status_pb2
from grpc import aio

from tandem.runtime.errors import (
    InvalidArgument,
    Overloaded,
    TandemError,
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

    def enter(self) -> None:
        if self._under_way >= self._limit:
            raise Overloaded(f"more than {self._limit} calls are under way")
        self._under_way += 1
        CALLS_UNDER_WAY.set(self._under_way)

    def leave(self) -> None:
        self._under_way -= 1
        CALLS_UNDER_WAY.set(self._under_way)


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
    succeeded = CALLS.labels(method.name, "OK")

    async def answer(payload: bytes, context: aio.ServicerContext[Any, Any]) -> bytes:
        started = time.perf_counter()
        try:
            admission.enter()
            try:
                try:
                    request = request_class.FromString(payload)
                except DecodeError:
                    raise InvalidArgument([Violation("", f"is not a {method.input_type.full_name}")]) from None
                response = await behaviour(request, Call(context))
            finally:
                admission.leave()
        except asyncio.CancelledError:
            CALLS.labels(method.name, "CANCELLED").inc()
            raise
        except TandemError as error:
            CALLS.labels(method.name, code_of(error).name).inc()
            log.debug("call refused", method=method.name, reason=error.reason, reference=Call(context).reference())
            await _abort(context, to_status(error))
        except Exception:
            reference = Call(context).reference()
            CALLS.labels(method.name, "INTERNAL").inc()
            log.exception("call failed", method=method.name, reference=reference)
            await _abort(context, internal_status(reference))
        else:
            succeeded.inc()
            return response if isinstance(response, bytes) else response.SerializeToString()
        finally:
            seconds.observe(time.perf_counter() - started)
        raise AssertionError("abort() returned")

    return answer


_STATUS_CODES = {code.value[0]: code for code in grpc.StatusCode}


async def _abort(context: aio.ServicerContext[Any, Any], status: status_pb2.Status) -> None:
    await context.abort(
        _STATUS_CODES[status.code],
        status.message,
        (("grpc-status-details-bin", status.SerializeToString()),),
    )
