"""Each kind of thing from its first command to its last, whatever the transport, the cache and the databases."""

from collections.abc import Iterator
from typing import Any

from commerce.command.v1 import command_service_pb2 as commands
from commerce.query.v1 import query_service_pb2 as queries
from commerce.query.v1.sales_pb2 import SalesSummary
from commerce.type.v1.subscription_status_pb2 import SubscriptionStatus
from tests.contract.stack.conftest import details, fresh, refused, shop
from tests.support.builders import (
    add_product,
    address,
    identity,
    place_order,
    register_customer,
    revise_product,
    start_subscription,
    usd,
)
from tests.support.stack import AsyncStubs


async def test_a_product_that_is_renamed_is_renamed_where_it_is_shown_as_it_is_now_and_nowhere_else(
    stubs: AsyncStubs, numbers: Iterator[int]
) -> None:
    n = next(numbers)
    await shop(stubs, n)
    order, product = identity("order", n), identity("product", n)
    await stubs.commands.PlaceOrder(place_order(n, customer=n, lines={n: 1}))
    renamed = await stubs.commands.ReviseProduct(revise_product(n, name="Renamed", attributes={"Size": "L"}))
    token = fresh(renamed.receipt)
    card = await stubs.queries.GetProduct(queries.GetProductRequest(product_id=product, consistency=token))
    assert (card.product.name, card.product.available, card.product.version) == ("Renamed", 99, 2)
    assert [(it.name, it.value) for it in card.product.attributes] == [("Size", "L")]
    shown = await stubs.queries.GetOrderDetails(queries.GetOrderDetailsRequest(order_id=order, consistency=token))
    assert [line.product_name for line in shown.order_details.lines] == [f"Product {n}"]
    # The write side has the attributes and the name too, from its own tables.
    again = await stubs.commands.ReviseProduct(revise_product(n, description="Large", attributes=None))
    card = await stubs.queries.GetProduct(
        queries.GetProductRequest(product_id=product, consistency=fresh(again.receipt))
    )
    assert (card.product.name, card.product.description, card.product.version) == ("Renamed", "Large", 3)
    assert [(it.name, it.value) for it in card.product.attributes] == [("Size", "L")]


async def test_a_discontinued_product_is_sold_no_more_and_its_orders_go_on(
    stubs: AsyncStubs, numbers: Iterator[int]
) -> None:
    n = next(numbers)
    await shop(stubs, n)
    order, product = identity("order", n), identity("product", n)
    await stubs.commands.PlaceOrder(place_order(n, customer=n, lines={n: 2}))
    await stubs.commands.DiscontinueProduct(commands.DiscontinueProductRequest(product_id=product, expected_version=1))
    again = await refused(stubs.commands.DiscontinueProduct(commands.DiscontinueProductRequest(product_id=product)))
    assert details(again)["PreconditionFailure"].violations[0].type == "ALREADY_DISCONTINUED"
    late = await refused(stubs.commands.PlaceOrder(place_order(n + 1, customer=n, lines={n: 1})))
    assert details(late)["PreconditionFailure"].violations[0].type == "PRODUCT_DISCONTINUED"
    await stubs.commands.PayOrder(commands.PayOrderRequest(order_id=order))
    await stubs.commands.CancelOrder(commands.CancelOrderRequest(order_id=order))
    revised = await stubs.commands.ReviseProduct(revise_product(n, category="No longer sold"))
    shown = await stubs.queries.GetProduct(
        queries.GetProductRequest(product_id=product, consistency=fresh(revised.receipt))
    )
    card = shown.product
    assert (card.discontinued, card.available, card.category, card.version) == (True, 100, "No longer sold", 3)


