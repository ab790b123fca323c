"""The owner of a row is read out of its bytes as out of its message."""

from hypothesis import given
from hypothesis import strategies as st

from commerce.query.v1.query_service_pb2 import DESCRIPTOR
from commerce.query.v1.views_pb2 import CustomerProfile, OrderDetails, OrderDetailsLine, SubscriptionDetails
from commerce.type.v1.money_pb2 import Money
from shop.views import OWNERS
from tandem.queries.owners import RowOwner, owner_fields
from tests.support.builders import identity

ME, OTHER = identity("customer", 1), identity("customer", 2)
SERVICE = DESCRIPTOR.services_by_name["QueryService"]


def test_a_query_that_looks_nowhere_whose_a_row_is_lets_nobody_in_to_their_own() -> None:
    assert "GetOrderDetails" not in owner_fields(SERVICE, OWNERS, ())


def test_each_query_for_what_is_somebodys_own_has_its_owner_in_the_request_or_in_its_rows() -> None:
    by_row = {"GetOrderDetails", "BatchGetOrderDetails", "WatchOrderDetails", "GetSubscription"}
    assert owner_fields(SERVICE, OWNERS, by_row | {"GetProduct"}) == {
        "GetOrderDetails": "",
        "BatchGetOrderDetails": "",
        "WatchOrderDetails": "",
        "GetSubscription": "",
        "ListRecentOrders": "customer_id",
        "GetCustomer": "customer_id",
        "ListSubscriptions": "customer_id",
    }


@given(st.sampled_from([ME, ME.upper(), OTHER, "", "x" * 300]), st.integers(0, 30), st.booleans())
def test_the_owner_is_found_whatever_else_the_row_holds(customer: str, lines: int, has_more: bool) -> None:
    row = OrderDetails(
        order_id=identity("order", 1) if has_more else "",
        customer_id=customer,
        lines=[OrderDetailsLine(product_name="x" * 200, quantity=2**30)] * lines,
        total=Money(minor_units=-1) if has_more else None,
        version=2**63,
    ).SerializeToString()
    assert RowOwner(OrderDetails, "customer_id").is_of(row, ME) is (customer.lower() == ME)
    assert RowOwner(OrderDetails, "customer_id").is_of(b"before" + row, ME, 6) is (customer.lower() == ME)


def test_the_owner_is_found_behind_fields_of_each_kind() -> None:
    # A varint, 8 bytes, 4 bytes, text; then the owner, which is field 2.
    before = b"\x08\xff\xff\x01" + b"\x19" + bytes(8) + b"\x25" + bytes(4) + b"\x2a\x01x"
    assert RowOwner(SubscriptionDetails, "customer_id").is_of(before + b"\x12\x24" + ME.encode(), ME)


@given(st.binary(max_size=100))
def test_bytes_that_are_no_row_are_nobodys(row: bytes) -> None:
    assert not RowOwner(CustomerProfile, "customer_id").is_of(row, ME)
