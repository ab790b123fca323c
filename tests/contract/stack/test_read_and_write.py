"""What callers may rely on, whatever the transport, the number of cache nodes and of databases."""

import asyncio
from collections.abc import Iterator
from typing import Any

import grpc

from commerce.command.v1 import command_service_pb2 as commands
from commerce.query.v1 import query_service_pb2 as queries
from commerce.type.v1.consistency_pb2 import Consistency
from commerce.type.v1.order_status_pb2 import OrderStatus
from tests.contract.stack.conftest import details, fresh, refused, shop
from tests.support.builders import (
    address,
    identity,
    place_order,
    usd,
)
from tests.support.stack import AsyncStubs, Stack


async def test_an_order_is_read_back_with_its_token_through_every_step(
    stubs: AsyncStubs, numbers: Iterator[int]
) -> None:
    n = next(numbers)
    await shop(stubs, n)
    order = identity("order", n)
    request = place_order(n, customer=n, lines={n: 2, n + 1: 1})
    request.shipping_fee.CopyFrom(usd(450))
    steps: list[tuple[Any, Any, OrderStatus.ValueType]] = [
        (stubs.commands.PlaceOrder, request, OrderStatus.ORDER_STATUS_PLACED),
        (
            stubs.commands.PayOrder,
            commands.PayOrderRequest(order_id=order, payment_reference="p-1", expected_version=1),
            OrderStatus.ORDER_STATUS_PAID,
        ),
        (
            stubs.commands.ChangeShippingAddress,
            commands.ChangeShippingAddressRequest(
                order_id=order, address=address(city="Bonn", recipient="A neighbour"), expected_version=2
            ),
            OrderStatus.ORDER_STATUS_PAID,
        ),
        (
            stubs.commands.ShipOrder,
            commands.ShipOrderRequest(order_id=order, carrier="Post", expected_version=3),
            OrderStatus.ORDER_STATUS_SHIPPED,
        ),
        (
            stubs.commands.DeliverOrder,
            commands.DeliverOrderRequest(order_id=order, expected_version=4),
            OrderStatus.ORDER_STATUS_DELIVERED,
        ),
    ]
    for version, (call, step, status) in enumerate(steps, start=1):
        receipt = (await call(step)).receipt
        answer = await stubs.queries.GetOrderDetails(
            queries.GetOrderDetailsRequest(order_id=order, consistency=fresh(receipt))
        )
        shown = answer.order_details
        assert (shown.status, shown.version) == (status, version)
        assert answer.as_of
    assert shown.total == usd(2 * (1000 + n) + 1001 + n + 450)
    assert shown.customer_name == f"Customer {n}"
    assert [line.product_name for line in shown.lines] == [f"Product {n}", f"Product {n + 1}"]
    assert (shown.payment_reference, shown.carrier) == ("p-1", "Post")
    assert shown.shipping_address == address(city="Bonn", recipient="A neighbour")
    assert shown.delivered_at.ToNanoseconds() >= shown.shipped_at.ToNanoseconds()


async def test_views_follow_products_and_customers(stubs: AsyncStubs, numbers: Iterator[int]) -> None:
    n = next(numbers)
    await shop(stubs, n, stock=10)
    product = identity("product", n)
    await stubs.commands.PlaceOrder(place_order(n, customer=n, lines={n: 4}))
    await stubs.commands.CancelOrder(commands.CancelOrderRequest(order_id=identity("order", n)))
    await stubs.commands.PlaceOrder(place_order(n + 1, customer=n, lines={n: 3}))
    await stubs.commands.AdjustStock(commands.AdjustStockRequest(product_id=product, delta=5))
    await stubs.commands.ChangePrice(commands.ChangePriceRequest(product_id=product, price=usd(777)))
    moved = await stubs.commands.UpdateAddress(
        commands.UpdateAddressRequest(customer_id=identity("customer", n), address=address(city="Bonn"))
    )
    token = fresh(moved.receipt)
    card = await stubs.queries.GetProduct(queries.GetProductRequest(product_id=product, consistency=token))
    assert (card.product.available, card.product.price, card.product.version) == (12, usd(777), 3)
    profile = await stubs.queries.GetCustomer(
        queries.GetCustomerRequest(customer_id=identity("customer", n), consistency=token)
    )
    assert (profile.customer.address.city, profile.customer.version) == ("Bonn", 2)
    placed = await stubs.queries.GetOrderDetails(
        queries.GetOrderDetailsRequest(order_id=identity("order", n + 1), consistency=token)
    )
    assert placed.order_details.shipping_address.city == "Berlin", "an order keeps the address it was placed with"
    assert placed.order_details.lines[0].unit_price == usd(1000 + n), "and the price"


