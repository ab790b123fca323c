"""What a call can fail with, typed from the error's details: the google.rpc.Status in its trailing metadata.

    CallFailed
     ├── InvalidRequest        INVALID_ARGUMENT     the request itself is wrong: `violations` names every field
     │    └── RequestIdReused  INVALID_ARGUMENT     the request_id was used for another command
     ├── NotFound              NOT_FOUND            what the request names is not there: `resource`
     ├── AlreadyExists         ALREADY_EXISTS       what the request would create is there: `resource`
     ├── RuleBroken            FAILED_PRECONDITION  a business rule: `violations` and `reasons` name each broken one
     ├── TokenOutdated         FAILED_PRECONDITION  the token is from before a restore of the write store
     ├── NotConfigured         FAILED_PRECONDITION  the server is not set up for it
     ├── VersionMismatch       ABORTED              `expected_version` is not the `current_version`
     ├── CursorExpired         OUT_OF_RANGE         events after the cursor are not kept: `oldest_cursor`
     ├── CursorAhead           OUT_OF_RANGE         the feed is not as far as the cursor
     ├── Overloaded            RESOURCE_EXHAUSTED   a limit of the server is reached; nothing was done
     │    └── MessageTooLarge  RESOURCE_EXHAUSTED   a request or its answer has too many bytes
     ├── MethodUnknown         UNIMPLEMENTED        the server has no such RPC
     ├── Unauthenticated       UNAUTHENTICATED      nothing says who calls, or it is not so
     │    └── TokenExpired     UNAUTHENTICATED      a new token is needed
     ├── NotPermitted          PERMISSION_DENIED    the caller has no role for it
     ├── Unavailable           UNAVAILABLE          a store or a server is away
     │    ├── ViewBehind       UNAVAILABLE          the view did not reach the token in time: `behind`
     │    ├── OutcomeUnknown   UNAVAILABLE          a command that is done, or is not
     │    ├── RowsBusy         UNAVAILABLE          others keep rows locked that a command needs
     │    └── EventUnreadable  UNAVAILABLE          the feed's server is older than an event
     ├── DeadlineExceeded      DEADLINE_EXCEEDED    the call's time passed
     └── ServerBug             INTERNAL             `reference` is what the server's log calls it

Any other status is a plain CallFailed. All of them are grpc.RpcError too: what handles those goes on working.
`__cause__` is the error that gRPC raised.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

_DETAILS_KEY = "grpc-status-details-bin"
_DOMAIN = "tandem"

D = TypeVar("D", bound=Message)


@dataclass(frozen=True)
class Violation:
    """One thing that is wrong.

    subject: a field's path (`lines[2].quantity`) or a resource's name (`accounts/…`).
    reason: the broken rule in UPPER_SNAKE; for a field what is wrong with it, such as REQUIRED.
    description: a sentence for a developer.
    """

    subject: str
    reason: str
    description: str


@dataclass(frozen=True)
class Details:
    """An error's google.rpc details.

    reason: UPPER_SNAKE, stable, of the domain's contract or of a newer server; empty when it is not of Tandem (a
        proxy's error, or the connection's).
    metadata: what the reason adds. retry_after: seconds, None where the server asks for no pause.
    resource: the name of what is not there, or is there already, such as `accounts/…`.
    """

    reason: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    violations: tuple[Violation, ...] = ()
    retry_after: float | None = None
    resource: str = ""


class CallFailed(grpc.RpcError):
    """A call that the server refused, or that did not come through.

    call: the RPC's name, such as OpenAccount. message: a sentence for a developer; for users go by `reason`.
    The other attributes are those of Details.
    """

    transient: ClassVar[bool] = False
    """Whether the same request may be answered later. For a command that means the same request_id."""

    def __init__(
        self,
        status: grpc.StatusCode,
        message: str = "",
        details: Details | None = None,
        *,
        call: str = "",
        trailing_metadata: tuple[Any, ...] = (),
    ) -> None:
        self.call = call
        self.message = message
        details = details or Details()
        self.reason = details.reason
        self.metadata = details.metadata
        self.violations = details.violations
        self.retry_after = details.retry_after
        self.resource = details.resource
        self._status = status
        self._trailing_metadata = trailing_metadata
        super().__init__(str(self))

    def __str__(self) -> str:
        """Withdraw: FAILED_PRECONDITION (OVERDRAWN): refused: accounts/…: 1 is there; and each other violation."""
        call = f"{self.call}: " if self.call else ""
        reason = f" ({self.reason})" if self.reason and self.reason != self._status.name else ""
        # The server's message tells the first one.
        others = "".join(f"; {it.subject}: {it.description} ({it.reason})" for it in self.violations[1:])
        return f"{call}{self._status.name}{reason}: {self.message}{others}"

    @property
    def reasons(self) -> frozenset[str]:
        """The reason of the error and, for a broken business rule, of every other rule that is broken."""
        return frozenset({self.reason} - {""})

    # As the errors that grpc raises.

    def code(self) -> grpc.StatusCode:
        return self._status

    def details(self) -> str:
        return self.message

    def trailing_metadata(self) -> tuple[Any, ...]:
        return self._trailing_metadata


class InvalidRequest(CallFailed):
    """INVALID_ARGUMENT: repeating it cannot help. `violations` names every wrong field."""


class RequestIdReused(InvalidRequest):
    """INVALID_ARGUMENT: the request_id was used for another command, or for the same one with other fields."""


class NotFound(CallFailed):
    """NOT_FOUND: `resource` says what."""


class AlreadyExists(CallFailed):
    """ALREADY_EXISTS: `resource` says what."""


class RuleBroken(CallFailed):
    """FAILED_PRECONDITION, a business rule: `reasons` has the name of each broken one."""

    @property
    def reasons(self) -> frozenset[str]:
        return super().reasons | {it.reason for it in self.violations}


class TokenOutdated(CallFailed):
    """FAILED_PRECONDITION: the write store was restored since the token was made, and what it stood for may be gone; or
    the token was never given out.

    A session forgets the tokens that it sent when it sees this, so the next query is answered.
    """


class NotConfigured(CallFailed):
    """FAILED_PRECONDITION: the server is not set up to answer such a query."""


class VersionMismatch(CallFailed):
    """ABORTED: read again, decide again."""

    @property
    def current_version(self) -> int | None:
        """The version that is there, where the server says it."""
        return _number(self.metadata.get("current_version"))


class CursorExpired(CallFailed):
    """OUT_OF_RANGE: what was made of the events is to be built anew."""

    @property
    def oldest_cursor(self) -> str:
        """The cursor after which all events are there."""
        return self.metadata.get("oldest_cursor", "")


class CursorAhead(CallFailed):
    """OUT_OF_RANGE: the feed is not yet as far as the cursor."""


class Overloaded(CallFailed):
    """RESOURCE_EXHAUSTED: nothing was done. Repeat it after `retry_after`, and with longer pauses each time."""

    transient = True


class Unauthenticated(CallFailed):
    """UNAUTHENTICATED: to repeat the call with the same token or certificate cannot help."""


class TokenExpired(Unauthenticated):
    """UNAUTHENTICATED: with a new token the call comes through."""


class NotPermitted(CallFailed):
    """PERMISSION_DENIED: the caller has no role for it, or only for what is its own."""


class Unavailable(CallFailed):
    """UNAVAILABLE: safe to repeat, a command with its request_id."""

    transient = True


class MessageTooLarge(Overloaded):
    """RESOURCE_EXHAUSTED: a request or its answer has more bytes than the server takes or sends."""

    transient = False


class MethodUnknown(CallFailed):
    """UNIMPLEMENTED: the server has no such RPC."""


class ViewBehind(Unavailable):
    """UNAVAILABLE: the view did not reach the token within max_wait."""

    @property
    def behind(self) -> int | None:
        """How many events are missing, where the server says it."""
        return _number(self.metadata.get("behind"))


class OutcomeUnknown(Unavailable):
    """UNAVAILABLE: a command that is done, or is not; the same request_id finds out."""


class RowsBusy(Unavailable):
    """UNAVAILABLE: another session keeps rows locked that the command needs; nothing was done."""


class EventUnreadable(Unavailable):
    """UNAVAILABLE: an event of the feed is of a newer type than the server, or damaged."""


class DeadlineExceeded(CallFailed):
    """DEADLINE_EXCEEDED. A command may be done; the same request_id finds out."""

    transient = True


class ServerBug(CallFailed):
    """INTERNAL."""

    @property
    def reference(self) -> str:
        """What the server's log calls this failure."""
        return self.metadata.get("reference", "")


