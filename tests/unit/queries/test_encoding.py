"""Responses composed of bytes equal the messages built field by field."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commerce.query.v1 import query_service_pb2 as queries
from commerce.query.v1.views_pb2 import OrderDetails, OrderDetailsLine
from commerce.type.v1.money_pb2 import Money
from tandem.queries.encoding import EncodedField

orders = st.builds(
    OrderDetails,
    order_id=st.text(max_size=40),
    lines=st.lists(st.builds(OrderDetailsLine, product_name=st.text(max_size=300)), max_size=5),
    total=st.builds(Money, minor_units=st.integers(-(2**63), 2**63 - 1)),
)


@given(orders=st.lists(orders, max_size=5), missing=st.lists(st.text(max_size=200), max_size=5), as_of=st.text())
def test_a_composed_response_parses_as_the_message_built_normally(
    orders: list[OrderDetails], missing: list[str], as_of: str
) -> None:
    response = queries.BatchGetOrderDetailsResponse
    value, absent, token = (EncodedField(response, it) for it in ("order_details", "missing_order_ids", "as_of"))

    composed = b"".join(
        [
            *(value(it.SerializeToString()) for it in orders),
            *(absent(it.encode()) for it in missing),
            token(as_of.encode()),
        ]
    )

    assert response.FromString(composed) == response(order_details=orders, missing_order_ids=missing, as_of=as_of)


@pytest.mark.parametrize("length", [0, 1, 127, 128, 16_383, 16_384, 2_097_152])
def test_lengths_of_every_size_are_encoded(length: int) -> None:
    response = queries.GetOrderDetailsResponse
    text = "x" * length

    assert response.FromString(EncodedField(response, "as_of")(text.encode())).as_of == text


def test_a_field_that_the_contract_lacks_is_refused_at_once() -> None:
    with pytest.raises(KeyError):
        EncodedField(queries.GetOrderDetailsResponse, "order")


def test_a_number_is_not_mistaken_for_bytes() -> None:
    with pytest.raises(AssertionError):
        EncodedField(queries.ListRecentOrdersRequest, "page_size")
