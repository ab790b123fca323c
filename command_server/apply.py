"""How an event changes the aggregates: one function an event, and the table of them at the end."""

from collections.abc import Callable
from typing import Any

from google.protobuf.message import Message

from command_server.aggregates import Aggregates, Customer, Id, Order, OrderedLine, Product, Subscription
from command_server.decide.rules import datetime_of
from commerce.event.v1 import event_pb2
from commerce.type.v1.address_pb2 import NamedAddress
from commerce.type.v1.order_status_pb2 import OrderStatus
from commerce.type.v1.subscription_status_pb2 import SubscriptionStatus

FIRST_ADDRESS = "main"
"""What a customer's first address is called when nobody says."""


def apply(aggregates: Aggregates, event: Message) -> None:
    """Replaces the aggregates that the event changes by their next state. Raises KeyError for one not loaded."""
    CHANGES[type(event)](aggregates, event)


def _register_customer(aggregates: Aggregates, event: event_pb2.CustomerRegistered) -> None:
    personal = event.personal
    customer = Customer(
        id=event.customer_id,
        version=event.version,
        name=personal.name,
        email=personal.email,
        phone=personal.phone,
        addresses=(
            (NamedAddress(name=FIRST_ADDRESS, address=personal.address, is_default=True),)
            if personal.HasField("address")
            else ()
        ),
        erased=False,
    )
    aggregates.customers[customer.id] = customer


def _add_product(aggregates: Aggregates, event: event_pb2.ProductAdded) -> None:
    product = Product(
        id=event.product_id,
        version=event.version,
        name=event.name,
        description=event.description,
        category=event.category,
        price=event.price.minor_units,
        currency=event.price.currency_code,
        stock=event.stock,
        discontinued=False,
        attributes=_attributes(event),
    )
    aggregates.products[product.id] = product


def _revise_product(aggregates: Aggregates, event: event_pb2.ProductRevised) -> None:
    _change_product(
        aggregates,
        event.product_id,
        event.version,
        name=event.name,
        description=event.description,
        category=event.category,
        attributes=_attributes(event),
    )


def _attributes(event: event_pb2.ProductAdded | event_pb2.ProductRevised) -> tuple[tuple[str, str], ...]:
    return tuple((it.name, it.value) for it in event.attributes)


def _place_order(aggregates: Aggregates, event: event_pb2.OrderPlaced) -> None:
    lines = [
        OrderedLine(
            line.product_id,
            line.quantity,
            line.unit_price.minor_units,
            line.discount_basis_points,
            line.line_total.minor_units,
        )
        for line in event.lines
    ]
    order = Order(
        id=event.order_id,
        version=event.version,
        customer_id=event.customer_id,
        status=OrderStatus.ORDER_STATUS_PLACED,
        currency=event.total.currency_code,
        total=event.total.minor_units,
        lines=tuple(lines),
        placed_at=datetime_of(event.placed_at),
    )
    aggregates.orders[order.id] = order
    if order.customer_id in aggregates.order_ids:
        aggregates.order_ids[order.customer_id] |= {order.id}
    for line in lines:
        _change_stock(aggregates, line.product_id, -line.quantity)


def _change_order(aggregates: Aggregates, event: Any, **changes: Any) -> None:
    order = aggregates.orders[event.order_id]
    aggregates.orders[order.id] = order._replace(version=event.version, **changes)


def _change_stock(aggregates: Aggregates, product_id: Id, delta: int) -> None:
    product = aggregates.products[product_id]
    aggregates.products[product_id] = product.with_stock(product.stock + delta)


def _change_customer(aggregates: Aggregates, event: Any, **changes: Any) -> None:
    customer = aggregates.customers[event.customer_id]
    aggregates.customers[customer.id] = customer._replace(version=event.version, **changes)


def _rename_customer(aggregates: Aggregates, event: event_pb2.CustomerRenamed) -> None:
    _change_customer(aggregates, event, name=event.personal.name)


def _update_address(aggregates: Aggregates, event: event_pb2.AddressUpdated) -> None:
    before = aggregates.customers[event.customer_id].addresses
    changed = NamedAddress(
        name=event.personal.address_name, address=event.personal.address, is_default=event.is_default
    )
    others = [
        NamedAddress(name=it.name, address=it.address, is_default=it.is_default and not event.is_default)
        for it in before
    ]
    names = [it.name for it in before]
    if changed.name in names:
        others[names.index(changed.name)] = changed
    else:
        others.append(changed)
    _change_customer(aggregates, event, addresses=tuple(others))


def _remove_address(aggregates: Aggregates, event: event_pb2.AddressRemoved) -> None:
    before = aggregates.customers[event.customer_id].addresses
    left = tuple(it for it in before if it.name != event.personal.address_name)
    _change_customer(aggregates, event, addresses=left)


def _erase_customer(aggregates: Aggregates, event: event_pb2.CustomerErased) -> None:
    _change_customer(aggregates, event, name="", email="", phone="", addresses=(), erased=True)


def _anonymize_orders(aggregates: Aggregates, event: event_pb2.OrdersAnonymized) -> None:
    """The write model's orders hold nothing of a person."""


def _change_product(aggregates: Aggregates, product_id: str, version: int, **changes: Any) -> None:
    product = aggregates.products[product_id]
    aggregates.products[product.id] = product._replace(version=version, **changes)


def _change_price(aggregates: Aggregates, event: event_pb2.PriceChanged) -> None:
    _change_product(aggregates, event.product_id, event.version, price=event.price.minor_units)