BY_REASON: Mapping[str, type[CallFailed]] = {
    "REQUEST_ID_REUSED": RequestIdReused,
    "VERSION_MISMATCH": VersionMismatch,
    "OUTCOME_UNKNOWN": OutcomeUnknown,
    "ROWS_BUSY": RowsBusy,
    "MESSAGE_TOO_LARGE": MessageTooLarge,
    "PROJECTION_LAG": ViewBehind,
    "TOKEN_EPOCH_MISMATCH": TokenOutdated,
    "TOKEN_AHEAD": TokenOutdated,
    "FULLY_CONSISTENT_NOT_CONFIGURED": NotConfigured,
    "TOKEN_EXPIRED": TokenExpired,
    "CURSOR_EXPIRED": CursorExpired,
    "CURSOR_AHEAD": CursorAhead,
    "EVENT_UNREADABLE": EventUnreadable,
}
"""The reasons that say more than their code."""

# For other reasons: those that mean the same as their codes; a domain's rules, all FAILED_PRECONDITION; and those of a
# newer server, which the contract says to treat like their codes.
BY_CODE: Mapping[grpc.StatusCode, type[CallFailed]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.FAILED_PRECONDITION: RuleBroken,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.UNIMPLEMENTED: MethodUnknown,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: NotPermitted,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.INTERNAL: ServerBug,
}

# Of errors that are not Tandem's, a proxy's or this machine's own, the code says less: a message that is too large to
# receive is RESOURCE_EXHAUSTED too.
BY_CODE_OF_OTHERS: Mapping[grpc.StatusCode, type[CallFailed]] = {
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
}


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


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() else None
