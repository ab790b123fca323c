from typing import Any

import grpc
import pytest
from grpc_status import rpc_status

from tandem.client import errors
from tandem.client.errors import (
    AlreadyExists,
    CallFailed,
    CursorExpired,
    DeadlineExceeded,
    InvalidRequest,
    MessageTooLarge,
    MethodUnknown,
    NotFound,
    Overloaded,
    RequestIdReused,
    RuleBroken,
    ServerBug,
    Unavailable,
    VersionMismatch,
    ViewBehind,
    typed,
)
from tandem.runtime import errors as server
from tests.support.fake_channel import ending


class Raised(grpc.RpcError):
    """As grpc raises them."""

    def __init__(self, answer: server.TandemError | tuple[grpc.StatusCode, str]) -> None:
        self.trailers: Any
        self.trailers, self._code, self._details = ending(answer)

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> tuple[Any, ...]:
        return tuple(self.trailers)


def of(answer: server.TandemError | tuple[grpc.StatusCode, str]) -> CallFailed:
    return typed(Raised(answer), "PlaceOrder")


def test_every_error_is_in_the_drawing() -> None:
    kinds = [it for it in vars(errors).values() if isinstance(it, type) and issubclass(it, CallFailed)]
    assert len(kinds) > 10
    assert [it.__name__ for it in kinds if it.__name__ not in (errors.__doc__ or "")] == []


@pytest.mark.parametrize(
    ("answer", "kind", "reason", "transient"),
    [
        (server.InvalidArgument([server.Violation("lines", "is required", "REQUIRED")]), InvalidRequest, "", False),
        (
            server.InvalidArgument([server.Violation("request_id", "was used")], reason="REQUEST_ID_REUSED"),
            RequestIdReused,
            "REQUEST_ID_REUSED",
            False,
        ),
        (server.NotFound("order", "orders/7"), NotFound, "NOT_FOUND", False),
        (server.AlreadyExists("order", "orders/7"), AlreadyExists, "ALREADY_EXISTS", False),
        (server.PreconditionFailed([server.Violation("x", "y", "OUT_OF_STOCK")]), RuleBroken, "OUT_OF_STOCK", False),
        (server.PreconditionFailed([server.Violation("x", "y", "A_NEW_RULE")]), RuleBroken, "A_NEW_RULE", False),
        (server.Conflict("changed", reason="VERSION_MISMATCH"), VersionMismatch, "VERSION_MISMATCH", False),
        (server.OutOfRange("gone", reason="CURSOR_EXPIRED"), CursorExpired, "CURSOR_EXPIRED", False),
        (server.Overloaded("full"), Overloaded, "OVERLOADED", True),
        (server.TooLarge("the request", 2, 1), MessageTooLarge, "MESSAGE_TOO_LARGE", False),
        (server.UnknownMethod("/x/Y"), MethodUnknown, "UNKNOWN_METHOD", False),
        (server.Unavailable("damaged", reason="ROW_DAMAGED"), Unavailable, "ROW_DAMAGED", True),
        (server.Unavailable("away", reason="STORE_UNAVAILABLE"), Unavailable, "STORE_UNAVAILABLE", True),
        (server.Unavailable("3 behind", reason="PROJECTION_LAG"), ViewBehind, "PROJECTION_LAG", True),
        (server.DeadlineExceeded("too late"), DeadlineExceeded, "DEADLINE_EXCEEDED", True),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else None,
)
def test_a_servers_refusal_becomes_its_error(
    answer: server.TandemError, kind: type[CallFailed], reason: str, transient: bool
) -> None:
    error = of(answer)
    assert type(error) is kind
    assert error.reason == (reason or "INVALID_REQUEST")
    assert error.transient is transient
    assert error.message == answer.message
    assert error.call == "PlaceOrder"


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, Unavailable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, DeadlineExceeded),
        # A message that is too large to receive, a proxy's route that is missing, a stream that was reset.
        (grpc.StatusCode.RESOURCE_EXHAUSTED, CallFailed),
        (grpc.StatusCode.NOT_FOUND, CallFailed),
        (grpc.StatusCode.INTERNAL, CallFailed),
        (grpc.StatusCode.UNIMPLEMENTED, CallFailed),
    ],
)
def test_what_is_not_tandems_word_is_taken_for_no_more_than_it_says(
    code: grpc.StatusCode, kind: type[CallFailed]
) -> None:
    error = of((code, "upstream reset"))
    assert type(error) is kind
    assert error.reason == ""
    assert error.reasons == frozenset()


def test_every_violation_is_there_and_in_the_message() -> None:
    error = of(
        server.PreconditionFailed(
            [
                server.Violation("products/1", "1 in stock, 3 ordered", "OUT_OF_STOCK"),
                server.Violation("products/2", "is no longer sold", "PRODUCT_DISCONTINUED"),
            ]
        )
    )
    assert error.reasons == {"OUT_OF_STOCK", "PRODUCT_DISCONTINUED"}
    assert [(it.subject, it.reason) for it in error.violations] == [
        ("products/1", "OUT_OF_STOCK"),
        ("products/2", "PRODUCT_DISCONTINUED"),
    ]
    assert str(error) == (
        "PlaceOrder: FAILED_PRECONDITION (OUT_OF_STOCK): refused: products/1: 1 in stock, 3 ordered (and 1 more); "
        "products/2: is no longer sold (PRODUCT_DISCONTINUED)"
    )


def test_what_a_reason_adds_has_a_name() -> None:
    mismatch = of(server.Conflict("changed", reason="VERSION_MISMATCH", metadata={"current_version": "3"}))
    assert isinstance(mismatch, VersionMismatch)
    assert mismatch.current_version == 3
    behind = of(server.Unavailable("late", reason="PROJECTION_LAG", retry_after=1.5, metadata={"behind": "12"}))
    assert isinstance(behind, ViewBehind)
    assert (behind.behind, behind.retry_after) == (12, 1.5)
    expired = of(server.OutOfRange("gone", reason="CURSOR_EXPIRED", metadata={"oldest_cursor": "1abc"}))
    assert isinstance(expired, CursorExpired)
    assert expired.oldest_cursor == "1abc"
    assert of(server.NotFound("order", "orders/7")).resource == "orders/7"
    assert str(of(server.NotFound("order", "orders/7"))) == "PlaceOrder: NOT_FOUND: orders/7 is not known"
    assert VersionMismatch(grpc.StatusCode.ABORTED).current_version is None


def test_a_bug_of_the_server_has_the_reference_of_its_log() -> None:
    status = server.internal_status("4711")
    raised = Raised((grpc.StatusCode.INTERNAL, status.message))
    raised.trailers = (("grpc-status-details-bin", status.SerializeToString()),)
    error = typed(raised, "PlaceOrder")
    assert isinstance(error, ServerBug)
    assert error.reference == "4711"


def test_details_that_cannot_be_read_leave_the_code() -> None:
    raised = Raised((grpc.StatusCode.UNAVAILABLE, "away"))
    raised.trailers = (("grpc-status-details-bin", b"\xff\xff"),)
    assert type(typed(raised, "PlaceOrder")) is Unavailable


def test_what_handles_grpcs_errors_handles_these() -> None:
    error = of(server.NotFound("order", "orders/7"))
    with pytest.raises(grpc.RpcError) as caught:
        raise error
    assert caught.value is error
    assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "orders/7 is not known")
    status = rpc_status.from_call(error)
    assert status is not None
    assert len(status.details) == 2
