"""OrderDetails: an order with all that a page about it shows, as it was when it was placed."""

from commerce.event.v1 import event_pb2 as events
from commerce.query.v1.views_pb2 import OrderDetails, OrderDetailsLine
from commerce.type.v1.money_pb2 import Money
from commerce.type.v1.order_status_pb2 import OrderStatus
from projector.projections.shape import Projection, present


def placed(_view: OrderDetails | None, event: events.OrderPlaced) -> OrderDetails:
    return OrderDetails(
        order_id=event.order_id,
        customer_id=event.customer_id,
        customer_name=event.personal.name,
        status=OrderStatus.ORDER_STATUS_PLACED,
        shipping_address=event.personal.address,
        lines=[
            OrderDetailsLine(
                product_id=line.product_id,
                product_name=line.product_name,
                unit_price=line.unit_price,
                quantity=line.quantity,
                discount_basis_points=line.discount_basis_points,
                line_total=line.line_total,
            )
            for line in event.lines
        ],
        subtotal=Money(
            minor_units=event.total.minor_units - event.shipping_fee.minor_units,
            currency_code=event.total.currency_code,
        ),
        shipping_fee=event.shipping_fee,
        total=event.total,
        placed_at=event.placed_at,
        version=event.version,
    )


def paid(view: OrderDetails | None, event: events.OrderPaid) -> OrderDetails:
    changed: OrderDetails = present(view, event)
    changed.status = OrderStatus.ORDER_STATUS_PAID
    changed.payment_reference = event.payment_reference
    changed.paid_at.CopyFrom(event.paid_at)
    changed.version = event.version
    return changed


def shipped(view: OrderDetails | None, event: events.OrderShipped) -> OrderDetails:
    changed: OrderDetails = present(view, event)
    changed.status = OrderStatus.ORDER_STATUS_SHIPPED
    changed.carrier = event.carrier
    changed.tracking_number = event.tracking_number
    changed.shipped_at.CopyFrom(event.shipped_at)
    changed.version = event.version
    return changed


def delivered(view: OrderDetails | None, event: events.OrderDelivered) -> OrderDetails:
    changed: OrderDetails = present(view, event)
    changed.status = OrderStatus.ORDER_STATUS_DELIVERED
    changed.delivered_at.CopyFrom(event.delivered_at)
    changed.version = event.version
    return changed


def address_changed(view: OrderDetails | None, event: events.ShippingAddressChanged) -> OrderDetails:
    changed: OrderDetails = present(view, event)
    changed.shipping_address.CopyFrom(event.personal.address)
    changed.version = event.version
    return changed


def cancelled(view: OrderDetails | None, event: events.OrderCancelled) -> OrderDetails:
    changed: OrderDetails = present(view, event)
    changed.status = OrderStatus.ORDER_STATUS_CANCELLED
    changed.cancellation_reason = event.reason
    changed.cancelled_at.CopyFrom(event.cancelled_at)
    changed.version = event.version
    return changed


def anonymized(view: OrderDetails | None, event: events.OrdersAnonymized) -> OrderDetails:
    changed: OrderDetails = present(view, event)
    changed.ClearField("customer_name")
    changed.ClearField("shipping_address")
    return changed


PROJECTION = Projection(
    view="order_details",
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
    keys={"orders_anonymized": lambda event: event.order_ids},
)
