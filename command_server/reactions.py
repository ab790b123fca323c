"""What the shop does because of events: pure functions of an event, and a table of them at the end.

Orders that nobody pays are cancelled, and give their stock back. Subscriptions end with their last period. A webhook
tells of a product that runs low.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection, select

from command_server.settings import Settings
from command_server.subscriptions import subscription_table
from commerce.event.v1 import event_pb2 as events
from commerce.internal.v1.stored_pb2 import CancelUnpaidOrderRequest, EndSubscriptionRequest
from commerce.type.v1.subscription_status_pb2 import SubscriptionStatus
from shop.events import EVENTS
from tandem.commands.rules import Id, datetime_of, timestamp
from tandem.reactions.reaction import At, Effects, Post, React, Reaction

STOCK_LOW = "product.stock_low"
"""The type of the webhook that tells of a product that runs low."""

_ACTIVE = SubscriptionStatus.SUBSCRIPTION_STATUS_ACTIVE
_CANCELING = SubscriptionStatus.SUBSCRIPTION_STATUS_CANCELING


# Orders that are to be paid


def order_placed(event: events.OrderPlaced, at: datetime) -> Effects:
    """From when it was stored: `placed_at` may be long ago, in a system that tells of it late."""
    if event.terms.payment_on_delivery or not event.total.minor_units:
        return []
    return [At(at, CancelUnpaidOrderRequest(order_id=event.order_id))]


# Subscriptions: an active one lapses, some days after the period that was paid for; a canceling one ends with it


def subscription_started(event: events.SubscriptionStarted, _at: datetime) -> Effects:
    return [_end(event.subscription_id, datetime_of(event.period_end), _ACTIVE)]


def subscription_renewed(event: events.SubscriptionRenewed, _at: datetime) -> Effects:
    return [_end(event.subscription_id, datetime_of(event.period_end), _ACTIVE)]


def subscription_cancellation_scheduled(event: events.SubscriptionCancellationScheduled, _at: datetime) -> Effects:
    return [_end(event.subscription_id, datetime_of(event.ends_at), _CANCELING)]


def _end(subscription_id: Id, period_end: datetime, status: SubscriptionStatus.ValueType) -> At:
    request = EndSubscriptionRequest(subscription_id=subscription_id, status=status, period_end=timestamp(period_end))
    return At(period_end, request)


def active_subscriptions(connection: Connection) -> Iterator[tuple[Id, At]]:
    """Those that there are, with what they wait for, when there come to be reactions."""
    return _running(connection, [_ACTIVE, _CANCELING], _ACTIVE)


def canceling_subscriptions(connection: Connection) -> Iterator[tuple[Id, At]]:
    return _running(connection, [_CANCELING], _CANCELING)


def _running(
    connection: Connection, found: Sequence[SubscriptionStatus.ValueType], ended: SubscriptionStatus.ValueType
) -> Iterator[tuple[Id, At]]:
    table = subscription_table.c
    rows = connection.execution_options(yield_per=1000).execute(
        select(table.id, table.period_end).where(table.status.in_(found))
    )
    for identity, period_end in rows:
        yield str(identity), _end(str(identity), period_end.astimezone(UTC), ended)


# Stock


def low_stock(low: int) -> list[React]:
    """low: a product runs low when fewer units can be ordered, and so many or more could before."""

    def order_takes_stock(event: events.OrderPlaced, _at: datetime) -> Effects:
        return [
            _stock_low(line.product_id, line.product_name, left)
            # An event of before does not say what is left.
            for line, left in zip(event.lines, event.stock_left, strict=False)
            if left < low <= left + line.quantity
        ]

    def stock_adjusted(event: events.StockAdjusted, _at: datetime) -> Effects:
        if not event.HasField("stock_left") or not event.stock_left < low <= event.stock_left - event.delta:
            return []
        return [_stock_low(event.product_id, "", event.stock_left)]

    return [order_takes_stock, stock_adjusted]


def _stock_low(product_id: Id, name: str, left: int) -> Post:
    named = {"product_name": name} if name else {}
    return Post(STOCK_LOW, product_id, {"product_id": product_id, **named, "stock": left})


def reactions(settings: Settings) -> list[Reaction]:
    """All of them. Without a webhook nobody is told of stock, and the reaction that would is off."""
    periods: list[React] = [subscription_started, subscription_renewed]
    ended = [events.SubscriptionCancelled, events.SubscriptionLapsed]
    return [
        Reaction(
            "unpaid_orders",
            EVENTS,
            on=[order_placed],
            unless=[events.OrderPaid, events.OrderCancelled],
            delay=timedelta(days=settings.orders.unpaid_days),
        ),
        Reaction(
            "subscription_lapses",
            EVENTS,
            on=periods,
            unless=ended,
            delay=timedelta(days=settings.subscriptions.grace_days),
            begins_with=active_subscriptions,
        ),
        Reaction(
            "subscription_cancellations",
            EVENTS,
            on=[subscription_cancellation_scheduled],
            unless=[events.SubscriptionResumed, *ended],
            begins_with=canceling_subscriptions,
        ),
        Reaction("low_stock", EVENTS, on=low_stock(settings.stock.low), is_on=bool(settings.webhook.url)),
    ]