async def test_reads_repeat_what_they_said_and_never_go_back(stubs: AsyncStubs, numbers: Iterator[int]) -> None:
    n = next(numbers)
    await shop(stubs, n)
    product = identity("product", n)
    seen = 0
    for price in range(1, 30):
        changed = await stubs.commands.ChangePrice(commands.ChangePriceRequest(product_id=product, price=usd(price)))
        requests = [queries.GetProductRequest(product_id=product, consistency=fresh(changed.receipt)) for _ in range(5)]
        answers = await asyncio.gather(*(stubs.queries.GetProduct(it) for it in requests))
        for answer in answers:
            assert answer.product.price.minor_units == price
        again = await stubs.queries.GetProduct(
            queries.GetProductRequest(product_id=product, consistency=Consistency(at_least_as_fresh=answers[0].as_of))
        )
        assert again.product.version >= seen
        seen = again.product.version


async def test_batches_keep_the_order_of_the_request_and_name_what_is_missing(
    stubs: AsyncStubs, numbers: Iterator[int]
) -> None:
    n = next(numbers)
    await shop(stubs, n)
    placed = [await stubs.commands.PlaceOrder(place_order(n + i, customer=n, lines={n: 1})) for i in range(3)]
    token = fresh(placed[-1].receipt)
    ids = [placed[2].order_id, identity("nobody", n), placed[0].order_id]
    orders = await stubs.queries.BatchGetOrderDetails(
        queries.BatchGetOrderDetailsRequest(order_ids=ids, consistency=token)
    )
    assert [it.order_id for it in orders.order_details] == [ids[0], ids[2]]
    assert list(orders.missing_order_ids) == [ids[1]]
    products = await stubs.queries.BatchGetProducts(
        queries.BatchGetProductsRequest(product_ids=[identity("product", n + 1), ids[1]], consistency=token)
    )
    assert [it.name for it in products.products] == [f"Product {n + 1}"]
    assert list(products.missing_product_ids) == [ids[1]]


async def test_recent_orders_come_newest_first_page_by_page_while_new_ones_arrive(
    stubs: AsyncStubs, numbers: Iterator[int]
) -> None:
    n = next(numbers)
    await shop(stubs, n)
    placed = [await stubs.commands.PlaceOrder(place_order(n + i, customer=n, lines={n: 1})) for i in range(7)]
    token, page_token, listed = fresh(placed[-1].receipt), "", []
    while True:
        page = await stubs.queries.ListRecentOrders(
            queries.ListRecentOrdersRequest(
                customer_id=identity("customer", n), page_size=3, page_token=page_token, consistency=token
            )
        )
        listed += [it.order_id for it in page.orders]
        page_token = page.next_page_token
        if not page_token:
            break
        late = place_order(n + 50 + len(listed), customer=n, lines={n: 1})
        token = fresh((await stubs.commands.PlaceOrder(late)).receipt)
    assert listed == [it.order_id for it in reversed(placed)]


async def test_an_unknown_thing_is_not_found_and_named(stubs: AsyncStubs) -> None:
    missing = identity("nothing")
    error = await refused(stubs.queries.GetOrderDetails(queries.GetOrderDetailsRequest(order_id=missing)))
    assert error.code() == grpc.StatusCode.NOT_FOUND
    assert details(error)["ResourceInfo"].resource_name == f"orders/{missing}"
    assert details(error)["ErrorInfo"].reason == "NOT_FOUND"
    error = await refused(stubs.commands.PayOrder(commands.PayOrderRequest(order_id=missing)))
    assert error.code() == grpc.StatusCode.NOT_FOUND


