"""OrderSummary: an order as a row of its customer's list."""

from datetime import UTC, datetime

from commerce.event.v1 import event_pb2 as events
from commerce.query.v1.views_pb2 import OrderSummary
from commerce.type.v1 import order_status_pb2 as order_status
from shop import views
from tandem.projection.projection import Projection, Rule

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# The versions and statuses of an order are all that later events change here.
Later = (
    events.OrderPaid
    | events.OrderShipped
    | events.OrderDelivered
    | events.OrderCancelled
    | events.ShippingAddressChanged
    | events.OrderRefunded
)


def placed(_view: OrderSummary | None, event: events.OrderPlaced | events.OrderImported) -> OrderSummary:
    lines = event.lines
    view = OrderSummary()
    view.order_id = event.order_id
    view.customer_id = event.customer_id
    view.status = order_status.ORDER_STATUS_PLACED
    view.line_count = len(lines)
    view.unit_count = sum([line.quantity for line in lines])
    view.version = event.version
    view.total.CopyFrom(event.total)
    view.placed_at.CopyFrom(event.placed_at)
    if event.HasField("terms"):
        view.external_reference = event.terms.external_reference
    return view


def imported(_view: OrderSummary | None, event: events.OrderImported) -> OrderSummary:
    view = placed(None, event)
    view.status = event.status
    return view


def paid(view: OrderSummary, event: events.OrderPaid) -> OrderSummary:
    # What is paid on delivery stays shipped or delivered.
    if view.status == order_status.ORDER_STATUS_PLACED:
        view.status = order_status.ORDER_STATUS_PAID
    view.version = event.version
    return view


def later(status: order_status.OrderStatus.ValueType | None = None) -> Rule:
    """The rule of an event that an order may have later on. status: the one that the order then has, if another."""

    def rule(view: OrderSummary, event: Later) -> OrderSummary:
        if status is not None:
            view.status = status
        view.version = event.version
        return view

    return rule


PROJECTION = Projection(
    table=views.order_summary,
    message=OrderSummary,
    key_field="order_id",
    rules={
        "order_placed": placed,
        "order_imported": imported,
        "order_paid": paid,
        "order_shipped": later(order_status.ORDER_STATUS_SHIPPED),
        "order_delivered": later(order_status.ORDER_STATUS_DELIVERED),
        "order_cancelled": later(order_status.ORDER_STATUS_CANCELLED),
        "shipping_address_changed": later(),
        "order_refunded": later(),
    },
    scope="customer_id",
    begins=frozenset({"order_placed", "order_imported"}),
)
