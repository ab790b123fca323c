"""From the error that gRPC raises to the typed one: the google.rpc.Status in its trailing metadata."""

from collections.abc import Sequence
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from tandem.client.errors import BY_CODE, BY_CODE_OF_OTHERS, BY_REASON, CallFailed, Details, Violation

_DETAILS_KEY = "grpc-status-details-bin"
_DOMAIN = "tandem"

D = TypeVar("D", bound=Message)


def typed(error: grpc.RpcError, call: str) -> CallFailed:
    """The typed error for what grpc raised, sync or asyncio. call: the RPC's name."""
    # Every error that a call raises is a grpc.Call too; the base class does not say so.
    raised: Any = error
    code: grpc.StatusCode = raised.code()
    trailers = tuple(raised.trailing_metadata() or ())
    details = _details(trailers)
    kind = BY_REASON.get(details.reason) or (BY_CODE if details.reason else BY_CODE_OF_OTHERS).get(code, CallFailed)
    return kind(code, raised.details() or "", details, call=call, trailing_metadata=trailers)


def _details(trailers: Sequence[Any]) -> Details:
    status = status_pb2.Status()
    for key, value in trailers:
        if key == _DETAILS_KEY:
            try:
                status = status_pb2.Status.FromString(value)
            except DecodeError:
                break  # some proxy's: the code alone must do
    info = _find(status, error_details_pb2.ErrorInfo())
    request = _find(status, error_details_pb2.BadRequest())
    rules = _find(status, error_details_pb2.PreconditionFailure())
    retry = _find(status, error_details_pb2.RetryInfo())
    return Details(
        reason=info.reason if info.domain == _DOMAIN else "",
        metadata=dict(info.metadata),
        violations=(
            *(Violation(it.field, it.reason, it.description) for it in request.field_violations),
            *(Violation(it.subject, it.type, it.description) for it in rules.violations),
        ),
        retry_after=retry.retry_delay.ToTimedelta().total_seconds() if retry.HasField("retry_delay") else None,
        resource=_find(status, error_details_pb2.ResourceInfo()).resource_name,
    )


def _find(status: status_pb2.Status, wanted: D) -> Any:
    """Fills `wanted` with the status's detail of that type, and returns it; it stays empty without one."""
    any(detail.Unpack(wanted) for detail in status.details)
    return wanted