async def test_a_subscription_is_read_back_alone_and_in_lists_through_every_step(
    stubs: AsyncStubs, numbers: Iterator[int]
) -> None:
    n = next(numbers)
    customer, subscription = identity("customer", n), identity("subscription", n)
    await stubs.commands.RegisterCustomer(register_customer(n))
    await stubs.commands.StartSubscription(start_subscription(n + 1, customer=n, months=12))
    steps: list[tuple[Any, Any, SubscriptionStatus.ValueType]] = [
        (
            stubs.commands.StartSubscription,
            start_subscription(n, customer=n),
            SubscriptionStatus.SUBSCRIPTION_STATUS_ACTIVE,
        ),
        (
            stubs.commands.ChangeSubscriptionPlan,
            commands.ChangeSubscriptionPlanRequest(
                subscription_id=subscription, plan="gold", price=usd(4900), period_months=12
            ),
            SubscriptionStatus.SUBSCRIPTION_STATUS_ACTIVE,
        ),
        (
            stubs.commands.RenewSubscription,
            commands.RenewSubscriptionRequest(subscription_id=subscription, expected_version=2),
            SubscriptionStatus.SUBSCRIPTION_STATUS_ACTIVE,
        ),
        (
            stubs.commands.CancelSubscription,
            commands.CancelSubscriptionRequest(
                subscription_id=subscription, when=commands.CANCELLATION_TIME_AT_PERIOD_END
            ),
            SubscriptionStatus.SUBSCRIPTION_STATUS_CANCELING,
        ),
        (
            stubs.commands.ResumeSubscription,
            commands.ResumeSubscriptionRequest(subscription_id=subscription),
            SubscriptionStatus.SUBSCRIPTION_STATUS_ACTIVE,
        ),
        (
            stubs.commands.CancelSubscription,
            commands.CancelSubscriptionRequest(
                subscription_id=subscription, when=commands.CANCELLATION_TIME_AT_ONCE, reason="moving"
            ),
            SubscriptionStatus.SUBSCRIPTION_STATUS_CANCELLED,
        ),
    ]
    for version, (call, step, status) in enumerate(steps, start=1):
        token = fresh((await call(step)).receipt)
        answer = await stubs.queries.GetSubscription(
            queries.GetSubscriptionRequest(subscription_id=subscription, consistency=token)
        )
        assert (answer.subscription.status, answer.subscription.version) == (status, version)
        listed = await stubs.queries.ListSubscriptions(
            queries.ListSubscriptionsRequest(customer_id=customer, statuses=[status], consistency=token)
        )
        assert answer.subscription in list(listed.subscriptions)
    both = await stubs.queries.ListSubscriptions(
        queries.ListSubscriptionsRequest(customer_id=customer, consistency=token)
    )
    assert [it.subscription_id for it in both.subscriptions] == [subscription, identity("subscription", n + 1)]
    shown = both.subscriptions[0]
    assert (shown.plan, shown.price, shown.period_count, shown.cancellation_reason) == ("gold", usd(4900), 2, "moving")


async def test_a_customer_is_renamed_where_the_current_name_is_shown_and_has_several_addresses(
    stubs: AsyncStubs, numbers: Iterator[int]
) -> None:
    n = next(numbers)
    await shop(stubs, n)
    customer = identity("customer", n)
    await stubs.commands.PlaceOrder(place_order(n, customer=n, lines={n: 1}))
    await stubs.commands.RenameCustomer(commands.RenameCustomerRequest(customer_id=customer, name="Ada King"))
    work = commands.UpdateAddressRequest(
        customer_id=customer, address=address(city="Bonn"), address_name="work", make_default=True
    )
    await stubs.commands.UpdateAddress(work)
    to_main = place_order(n + 1, customer=n, lines={n: 1})
    to_main.shipping_address_name = "main"
    await stubs.commands.PlaceOrder(to_main)
    await stubs.commands.PlaceOrder(place_order(n + 2, customer=n, lines={n: 1}))
    await stubs.commands.ChangeShippingAddress(
        commands.ChangeShippingAddressRequest(order_id=identity("order", n), address_name="work")
    )
    removed = await stubs.commands.RemoveAddress(
        commands.RemoveAddressRequest(customer_id=customer, address_name="main")
    )
    token = fresh(removed.receipt)
    profile = (
        await stubs.queries.GetCustomer(queries.GetCustomerRequest(customer_id=customer, consistency=token))
    ).customer
    assert (profile.name, profile.version, profile.address.city) == ("Ada King", 4, "Bonn")
    assert [(it.name, it.is_default) for it in profile.addresses] == [("work", True)]
    orders = await stubs.queries.BatchGetOrderDetails(
        queries.BatchGetOrderDetailsRequest(
            order_ids=[identity("order", number) for number in (n, n + 1, n + 2)], consistency=token
        )
    )
    assert [(it.customer_name, it.shipping_address.city) for it in orders.order_details] == [
        (f"Customer {n}", "Bonn"),
        ("Ada King", "Berlin"),
        ("Ada King", "Bonn"),
    ]