async def test_errors_name_every_wrong_field_and_every_broken_rule(stubs: AsyncStubs, numbers: Iterator[int]) -> None:
    n = next(numbers)
    bad = commands.PlaceOrderRequest(
        customer_id="nobody", lines=[commands.PlaceOrderLine(quantity=0)], shipping_fee=usd(-1)
    )
    error = await refused(stubs.commands.PlaceOrder(bad))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert {it.field for it in details(error)["BadRequest"].field_violations} == {
        "customer_id",
        "lines[0].product_id",
        "lines[0].quantity",
        "shipping_fee.minor_units",
    }
    await shop(stubs, n, stock=1)
    error = await refused(stubs.commands.PlaceOrder(place_order(n, customer=n, lines={n: 2, n + 1: 3})))
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert {it.type for it in details(error)["PreconditionFailure"].violations} == {"OUT_OF_STOCK"}
    assert len(details(error)["PreconditionFailure"].violations) == 2
    error = await refused(
        stubs.commands.ChangePrice(
            commands.ChangePriceRequest(product_id=identity("product", n), price=usd(1), expected_version=9)
        )
    )
    assert error.code() == grpc.StatusCode.ABORTED
    assert details(error)["ErrorInfo"].reason == "VERSION_MISMATCH"
    assert details(error)["ErrorInfo"].metadata["current_version"] == "1"


async def test_a_token_that_is_not_one_of_ours_is_refused(stubs: AsyncStubs) -> None:
    request = queries.GetProductRequest(
        product_id=identity("p"), consistency=Consistency(at_least_as_fresh="not a token")
    )
    error = await refused(stubs.queries.GetProduct(request))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert details(error)["BadRequest"].field_violations[0].field == "consistency.at_least_as_fresh"


async def test_a_repeated_command_gets_its_first_receipt(stubs: AsyncStubs, numbers: Iterator[int]) -> None:
    n = next(numbers)
    await shop(stubs, n)
    order = place_order(n, customer=n, lines={n: 1})
    answers = await asyncio.gather(*(stubs.commands.PlaceOrder(order) for _ in range(20)))
    assert len({(it.order_id, it.receipt.position, it.receipt.consistency_token) for it in answers}) == 1
    assert sum(not it.receipt.replayed for it in answers) == 1
    other = place_order(n, customer=n, lines={n: 2})
    error = await refused(stubs.commands.PlaceOrder(other))
    assert (error.code(), details(error)["ErrorInfo"].reason) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "REQUEST_ID_REUSED",
    )


async def test_sixteen_clients_buying_the_last_hundred_sell_exactly_a_hundred(
    stack: Stack, numbers: Iterator[int]
) -> None:
    n = next(numbers)
    async with stack.async_stubs() as stubs:
        await shop(stubs, n, stock=100)
    orders = iter(range(n * 1000, n * 1000 + 160))

    async def client() -> list[Any]:
        sold = []
        async with stack.async_stubs() as own:
            for order in orders:
                try:
                    sold.append((await own.commands.PlaceOrder(place_order(order, customer=n, lines={n: 1}))).receipt)
                except grpc.aio.AioRpcError as error:
                    if error.code() != grpc.StatusCode.FAILED_PRECONDITION:
                        raise
        return sold

    receipts = [receipt for sold in await asyncio.gather(*(client() for _ in range(16))) for receipt in sold]
    positions = sorted(it.position for it in receipts)
    assert len(positions) == 100
    assert positions == list(range(positions[0], positions[0] + 100)), "distinct, and without a gap"
    async with stack.async_stubs() as stubs:
        last = max(receipts, key=lambda it: it.position)
        request = queries.GetProductRequest(product_id=identity("product", n), consistency=fresh(last))
        assert (await stubs.queries.GetProduct(request)).product.available == 0
