"""Rules for orders."""

from datetime import datetime

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from command_server.aggregates import Aggregates, Customer, Order, Product, parse_id
from command_server.command import Command
from command_server.decide.rules import check_version, must_be_new, not_found, refuse, timestamp
from commerce.command.v1 import command_service_pb2 as commands
from commerce.event.v1.event_pb2 import (
    OrderCancelled,
    OrderDelivered,
    OrderLine,
    OrderPaid,
    OrderPlaced,
    OrderShipped,
    PersonalData,
    ReleasedStock,
    ShippingAddressChanged,
)
from commerce.type.v1.address_pb2 import Address
from commerce.type.v1.money_pb2 import Money
from commerce.type.v1.order_status_pb2 import OrderStatus
from tandem.runtime.errors import PreconditionFailed, Violation

# 10 trillion of a currency with cents: sums of it stay exact in 64 bits.
MAX_TOTAL = 1_000_000_000_000_000

_NOT_SHIPPED = (OrderStatus.ORDER_STATUS_PLACED, OrderStatus.ORDER_STATUS_PAID)


def place_order(request: commands.PlaceOrderRequest, command: Command, aggregates: Aggregates) -> list[Message]:
    must_be_new(aggregates.orders.get(command.subject_id), "order", command.subject_id)
    customer = aggregates.customers.get(parse_id(request.customer_id))
    products = [aggregates.products.get(parse_id(line.product_id)) for line in request.lines]
    lines = [_line(line, product) for line, product in zip(request.lines, products, strict=True) if product]
    currency = lines[0].unit_price.currency_code if lines else ""
    total = sum(line.line_total.minor_units for line in lines) + request.shipping_fee.minor_units
    broken = [
        *_customer_rules(request, customer),
        *_line_rules(request, products, currency),
        *_total_rules(request, currency, total),
    ]
    if broken or customer is None:
        raise PreconditionFailed(broken)
    return [
        OrderPlaced(
            order_id=str(command.subject_id),
            version=1,
            customer_id=str(customer.id),
            personal=PersonalData(name=customer.name, address=_addressed(_destination(request, customer), customer)),
            lines=lines,
            shipping_fee=Money(minor_units=request.shipping_fee.minor_units, currency_code=currency),
            total=Money(minor_units=total, currency_code=currency),
            placed_at=_moment(request, "placed_at", command.now),
        )
    ]


def pay_order(request: commands.PayOrderRequest, command: Command, aggregates: Aggregates) -> list[Message]:
    order = _existing(command, aggregates)
    check_version(request, order.version)
    if order.status != OrderStatus.ORDER_STATUS_PLACED:
        raise refuse("ORDER_NOT_PLACED", f"orders/{order.id}", f"only a placed order is paid; it is {_name(order)}")
    return [
        OrderPaid(
            order_id=str(order.id),
            version=order.version + 1,
            payment_reference=request.payment_reference,
            paid_at=_moment(request, "paid_at", command.now),
        )
    ]


def ship_order(request: commands.ShipOrderRequest, command: Command, aggregates: Aggregates) -> list[Message]:
    order = _existing(command, aggregates)
    check_version(request, order.version)
    if order.status != OrderStatus.ORDER_STATUS_PAID:
        raise refuse("ORDER_NOT_PAID", f"orders/{order.id}", f"only a paid order is shipped; it is {_name(order)}")
    return [
        OrderShipped(
            order_id=str(order.id),
            version=order.version + 1,
            carrier=request.carrier,
            tracking_number=request.tracking_number,
            shipped_at=_moment(request, "shipped_at", command.now),
        )
    ]


def deliver_order(request: commands.DeliverOrderRequest, command: Command, aggregates: Aggregates) -> list[Message]:
    order = _existing(command, aggregates)
    check_version(request, order.version)
    if order.status != OrderStatus.ORDER_STATUS_SHIPPED:
        raise refuse(
            "ORDER_NOT_SHIPPED", f"orders/{order.id}", f"only a shipped order is delivered; it is {_name(order)}"
        )
    return [
        OrderDelivered(
            order_id=str(order.id),
            version=order.version + 1,
            delivered_at=_moment(request, "delivered_at", command.now),
        )
    ]


def change_shipping_address(
    request: commands.ChangeShippingAddressRequest, command: Command, aggregates: Aggregates
) -> list[Message]:
    order = _existing(command, aggregates)
    check_version(request, order.version)
    if order.status not in _NOT_SHIPPED:
        description = f"only an unshipped order can go elsewhere; it is {_name(order)}"
        raise refuse("ORDER_NOT_READDRESSABLE", f"orders/{order.id}", description)
    customer = aggregates.customers[order.customer_id]
    subject = f"customers/{customer.id}"
    if customer.erased:
        raise refuse("CUSTOMER_ERASED", subject, "the customer was erased")
    address = customer.address_named(request.address_name) if request.address_name else request.address
    if address is None:
        raise refuse("ADDRESS_UNKNOWN", subject, "the customer has no address of this name")
    return [
        ShippingAddressChanged(
            order_id=str(order.id),
            version=order.version + 1,
            customer_id=str(customer.id),
            personal=PersonalData(address=_addressed(address, customer)),
        )
    ]


