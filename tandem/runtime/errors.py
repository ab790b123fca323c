"""The errors that a caller may see, and the one table from kind to status.

    TandemError
     ├── InvalidArgument      INVALID_ARGUMENT     the request itself is wrong: every violated field
     ├── NotFound             NOT_FOUND            what the request names is not there
     │    └── SomebodyElses   NOT_FOUND            it is, and the caller may not know
     ├── AlreadyExists        ALREADY_EXISTS       what the request would create is there
     ├── PreconditionFailed   FAILED_PRECONDITION  a business rule, or a token of another feed
     ├── Conflict             ABORTED              the caller's picture is out of date
     ├── OutOfRange           OUT_OF_RANGE         a place that the server does not have, any more or yet
     ├── Overloaded           RESOURCE_EXHAUSTED   a limit is reached; nothing was done
     ├── TooLarge             RESOURCE_EXHAUSTED   a message has more bytes than may be sent or received
     ├── UnknownMethod        UNIMPLEMENTED        the server has no such RPC
     ├── Unauthenticated      UNAUTHENTICATED      nothing says who calls, or it is not so
     ├── NotPermitted         PERMISSION_DENIED    the caller has no role for it
     ├── Unavailable          UNAVAILABLE          a store is away, or the view is behind; safe to retry
     ├── DeadlineExceeded     DEADLINE_EXCEEDED    the caller's time passed before the work began
     └── RefusedBefore        any of the above     a refusal that was stored, told once more

Anything else that a handler raises is INTERNAL: a bug, logged once under a reference that the caller gets too.
"""

from dataclasses import dataclass

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

DOMAIN = "tandem"

# Proxies and grpc cut metadata of more than 8 KiB, and base64 adds a third; the rest of the trailers needs room too.
MAX_DETAILS_BYTES = 4096
_ROOM_FOR_COUNT = 80
# A description that quotes a caller's value must not push the other violations out.
_MAX_DESCRIPTION = 200


@dataclass(frozen=True)
class Violation:
    """One thing that is wrong.

    subject: a field's path (`lines[2].quantity`) or a resource's name (`products/…`).
    description: what is wrong with it, as a sentence for a developer.
    kind: the broken rule in UPPER_SNAKE; for fields too (`REQUIRED`, `OUT_OF_RANGE`).
    """

    subject: str
    description: str
    kind: str = "INVALID"


