"""Which field of a malformed request is named."""

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from commerce.command.v1.command_service_pb2 import PlaceOrderLine, PlaceOrderRequest
from commerce.query.v1.query_service_pb2 import BatchGetOrderDetailsRequest, GetOrderDetailsRequest
from tandem.runtime.malformed import malformed_field

BROKEN = b"\xff"


def broken(message: Message) -> bytes:
    """Its bytes, with a text that is no UTF-8 in place of the letter X."""
    return message.SerializeToString().replace(b"X", BROKEN)


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (GetOrderDetailsRequest(order_id="X"), "order_id"),
        (BatchGetOrderDetailsRequest(order_ids=["1", "2", "X"]), "order_ids[2]"),
        (
            PlaceOrderRequest(
                order_id="1", lines=[PlaceOrderLine(product_id="2", quantity=3), PlaceOrderLine(product_id="X")]
            ),
            "lines[1].product_id",
        ),
    ],
    ids=lambda it: it if isinstance(it, str) else "",
)
def test_the_first_malformed_field_is_named_by_its_path(message: Message, field: str) -> None:
    assert malformed_field(type(message), broken(message)) == field


@pytest.mark.parametrize(
    "payload",
    [b"\xff\xff", b"\x0a\x7fx", b"\x0b", b"\xff" * 20, b"\xfa\x3f\x01" + BROKEN],
    ids=["half a number", "half a text", "a group", "a number that is too long", "a field of nobody's"],
)
def test_where_it_cannot_be_known_none_is_named(payload: bytes) -> None:
    assert malformed_field(GetOrderDetailsRequest, payload + b"\x07") == ""


@given(st.binary(max_size=200))
def test_no_bytes_are_an_error_here(payload: bytes) -> None:
    assert isinstance(malformed_field(PlaceOrderRequest, payload), str)


def test_no_more_than_a_thousand_fields_are_looked_at() -> None:
    ids = ["1"] * 1000 + ["X"]
    assert malformed_field(BatchGetOrderDetailsRequest, broken(BatchGetOrderDetailsRequest(order_ids=ids[1:]))) != ""
    assert malformed_field(BatchGetOrderDetailsRequest, broken(BatchGetOrderDetailsRequest(order_ids=ids))) == ""
