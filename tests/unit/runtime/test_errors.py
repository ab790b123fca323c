from typing import TypeVar

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from tandem.runtime.errors import (
    DOMAIN,
    MAX_DETAILS_BYTES,
    AlreadyExists,
    Conflict,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    Overloaded,
    PreconditionFailed,
    TandemError,
    Unavailable,
    Violation,
    internal_status,
    to_status,
)

T = TypeVar("T", bound=Message)

VIOLATION = Violation("lines[2].quantity", "must be at least 1", "OUT_OF_RANGE")


def detail(status: status_pb2.Status, kind: type[T]) -> T:
    found = kind()
    assert [packed for packed in status.details if packed.Unpack(found)], f"no {kind.__name__} in {status}"
    return found


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidArgument([VIOLATION]), grpc.StatusCode.INVALID_ARGUMENT),
        (NotFound("order", "orders/1"), grpc.StatusCode.NOT_FOUND),
        (AlreadyExists("order", "orders/1"), grpc.StatusCode.ALREADY_EXISTS),
        (PreconditionFailed([VIOLATION]), grpc.StatusCode.FAILED_PRECONDITION),
        (Conflict("changed", reason="VERSION_MISMATCH"), grpc.StatusCode.ABORTED),
        (Overloaded("full"), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (Unavailable("away", reason="DATABASE_AWAY"), grpc.StatusCode.UNAVAILABLE),
        (DeadlineExceeded("late"), grpc.StatusCode.DEADLINE_EXCEEDED),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, TandemError) else "",
)
def test_an_error_has_its_code_its_message_and_an_error_info(error: TandemError, code: grpc.StatusCode) -> None:
    status = to_status(error)
    assert (status.code, status.message) == (code.value[0], error.message)
    info = detail(status, error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain) == (error.reason, DOMAIN)


def test_a_wrong_request_names_every_violated_field() -> None:
    status = to_status(InvalidArgument([VIOLATION, Violation("customer_id", "is required", "REQUIRED")]))
    violations = detail(status, error_details_pb2.BadRequest).field_violations
    assert [(it.field, it.description, it.reason) for it in violations] == [
        ("lines[2].quantity", "must be at least 1", "OUT_OF_RANGE"),
        ("customer_id", "is required", "REQUIRED"),
    ]
    assert status.message == "invalid request: lines[2].quantity: must be at least 1 (and 1 more)"


def test_a_broken_rule_names_the_rule_and_what_broke_it() -> None:
    status = to_status(PreconditionFailed([Violation("products/7", "2 are left", "OUT_OF_STOCK")]))
    [violation] = detail(status, error_details_pb2.PreconditionFailure).violations
    assert (violation.type, violation.subject, violation.description) == ("OUT_OF_STOCK", "products/7", "2 are left")
    assert detail(status, error_details_pb2.ErrorInfo).reason == "OUT_OF_STOCK"


@pytest.mark.parametrize("error", [NotFound("order", "orders/1"), AlreadyExists("order", "orders/1")])
def test_a_resource_is_named_with_its_type(error: TandemError) -> None:
    resource = detail(to_status(error), error_details_pb2.ResourceInfo)
    assert (resource.resource_type, resource.resource_name) == ("order", "orders/1")


@pytest.mark.parametrize(
    "error", [Overloaded("full", retry_after=0.25), Unavailable("away", reason="DATABASE_AWAY", retry_after=0.25)]
)
def test_what_may_be_tried_again_says_when(error: TandemError) -> None:
    assert detail(to_status(error), error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() == 250


def test_metadata_goes_into_the_error_info() -> None:
    status = to_status(Conflict("changed", reason="VERSION_MISMATCH", metadata={"current_version": "7"}))
    assert detail(status, error_details_pb2.ErrorInfo).metadata == {"current_version": "7"}


def details_size(status: status_pb2.Status) -> int:
    return sum(len(packed.SerializeToString()) for packed in status.details)


@pytest.mark.parametrize("kind", [InvalidArgument, PreconditionFailed])
def test_of_five_hundred_long_violations_the_first_are_listed_and_the_rest_counted(
    kind: type[InvalidArgument | PreconditionFailed],
) -> None:
    violations = [
        Violation(f"lines[{number}].product_id", f"{number} " + "é" * 500, "UNKNOWN") for number in range(500)
    ]
    status = to_status(kind(violations))
    assert details_size(status) <= MAX_DETAILS_BYTES
    assert len(status.SerializeToString()) < 2 * MAX_DETAILS_BYTES
    if kind is InvalidArgument:
        bad = detail(status, error_details_pb2.BadRequest).field_violations
        *listed, rest = [(it.field, it.description, it.reason) for it in bad]
    else:
        broken = detail(status, error_details_pb2.PreconditionFailure).violations
        *listed, rest = [(it.subject, it.description, it.type) for it in broken]
    assert len(listed) >= 5
    assert [subject for subject, _, _ in listed] == [violation.subject for violation in violations[: len(listed)]]
    assert rest == ("", f"and {500 - len(listed)} more", "MORE_VIOLATIONS")


@given(st.lists(st.builds(Violation, st.text(max_size=300), st.text(max_size=600)), min_size=1, max_size=60))
def test_details_fit_whatever_the_violations_say(violations: list[Violation]) -> None:
    for error in (InvalidArgument(violations), PreconditionFailed(violations)):
        assert details_size(to_status(error)) <= MAX_DETAILS_BYTES


def test_a_bug_shows_its_reference_and_nothing_else() -> None:
    status = internal_status("abc123")
    assert status.code == grpc.StatusCode.INTERNAL.value[0]
    assert status.message == "internal error, reference abc123"
    assert detail(status, error_details_pb2.ErrorInfo).metadata == {"reference": "abc123"}