class TandemError(Exception):
    """The base of all errors that are answers. `reason` is UPPER_SNAKE and stable; `metadata` goes into ErrorInfo."""

    def __init__(self, message: str, *, reason: str, metadata: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.metadata = metadata or {}


class InvalidArgument(TandemError):
    def __init__(self, violations: list[Violation], *, reason: str = "INVALID_REQUEST") -> None:
        super().__init__(_summary("invalid request", violations), reason=reason)
        self.violations = violations


class NotFound(TandemError):
    def __init__(self, resource_type: str, resource_name: str) -> None:
        super().__init__(f"{resource_name} is not known", reason="NOT_FOUND")
        self.resource_type = resource_type
        self.resource_name = resource_name


class SomebodyElses(NotFound):
    """As NotFound to the caller; the audit is told the truth."""


class AlreadyExists(TandemError):
    def __init__(self, resource_type: str, resource_name: str) -> None:
        super().__init__(f"{resource_name} exists already", reason="ALREADY_EXISTS")
        self.resource_type = resource_type
        self.resource_name = resource_name


class PreconditionFailed(TandemError):
    def __init__(self, violations: list[Violation]) -> None:
        super().__init__(_summary("refused", violations), reason=violations[0].kind)
        self.violations = violations


class Conflict(TandemError):
    pass


class OutOfRange(TandemError):
    pass


class Overloaded(TandemError):
    def __init__(self, message: str, *, retry_after: float = 0.1) -> None:
        super().__init__(message, reason="OVERLOADED")
        self.retry_after = retry_after


class TooLarge(TandemError):
    def __init__(self, what: str, size: int | None, limit: int) -> None:
        """size: in bytes, as limit; None where it is larger, and not known."""
        more = "more" if size is None else size
        super().__init__(f"{what} has {more} bytes; at most {limit} are allowed", reason="MESSAGE_TOO_LARGE")


class UnknownMethod(TandemError):
    def __init__(self, path: str) -> None:
        super().__init__(f"this server has no {path[:_MAX_DESCRIPTION]}", reason="UNKNOWN_METHOD")


class Unauthenticated(TandemError):
    pass


class NotPermitted(TandemError):
    def __init__(self, message: str) -> None:
        super().__init__(message, reason="NOT_PERMITTED")


class Unavailable(TandemError):
    def __init__(
        self, message: str, *, reason: str, retry_after: float = 0.5, metadata: dict[str, str] | None = None
    ) -> None:
        super().__init__(message, reason=reason, metadata=metadata)
        self.retry_after = retry_after


class DeadlineExceeded(TandemError):
    def __init__(self, message: str) -> None:
        super().__init__(message, reason="DEADLINE_EXCEEDED")


class RefusedBefore(TandemError):
    """An error as it was told before, word for word."""

    def __init__(self, status: status_pb2.Status) -> None:
        """status: what `to_status` made of the error then."""
        info = error_details_pb2.ErrorInfo()
        status.details[0].Unpack(info)
        super().__init__(status.message, reason=info.reason, metadata=dict(info.metadata))
        self.status = status


_BY_NUMBER: dict[int, grpc.StatusCode] = {it.value[0]: it for it in grpc.StatusCode}
_CODES: dict[type[TandemError], grpc.StatusCode] = {
    InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    NotFound: grpc.StatusCode.NOT_FOUND,
    SomebodyElses: grpc.StatusCode.NOT_FOUND,
    AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    PreconditionFailed: grpc.StatusCode.FAILED_PRECONDITION,
    Conflict: grpc.StatusCode.ABORTED,
    OutOfRange: grpc.StatusCode.OUT_OF_RANGE,
    Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    TooLarge: grpc.StatusCode.RESOURCE_EXHAUSTED,
    UnknownMethod: grpc.StatusCode.UNIMPLEMENTED,
    Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    NotPermitted: grpc.StatusCode.PERMISSION_DENIED,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
    DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
}


def code_of(error: TandemError) -> grpc.StatusCode:
    """The status code of an error; KeyError for a kind that is not in the table."""
    return _BY_NUMBER[error.status.code] if isinstance(error, RefusedBefore) else _CODES[type(error)]


def to_status(error: TandemError) -> status_pb2.Status:
    """The error as google.rpc.Status: ErrorInfo first, then what its kind adds, under MAX_DETAILS_BYTES together."""
    if isinstance(error, RefusedBefore):
        return error.status
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)
    details: list[Message] = [info]
    match error:
        case InvalidArgument() | PreconditionFailed():
            details.append(_violations(error, MAX_DETAILS_BYTES - _packed_size(info)))
        case NotFound() | AlreadyExists():
            details.append(
                error_details_pb2.ResourceInfo(
                    resource_type=error.resource_type, resource_name=error.resource_name, description=error.message
                )
            )
        case Overloaded() | Unavailable():
            delay = Duration()
            delay.FromMilliseconds(int(error.retry_after * 1000))
            details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    number: int = code_of(error).value[0]
    return status_pb2.Status(code=number, message=error.message, details=[_pack(detail) for detail in details])


def internal_status(reference: str) -> status_pb2.Status:
    """The status of a bug: nothing of the inside, only the reference under which it is in the log."""
    info = error_details_pb2.ErrorInfo(reason="INTERNAL", domain=DOMAIN, metadata={"reference": reference})
    return status_pb2.Status(
        code=code_pb2.INTERNAL, message=f"internal error, reference {reference}", details=[_pack(info)]
    )


def _summary(kind: str, violations: list[Violation]) -> str:
    first = violations[0]
    more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
    subject = f"{first.subject}: " if first.subject else ""
    return f"{kind}: {subject}{_cut(first.description)}{more}"


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_DESCRIPTION else text[: _MAX_DESCRIPTION - 1] + "…"


def _violations(
    error: InvalidArgument | PreconditionFailed, room: int
) -> error_details_pb2.BadRequest | error_details_pb2.PreconditionFailure:
    """As many of them as there is room for, and how many more there are."""
    if isinstance(error, InvalidArgument):
        detail = error_details_pb2.BadRequest()
        entries, names = detail.field_violations, ("field", "description", "reason")
    else:
        detail = error_details_pb2.PreconditionFailure()
        entries, names = detail.violations, ("subject", "description", "type")

    def add(it: Violation) -> Message:
        entry: Message = entries.add(**dict(zip(names, (it.subject, _cut(it.description), it.kind), strict=True)))
        return entry

    for number, violation in enumerate(error.violations):
        entry = add(violation)
        if _packed_size(detail) > room - _ROOM_FOR_COUNT:
            entries.remove(entry)
            add(Violation("", f"and {len(error.violations) - number} more", "MORE_VIOLATIONS"))
            break
    return detail


def _pack(detail: Message) -> Any:
    packed = Any()
    packed.Pack(detail)
    return packed


def _packed_size(detail: Message) -> int:
    return _pack(detail).ByteSize() + 4
