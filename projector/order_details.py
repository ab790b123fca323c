"""OrderDetails: an order with all that a page about it shows, as it was when it was placed."""

from commerce.event.v1 import event_pb2 as events
from commerce.query.v1.views_pb2 import OrderDetails
from commerce.type.v1 import order_status_pb2 as order_status
from shop import views
from tandem.projection.projection import Projection


def placed(_view: OrderDetails | None, event: events.OrderPlaced) -> OrderDetails:
    # Field by field: 5 µs for an order of three lines, where the constructor takes 10.
    view = OrderDetails()
    total, fee, personal = event.total, event.shipping_fee, event.personal
    view.order_id = event.order_id
    view.customer_id = event.customer_id
    view.customer_name = personal.name
    view.status = order_status.ORDER_STATUS_PLACED
    view.shipping_address.CopyFrom(personal.address)
    for line in event.lines:
        # An OrderDetailsLine has an OrderLine's fields, under the same numbers: a test says so.
        view.lines.add().MergeFromString(line.SerializeToString())
    view.subtotal.minor_units = total.minor_units - fee.minor_units
    view.subtotal.currency_code = total.currency_code
    view.shipping_fee.CopyFrom(fee)
    view.total.CopyFrom(total)
    view.placed_at.CopyFrom(event.placed_at)
    view.version = event.version
    return view


def paid(view: OrderDetails, event: events.OrderPaid) -> OrderDetails:
    view.status = order_status.ORDER_STATUS_PAID
    view.payment_reference = event.payment_reference
    view.paid_at.CopyFrom(event.paid_at)
    view.version = event.version
    return view


def shipped(view: OrderDetails, event: events.OrderShipped) -> OrderDetails:
    view.status = order_status.ORDER_STATUS_SHIPPED
    view.carrier = event.carrier
    view.tracking_number = event.tracking_number
    view.shipped_at.CopyFrom(event.shipped_at)
    view.version = event.version
    return view


def delivered(view: OrderDetails, event: events.OrderDelivered) -> OrderDetails:
    view.status = order_status.ORDER_STATUS_DELIVERED
    view.delivered_at.CopyFrom(event.delivered_at)
    view.version = event.version
    return view


def address_changed(view: OrderDetails, event: events.ShippingAddressChanged) -> OrderDetails:
    view.shipping_address.CopyFrom(event.personal.address)
    view.version = event.version
    return view


def cancelled(view: OrderDetails, event: events.OrderCancelled) -> OrderDetails:
    view.status = order_status.ORDER_STATUS_CANCELLED
    view.cancellation_reason = event.reason
    view.cancelled_at.CopyFrom(event.cancelled_at)
    view.version = event.version
    return view


def anonymized(view: OrderDetails, _event: events.OrdersAnonymized) -> OrderDetails:
    view.ClearField("customer_name")
    view.ClearField("shipping_address")
    return view


PROJECTION = Projection(
    table=views.order_details,
    message=OrderDetails,
    key_field="order_id",
    rules={
        "order_placed": placed,
        "order_paid": paid,
        "order_shipped": shipped,
        "order_delivered": delivered,
        "order_cancelled": cancelled,
        "shipping_address_changed": address_changed,
        "orders_anonymized": anonymized,
    },
    parts={"orders_anonymized": lambda event: dict.fromkeys(event.order_ids, event)},
    begins=frozenset({"order_placed"}),
    logged=True,
)
