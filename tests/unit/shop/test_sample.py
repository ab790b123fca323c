from collections import Counter
from datetime import UTC, datetime
from typing import Any

from command_server.app import DOMAIN
from command_server.subscriptions import SUBSCRIPTIONS
from commerce.type.v1.subscription_status_pb2 import SubscriptionStatus
from shop import sample
from shop.sample import generate
from tandem.cli.sample import Stage
from tandem.commands.batch import decide_batch
from tandem.commands.receipts import Receipt
from tandem.commands.write_model import States
from tests.support.builders import command


def all_requests(stages: list[Stage]) -> list[Any]:
    return [it for stage in stages for it in stage.requests]


def requests_of(stages: list[Stage], rpc: str) -> list[Any]:
    return [it for it in all_requests(stages) if it.DESCRIPTOR.name == f"{rpc}Request"]


def test_the_sample_is_the_same_every_time() -> None:
    assert generate() == generate()


def test_the_sample_has_the_promised_size() -> None:
    stages = generate()
    assert len(requests_of(stages, "RegisterCustomer")) == sample.CUSTOMERS
    assert len(requests_of(stages, "AddProduct")) == sample.PRODUCTS
    assert len(requests_of(stages, "PlaceOrder")) == sample.ORDERS
    assert len(requests_of(stages, "StartSubscription")) == sample.SUBSCRIPTIONS


def test_every_command_has_a_request_id_of_its_own() -> None:
    ids = [it.request_id for it in all_requests(generate())]
    assert all(ids)
    assert len(set(ids)) == len(ids)


def test_orders_name_customers_and_products_of_the_sample_and_no_product_twice() -> None:
    stages = generate()
    customers = {it.customer_id for it in requests_of(stages, "RegisterCustomer")}
    products = {it.product_id for it in requests_of(stages, "AddProduct")}
    for order in requests_of(stages, "PlaceOrder"):
        ordered = [line.product_id for line in order.lines]
        assert order.customer_id in customers
        assert set(ordered) <= products
        assert len(set(ordered)) == len(ordered)


def test_the_stock_lasts_for_all_orders_in_any_order() -> None:
    stages = generate()
    wanted: Counter[str] = Counter()
    for order in requests_of(stages, "PlaceOrder"):
        for line in order.lines:
            wanted[line.product_id] += line.quantity
    for product in requests_of(stages, "AddProduct"):
        assert product.initial_stock >= wanted[product.product_id]


def test_only_paid_orders_are_shipped_and_none_is_both_shipped_and_cancelled() -> None:
    stages = generate()
    paid = {it.order_id for it in requests_of(stages, "PayOrder")}
    shipped = {it.order_id for it in requests_of(stages, "ShipOrder")}
    cancelled = {it.order_id for it in requests_of(stages, "CancelOrder")}
    placed = {it.order_id for it in requests_of(stages, "PlaceOrder")}
    assert shipped <= paid
    assert not shipped & cancelled
    assert placed - paid - cancelled, "some orders wait for payment"
    assert paid & cancelled, "some paid orders are cancelled"


def test_some_shipped_orders_are_delivered_and_some_are_on_their_way() -> None:
    stages = generate()
    shipped = {it.order_id for it in requests_of(stages, "ShipOrder")}
    delivered = {it.order_id for it in requests_of(stages, "DeliverOrder")}
    assert delivered < shipped
    assert delivered


def test_every_command_is_one_that_the_command_server_takes() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    batch = [command(it, now) for it in all_requests(generate())]
    outcomes = decide_batch(DOMAIN, batch, States(), {}).outcomes
    assert all(isinstance(it, Receipt) and not it.replayed for it in outcomes)


def test_its_subscriptions_come_to_be_in_every_status() -> None:
    now = datetime(2026, 1, 31, tzinfo=UTC)
    batch = [command(it, now) for it in all_requests(generate())]
    found = decide_batch(DOMAIN, batch, States(), {}).states[SUBSCRIPTIONS].values()
    active, canceling, cancelled, _lapsed = list(SubscriptionStatus.values())[1:]
    assert {it.status for it in found} == {active, canceling, cancelled}
    # They lapse as soon as a command server looks.
    assert {it.status for it in found if it.period_end < now} == {active}
    assert any(it.status == active and it.period_end > now for it in found)


def test_its_times_are_past_and_in_their_order() -> None:
    stages = generate()
    placed = {it.order_id: it.placed_at.ToDatetime(UTC) for it in requests_of(stages, "PlaceOrder")}
    paid = {it.order_id: it.paid_at.ToDatetime(UTC) for it in requests_of(stages, "PayOrder")}
    shipped = {it.order_id: it.shipped_at.ToDatetime(UTC) for it in requests_of(stages, "ShipOrder")}
    for order, at in shipped.items():
        assert placed[order] < paid[order] < at < datetime(2026, 1, 1, tzinfo=UTC)
    for delivery in requests_of(stages, "DeliverOrder"):
        assert shipped[delivery.order_id] < delivery.delivered_at.ToDatetime(UTC) < datetime(2026, 1, 1, tzinfo=UTC)
