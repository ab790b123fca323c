import uuid

from benchmarks import shop
from benchmarks.copies import copy_id
from commerce.command.v1.command_service_pb2 import PlaceOrderRequest


def test_an_order_made_of_bytes_is_the_message_that_protobuf_makes() -> None:
    order = shop.order(7)
    assert order.order_id == shop.order_id(7)
    assert len(order.lines) == len({line.product_id for line in order.lines}) == shop.LINES
    assert shop.order_body(7) == order.SerializeToString(deterministic=True)
    assert shop.customer_of(7) == order.customer_id


def test_orders_with_the_same_cart_are_different_orders() -> None:
    one, other = (shop.order(number) for number in (7, 7 + len(shop.carts())))
    assert one.lines == other.lines
    ids = {one.request_id, one.order_id, other.request_id, other.order_id}
    assert len({uuid.UUID(it) for it in ids}) == 4


def test_ids_in_the_order_of_time_are_uuids_of_version_7_in_the_order_of_their_numbers() -> None:
    orders = [PlaceOrderRequest.FromString(shop.timed_order_body(number)) for number in range(100)]
    ids = [uuid.UUID(it.request_id) for it in orders]
    assert ids == sorted(set(ids))
    assert {(it.version, it.variant) for it in ids} == {(7, uuid.RFC_4122)}
    assert not any(it.HasField("order_id") for it in orders)
    placed = shop.order(7)
    assert (orders[7].customer_id, orders[7].lines) == (placed.customer_id, placed.lines)


def test_ids_at_random_are_before_all_in_the_order_of_time() -> None:
    orders = [shop.order(number) for number in range(100)]
    random = [it.request_id for it in orders] + [it.order_id for it in orders]
    random += [copy_id(it.order_id, number) for it in orders for number in (1, 999)]
    random += [it.request_id for it in shop.registrations()] + [it.request_id for it in shop.additions()]
    assert len(set(random)) == len(random)
    assert max(random) < PlaceOrderRequest.FromString(shop.timed_order_body(0)).request_id
