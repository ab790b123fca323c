import uuid

from benchmarks import shop


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
