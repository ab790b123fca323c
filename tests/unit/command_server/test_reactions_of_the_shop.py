"""What follows from an event, each function alone: no store, no clock."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr

from command_server.app import DOMAIN
from command_server.reactions import STOCK_LOW, reactions
from command_server.settings import OrderSettings, Settings, StockSettings, SubscriptionSettings
from commerce.command.v1 import command_service_pb2 as commands
from commerce.event.v1 import event_pb2 as events
from commerce.internal.v1.stored_pb2 import CancelUnpaidOrderRequest, EndSubscriptionRequest
from commerce.type.v1.subscription_status_pb2 import SubscriptionStatus
from shop.events import EVENTS
from tandem.commands.rules import timestamp
from tandem.reactions.reaction import At, Post, Reaction
from tandem.reactions.settings import WebhookSettings
from tandem.runtime.settings import DatabaseSettings
from tandem.testing.reactions import reacted
from tandem.testing.rules import NOW, Rules, refused
from tests.support.builders import add_product, identity, place_order, register_customer, start_subscription

ORDER, SUBSCRIPTION = identity("order", 1), identity("subscription", 1)
SHOP = Rules(DOMAIN).given(register_customer(), add_product(1, stock=12), add_product(2, stock=100))
CANCEL_UNPAID = CancelUnpaidOrderRequest(order_id=ORDER)
PAY = commands.PayOrderRequest(order_id=ORDER)
DAY = timedelta(days=1)


def of_shop(webhook: str = "https://example.com/hooks") -> Iterator[Reaction]:
    settings = Settings(
        database=DatabaseSettings(url=SecretStr("postgresql://nobody@127.0.0.1:1/nothing")),
        orders=OrderSettings(unpaid_days=14),
        stock=StockSettings(low=10),
        subscriptions=SubscriptionSettings(grace_days=3),
        webhook=WebhookSettings(url=webhook, secret_files=[Path("secret")]),
    )
    yield from reactions(settings)


UNPAID, LAPSES, CANCELLATIONS, LOW_STOCK = of_shop()


def placed(lines: dict[int, int] | None = None) -> events.OrderPlaced:
    event: events.OrderPlaced = SHOP.when(place_order(lines=lines)).event
    return event


def test_an_order_is_cancelled_after_its_days_unless_it_is_paid_or_cancelled_before() -> None:
    reacted(UNPAID, placed()).waits(CANCEL_UNPAID, for_=14 * DAY)
    for event in (events.OrderPaid(order_id=ORDER), events.OrderCancelled(order_id=ORDER)):
        reacted(UNPAID, placed(), event).waits_for_nothing().did()


def test_an_order_that_is_paid_on_delivery_or_costs_nothing_waits_for_no_payment() -> None:
    on_delivery, free = placed(), placed()
    on_delivery.terms.payment_on_delivery = True
    free.total.minor_units = 0
    for event in (on_delivery, free):
        reacted(UNPAID, event).waits_for_nothing()


def test_the_rule_cancels_what_is_unpaid_alone_and_gives_its_stock_back() -> None:
    given = SHOP.given(place_order(lines={1: 12}))
    cancelled = given.when(CANCEL_UNPAID)
    assert cancelled.event.reason == "not paid in time"
    assert [(it.product_id, it.quantity) for it in cancelled.event.released] == [(identity("product", 1), 12)]
    cancelled.after.when(CANCEL_UNPAID).then(refused("ORDER_NOT_CANCELLABLE"))
    given.given(PAY).when(CANCEL_UNPAID).then(refused("ORDER_NOT_CANCELLABLE"))
    on_delivery = place_order()
    on_delivery.terms.payment_on_delivery = True
    SHOP.given(on_delivery).when(CANCEL_UNPAID).then(refused("ORDER_NOT_CANCELLABLE"))
    SHOP.when(CANCEL_UNPAID).then(refused("NOT_FOUND"))


def test_a_subscription_lapses_some_days_after_its_last_period_and_ends_with_it_where_it_was_cancelled() -> None:
    given = SHOP.given(start_subscription())
    started = given.events[-1]
    end = started.period_end
    active = SubscriptionStatus.SUBSCRIPTION_STATUS_ACTIVE
    lapse = EndSubscriptionRequest(subscription_id=SUBSCRIPTION, status=active, period_end=end)
    month = end.ToDatetime(tzinfo=NOW.tzinfo) - NOW
    reacted(LAPSES, started).waits(lapse, for_=month + 3 * DAY)
    renewed = events.SubscriptionRenewed(subscription_id=SUBSCRIPTION, period_end=timestamp(NOW + 60 * DAY))
    lapse.period_end.FromDatetime(NOW + 60 * DAY)
    reacted(LAPSES, started, renewed).waits(lapse, for_=63 * DAY)
    scheduled = events.SubscriptionCancellationScheduled(subscription_id=SUBSCRIPTION, ends_at=end)
    canceling = SubscriptionStatus.SUBSCRIPTION_STATUS_CANCELING
    cancel = EndSubscriptionRequest(subscription_id=SUBSCRIPTION, status=canceling, period_end=end)
    reacted(CANCELLATIONS, scheduled).waits(cancel, for_=month)
    resumed = events.SubscriptionResumed(subscription_id=SUBSCRIPTION)
    reacted(CANCELLATIONS, scheduled, resumed).waits_for_nothing()
    for ended in (events.SubscriptionCancelled, events.SubscriptionLapsed):
        for reaction, event in ((LAPSES, started), (CANCELLATIONS, scheduled)):
            reacted(reaction, event, ended(subscription_id=SUBSCRIPTION)).waits_for_nothing()


def low(number: int, left: int, **named: str) -> Post:
    product = identity("product", number)
    return Post(STOCK_LOW, product, {"product_id": product, **named, "stock": left})


def test_a_webhook_tells_of_a_product_when_it_comes_to_be_low_and_not_again() -> None:
    reacted(LOW_STOCK, placed(lines={1: 2})).did()
    reacted(LOW_STOCK, placed(lines={1: 3, 2: 1})).did(low(1, 9, product_name="Product 1"))
    already = SHOP.given(place_order(1, lines={1: 3})).when(place_order(2, lines={1: 1})).event
    reacted(LOW_STOCK, already).did()
    request = place_order(lines={1: 2})
    request.lines.add().CopyFrom(request.lines[0])
    both = SHOP.when(request).event
    assert list(both.stock_left) == [10, 8]
    reacted(LOW_STOCK, both).did(low(1, 8, product_name="Product 1"))


@pytest.mark.parametrize(("delta", "told"), [(-2, []), (-3, [low(1, 9)]), (5, [])])
def test_stock_that_is_counted_down_is_told_of_too(delta: int, told: list[Post]) -> None:
    adjust = commands.AdjustStockRequest(product_id=identity("product", 1), delta=delta)
    reacted(LOW_STOCK, SHOP.when(adjust).event).did(*told)


def test_of_what_nobody_counts_and_of_events_that_do_not_say_what_is_left_nothing_is_told() -> None:
    request = add_product(3, stock=0)
    request.unlimited_stock = True
    endless = SHOP.given(request).when(place_order(lines={3: 1_000})).event
    before = placed(lines={1: 12})
    del before.stock_left[:]
    for event in (endless, before, events.StockAdjusted(product_id=identity("product", 1), delta=-12)):
        reacted(LOW_STOCK, event).did()


def test_without_a_webhook_nobody_is_told_of_stock() -> None:
    assert {it.name: it.is_on for it in of_shop(webhook="")} == {
        UNPAID.name: True, LAPSES.name: True, CANCELLATIONS.name: True, LOW_STOCK.name: False,
    }  # fmt: skip
    assert LOW_STOCK.is_on


def test_a_reaction_says_what_is_wrong_with_its_description() -> None:
    def placed_twice(event: events.OrderPlaced, _at: object) -> list[At]:
        raise AssertionError(event)

    with pytest.raises(ValueError, match="takes an event twice"):
        Reaction("orders", EVENTS, on=[placed_twice], unless=[events.OrderPlaced])
    untyped = reactions
    with pytest.raises(TypeError, match="type settings as a message"):
        Reaction("orders", EVENTS, on=[untyped])  # type: ignore[list-item]
