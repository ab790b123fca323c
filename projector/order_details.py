"""OrderDetails: an order with all that a page about it shows, as it was when it was placed."""

from commerce.event.v1 import event_pb2 as events
from commerce.query.v1.views_pb2 import OrderDetails
from commerce.type.v1 import order_status_pb2 as order_status
from shop import views
from tandem.projection.projection import Projection, present


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


def paid(view: OrderDetails | None, event: events.OrderPaid) -> OrderDetails:
    changed: OrderDetails = present(view)
    changed.status = order_status.ORDER_STATUS_PAID
    changed.payment_reference = event.payment_reference
    changed.paid_at.CopyFrom(event.paid_at)
    changed.version = event.version
    return changed


def shipped(view: OrderDetails | None, event: events.OrderShipped) -> OrderDetails:
    changed: OrderDetails = present(view)
    changed.status = order_status.ORDER_STATUS_SHIPPED
    changed.carrier = event.carrier
    changed.tracking_number = event.tracking_number
    changed.shipped_at.CopyFrom(event.shipped_at)
    changed.version = event.version
    return changed


def delivered(view: OrderDetails | None, event: events.OrderDelivered) -> OrderDetails:
    changed: OrderDetails = present(view)
    changed.status = order_status.ORDER_STATUS_DELIVERED
    changed.delivered_at.CopyFrom(event.delivered_at)
    changed.version = event.version
    return changed


def address_changed(view: OrderDetails | None, event: events.ShippingAddressChanged) -> OrderDetails:
    changed: OrderDetails = present(view)
    changed.shipping_address.CopyFrom(event.personal.address)
    changed.version = event.version
    return changed


def cancelled(view: OrderDetails | None, event: events.OrderCancelled) -> OrderDetails:
    changed: OrderDetails = present(view)
    changed.status = order_status.ORDER_STATUS_CANCELLED
    changed.cancellation_reason = event.reason
    changed.cancelled_at.CopyFrom(event.cancelled_at)
    changed.version = event.version
    return changed


def anonymized(view: OrderDetails | None, _event: events.OrdersAnonymized) -> OrderDetails:
    changed: OrderDetails = present(view)
    changed.ClearField("customer_name")
    changed.ClearField("shipping_address")
    return changed


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