def _adjust_stock(aggregates: Aggregates, event: event_pb2.StockAdjusted) -> None:
    stock = aggregates.products[event.product_id].stock + event.delta
    _change_product(aggregates, event.product_id, event.version, stock=stock)


def _discontinue_product(aggregates: Aggregates, event: event_pb2.ProductDiscontinued) -> None:
    _change_product(aggregates, event.product_id, event.version, discontinued=True)


def _pay_order(aggregates: Aggregates, event: event_pb2.OrderPaid) -> None:
    _change_order(aggregates, event, status=OrderStatus.ORDER_STATUS_PAID)


def _ship_order(aggregates: Aggregates, event: event_pb2.OrderShipped) -> None:
    _change_order(aggregates, event, status=OrderStatus.ORDER_STATUS_SHIPPED)


def _deliver_order(aggregates: Aggregates, event: event_pb2.OrderDelivered) -> None:
    _change_order(aggregates, event, status=OrderStatus.ORDER_STATUS_DELIVERED)


def _change_shipping_address(aggregates: Aggregates, event: event_pb2.ShippingAddressChanged) -> None:
    # Rules never ask where an order goes, so the write model does not keep it.
    _change_order(aggregates, event)


def _cancel_order(aggregates: Aggregates, event: event_pb2.OrderCancelled) -> None:
    _change_order(aggregates, event, status=OrderStatus.ORDER_STATUS_CANCELLED)
    for released in event.released:
        _change_stock(aggregates, released.product_id, released.quantity)


def _start_subscription(aggregates: Aggregates, event: event_pb2.SubscriptionStarted) -> None:
    subscription = Subscription(
        id=event.subscription_id,
        version=event.version,
        customer_id=event.customer_id,
        status=SubscriptionStatus.SUBSCRIPTION_STATUS_ACTIVE,
        plan=event.plan,
        price=event.price.minor_units,
        currency=event.price.currency_code,
        period_months=event.period_months,
        started_at=datetime_of(event.started_at),
        period_start=datetime_of(event.period_start),
        period_end=datetime_of(event.period_end),
        cancellation_reason="",
    )
    aggregates.subscriptions[subscription.id] = subscription


def _change_subscription(aggregates: Aggregates, event: Any, **changes: Any) -> None:
    subscription = aggregates.subscriptions[event.subscription_id]
    aggregates.subscriptions[subscription.id] = subscription._replace(version=event.version, **changes)


def _change_plan(aggregates: Aggregates, event: event_pb2.SubscriptionPlanChanged) -> None:
    _change_subscription(
        aggregates, event, plan=event.plan, price=event.price.minor_units, period_months=event.period_months
    )


def _renew_subscription(aggregates: Aggregates, event: event_pb2.SubscriptionRenewed) -> None:
    start, end = datetime_of(event.period_start), datetime_of(event.period_end)
    _change_subscription(aggregates, event, period_start=start, period_end=end)


def _schedule_cancellation(aggregates: Aggregates, event: event_pb2.SubscriptionCancellationScheduled) -> None:
    canceling = SubscriptionStatus.SUBSCRIPTION_STATUS_CANCELING
    _change_subscription(aggregates, event, status=canceling, cancellation_reason=event.reason)


def _cancel_subscription(aggregates: Aggregates, event: event_pb2.SubscriptionCancelled) -> None:
    cancelled = SubscriptionStatus.SUBSCRIPTION_STATUS_CANCELLED
    _change_subscription(aggregates, event, status=cancelled, cancellation_reason=event.reason)


def _lapse_subscription(aggregates: Aggregates, event: event_pb2.SubscriptionLapsed) -> None:
    _change_subscription(aggregates, event, status=SubscriptionStatus.SUBSCRIPTION_STATUS_LAPSED)


def _resume_subscription(aggregates: Aggregates, event: event_pb2.SubscriptionResumed) -> None:
    active = SubscriptionStatus.SUBSCRIPTION_STATUS_ACTIVE
    _change_subscription(aggregates, event, status=active, cancellation_reason="")


CHANGES: dict[type[Message], Callable[[Aggregates, Any], None]] = {
    event_pb2.CustomerRegistered: _register_customer,
    event_pb2.CustomerRenamed: _rename_customer,
    event_pb2.AddressUpdated: _update_address,
    event_pb2.AddressRemoved: _remove_address,
    event_pb2.CustomerErased: _erase_customer,
    event_pb2.OrdersAnonymized: _anonymize_orders,
    event_pb2.ProductAdded: _add_product,
    event_pb2.ProductRevised: _revise_product,
    event_pb2.PriceChanged: _change_price,
    event_pb2.StockAdjusted: _adjust_stock,
    event_pb2.ProductDiscontinued: _discontinue_product,
    event_pb2.OrderPlaced: _place_order,
    event_pb2.OrderPaid: _pay_order,
    event_pb2.OrderShipped: _ship_order,
    event_pb2.OrderDelivered: _deliver_order,
    event_pb2.ShippingAddressChanged: _change_shipping_address,
    event_pb2.OrderCancelled: _cancel_order,
    event_pb2.SubscriptionStarted: _start_subscription,
    event_pb2.SubscriptionPlanChanged: _change_plan,
    event_pb2.SubscriptionRenewed: _renew_subscription,
    event_pb2.SubscriptionCancellationScheduled: _schedule_cancellation,
    event_pb2.SubscriptionCancelled: _cancel_subscription,
    event_pb2.SubscriptionLapsed: _lapse_subscription,
    event_pb2.SubscriptionResumed: _resume_subscription,
}