def cancel_order(request: commands.CancelOrderRequest, command: Command, aggregates: Aggregates) -> list[Message]:
    order = _existing(command, aggregates)
    check_version(request, order.version)
    if order.status not in _NOT_SHIPPED:
        raise refuse(
            "ORDER_NOT_CANCELLABLE", f"orders/{order.id}", f"only an unshipped order is cancelled; it is {_name(order)}"
        )
    return [
        OrderCancelled(
            order_id=str(order.id),
            version=order.version + 1,
            reason=request.reason,
            cancelled_at=timestamp(command.now),
            released=[
                ReleasedStock(
                    product_id=str(line.product_id),
                    quantity=line.quantity,
                    line_total=Money(minor_units=line.line_total, currency_code=order.currency),
                )
                for line in order.lines
            ],
            placed_at=timestamp(order.placed_at),
            shipping_fee=Money(minor_units=_shipping_fee(order), currency_code=order.currency),
            total=Money(minor_units=order.total, currency_code=order.currency),
        )
    ]


def line_total(unit_price: int, quantity: int, discount_basis_points: int) -> int:
    """What a line costs, in minor units: rounded once, half up, after the discount.

    >>> line_total(unit_price=333, quantity=1, discount_basis_points=5000)
    167
    """
    return (unit_price * quantity * (10_000 - discount_basis_points) + 5_000) // 10_000


def _line(line: commands.PlaceOrderLine, product: Product) -> OrderLine:
    total = line_total(product.price, line.quantity, line.discount_basis_points)
    return OrderLine(
        product_id=str(product.id),
        product_name=product.name,
        unit_price=Money(minor_units=product.price, currency_code=product.currency),
        quantity=line.quantity,
        discount_basis_points=line.discount_basis_points,
        line_total=Money(minor_units=total, currency_code=product.currency),
    )


def _customer_rules(request: commands.PlaceOrderRequest, customer: Customer | None) -> list[Violation]:
    subject = f"customers/{request.customer_id}"
    if customer is None:
        return [Violation(subject, "the customer is not known", "CUSTOMER_UNKNOWN")]
    if customer.erased:
        return [Violation(subject, "the customer was erased", "CUSTOMER_ERASED")]
    if _destination(request, customer) is None:
        if request.shipping_address_name:
            return [Violation(subject, "the customer has no address of this name", "ADDRESS_UNKNOWN")]
        return [Violation(subject, "the customer has no address and the order names none", "ADDRESS_REQUIRED")]
    return []


def _destination(request: commands.PlaceOrderRequest, customer: Customer) -> Address | None:
    if request.HasField("shipping_address"):
        return request.shipping_address
    if request.shipping_address_name:
        return customer.address_named(request.shipping_address_name)
    return customer.default_address.address if customer.default_address else None


def _line_rules(request: commands.PlaceOrderRequest, products: list[Product | None], currency: str) -> list[Violation]:
    broken = []
    for line, product in zip(request.lines, products, strict=True):
        subject = f"products/{line.product_id}"
        if product is None:
            broken.append(Violation(subject, "the product is not known", "PRODUCT_UNKNOWN"))
        elif product.discontinued:
            broken.append(Violation(subject, "the product is no longer sold", "PRODUCT_DISCONTINUED"))
        elif product.currency != currency:
            broken.append(
                Violation(subject, f"it is sold in {product.currency}, the order is in {currency}", "CURRENCY_MISMATCH")
            )
        elif product.stock < line.quantity:
            broken.append(Violation(subject, f"{line.quantity} are ordered, {product.stock} are left", "OUT_OF_STOCK"))
    return broken


def _total_rules(request: commands.PlaceOrderRequest, currency: str, total: int) -> list[Violation]:
    broken = []
    fee = request.shipping_fee
    if request.HasField("shipping_fee") and currency and fee.currency_code != currency:
        broken.append(
            Violation("shipping_fee", f"it is in {fee.currency_code}, the order is in {currency}", "CURRENCY_MISMATCH")
        )
    if total > MAX_TOTAL:
        broken.append(Violation("total", f"an order costs at most {MAX_TOTAL} minor units", "TOTAL_LIMIT"))
    return broken


def _addressed(address: Address | None, customer: Customer) -> Address:
    """The address with the customer's name where it names no recipient."""
    assert address is not None
    addressed = Address()
    addressed.CopyFrom(address)
    addressed.recipient = address.recipient or customer.name
    return addressed


def _existing(command: Command, aggregates: Aggregates) -> Order:
    order = aggregates.orders.get(command.subject_id)
    if order is None:
        raise not_found("order", command.subject_id)
    return order


def _shipping_fee(order: Order) -> int:
    return order.total - sum(line.line_total for line in order.lines)


def _name(order: Order) -> str:
    return OrderStatus.Name(order.status).removeprefix("ORDER_STATUS_").lower()


def _moment(request: Message, field: str, now: datetime) -> Timestamp:
    """The caller's time where it gave one, else now."""
    given: Timestamp = getattr(request, field)
    return given if request.HasField(field) else timestamp(now)
