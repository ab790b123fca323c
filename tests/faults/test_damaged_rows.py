"""Rows of the read database that somebody has changed: readers meet them, and they answer again without a person."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import psycopg

from commerce.command.v1 import command_service_pb2 as requests
from commerce.query.v1 import query_service_pb2 as queries
from commerce.type.v1.consistency_pb2 import Consistency
from tandem.testing.stack import up_to, wait_until
from tests.support.builders import add_product, identity, place_order, register_customer, usd
from tests.support.caches import Node
from tests.support.stack import Databases, Stack

ORDER, PRODUCT, CUSTOMER = identity("order", 1), identity("product", 1), identity("customer", 1)


def test_damaged_rows_answer_again_with_the_right_content(
    databases: Databases, tmp_path: Path, cache_nodes: Callable[[int], list[Node]]
) -> None:
    nodes = cache_nodes(up_to(1))
    stack = Stack(databases, tmp_path, nodes=nodes)
    with psycopg.connect(stack.read_url, autocommit=True) as read:
        try:
            stack.start()
            reads_are_repaired(stack, nodes, read)
        finally:
            stack.stop()


def reads_are_repaired(stack: Stack, nodes: list[Node], read: psycopg.Connection[Any]) -> None:
    commands, stub = stack.commands, stack.queries
    commands.RegisterCustomer(register_customer(1))
    commands.AddProduct(add_product(1))
    token = commands.PlaceOrder(place_order(1, lines={1: 3})).receipt.consistency_token
    fresh = Consistency(at_least_as_fresh=token)
    one = queries.GetOrderDetailsRequest(order_id=ORDER, consistency=fresh)
    page = queries.ListRecentOrdersRequest(customer_id=CUSTOMER, consistency=fresh)
    right, listed = stub.GetOrderDetails(one).order_details, stub.ListRecentOrders(page)

    def damage(view: str, key: str, value: str = "'\\xff'") -> None:
        """Where no entry and no memory of the projector hides it."""
        for node in nodes:
            node.flush()
        read.execute(f"UPDATE tandem_read.{view} SET value = {value} WHERE key = '{key}'".encode())

    def answers(call: Callable[[], object]) -> bool:
        try:
            call()
        except grpc.RpcError as error:
            if "is damaged" not in str(error):
                raise
            return False
        return True

    # By id. Nothing is written meanwhile: it is the reader that the projector learns it from.
    damage("order_details", ORDER)
    assert not answers(lambda: stub.GetOrderDetails(one))
    wait_until(lambda: answers(lambda: stub.GetOrderDetails(one)), "the order is repaired", seconds=20)
    assert stub.GetOrderDetails(one).order_details == right
    # Twice: from the cache where there is one, and from the database.
    assert stub.GetOrderDetails(one).order_details == right

    # In a list, which does not know the row's key.
    damage("order_summary", ORDER)
    assert not answers(lambda: stub.ListRecentOrders(page))
    wait_until(lambda: answers(lambda: stub.ListRecentOrders(page)), "the list is repaired", seconds=20)
    assert stub.ListRecentOrders(page).orders == listed.orders

    # A watch that was opened with a damaged row ends; the next one goes on.
    damage("order_details", ORDER)
    watch = queries.WatchOrderDetailsRequest(order_id=ORDER)
    assert not answers(lambda: next(stub.WatchOrderDetails(watch, timeout=20)))
    wait_until(lambda: answers(lambda: next(stub.WatchOrderDetails(watch, timeout=20))), "it is watched", seconds=20)
    assert next(stub.WatchOrderDetails(watch, timeout=20)).order_details == right

    # The events that came meanwhile are in it.
    damage("product_card", PRODUCT)
    last = commands.ChangePrice(requests.ChangePriceRequest(product_id=PRODUCT, price=usd(777)))
    card = queries.GetProductRequest(
        product_id=PRODUCT, consistency=Consistency(at_least_as_fresh=last.receipt.consistency_token)
    )
    wait_until(lambda: answers(lambda: stub.GetProduct(card)), "the card is repaired", seconds=20)
    found = stub.GetProduct(card).product
    assert (found.price.minor_units, found.available) == (777, 97)
    assert "a row was made again" in "".join(stack.logs().values())