async def test_sales_count_an_order_at_once_and_a_cancelled_one_as_cancelled(
    stubs: AsyncStubs, numbers: Iterator[int]
) -> None:
    n = next(numbers)
    await stubs.commands.RegisterCustomer(register_customer(n))
    # A currency that no other test of this suite sells in.
    await stubs.commands.AddProduct(add_product(n, price=250, currency="CHF"))
    for number in (n, n + 1):
        order = place_order(number, customer=n, lines={n: 3})
        order.placed_at.FromJsonString("2025-12-31T23:59:59.999999Z")
        placed = await stubs.commands.PlaceOrder(order)

    async def sales(receipt: Any) -> SalesSummary:
        request = queries.GetSalesSummaryRequest(
            start_date="2025-12-31", currency_code="CHF", consistency=fresh(receipt)
        )
        [summary] = (await stubs.queries.GetSalesSummary(request)).summaries
        return summary

    before = await sales(placed.receipt)
    assert (before.sold.order_count, before.cancelled.order_count) == (2, 0)
    cancelled = await stubs.commands.CancelOrder(commands.CancelOrderRequest(order_id=placed.order_id))
    after = await sales(cancelled.receipt)
    assert (after.sold.order_count, after.cancelled.order_count) == (1, 1)
    assert after.sold.revenue.minor_units == after.cancelled.revenue.minor_units == 750
    assert [(it.product_name, it.unit_count) for it in after.top_products] == [(f"Product {n}", 3)]


async def test_a_search_follows_a_product_from_its_addition_to_its_end(
    stubs: AsyncStubs, numbers: Iterator[int]
) -> None:
    n = next(numbers)
    word = f"quillwort{n}"
    product = identity("product", n)

    async def found(receipt: Any, query: str, **narrow: bool) -> list[str]:
        wanted: Any = narrow
        request = queries.SearchProductsRequest(query=query, filter=wanted, consistency=fresh(receipt))
        return [hit.highlighted_name for hit in (await stubs.queries.SearchProducts(request)).hits]

    await stubs.commands.RegisterCustomer(register_customer(n))
    added = await stubs.commands.AddProduct(add_product(n, stock=2))
    assert await found(added.receipt, word) == []
    revised = await stubs.commands.ReviseProduct(revise_product(n, name=f"Crème of {word}"))
    shown = [f"<em>Crème</em> of <em>{word}</em>"]
    assert await found(revised.receipt, f"{word} creme", in_stock=True) == shown
    sold_out = await stubs.commands.PlaceOrder(place_order(n, customer=n, lines={n: 2}))
    assert await found(sold_out.receipt, f"{word} creme", in_stock=True) == []
    assert await found(sold_out.receipt, f"{word} creme") == shown
    renamed = await stubs.commands.ReviseProduct(revise_product(n, name=f"Soup of {word}"))
    assert await found(renamed.receipt, f"{word} creme") == []
    shown = [f"<em>Soup</em> of <em>{word}</em>"]
    assert await found(renamed.receipt, f"{word} soup") == shown
    ended = await stubs.commands.DiscontinueProduct(commands.DiscontinueProductRequest(product_id=product))
    assert await found(ended.receipt, f"{word} soup") == []
    assert await found(ended.receipt, f"{word} soup", include_discontinued=True) == shown
