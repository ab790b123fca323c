"""Rules for orders."""

from datetime import datetime

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from command_server.aggregates import Aggregates, Customer, Order, Product, id_of
from command_server.command import Command
from command_server.decide.rules import check_version, must_be_new, not_found, refuse, timestamp
from commerce.command.v1 import command_service_pb2 as commands
from commerce.event.v1.event_pb2 import (
    OrderCancelled,
    OrderDelivered,
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
    customer = aggregates.customers.get(id_of(request.customer_id))
    destination = _destination(request, customer) if customer else None
    lines = [(line, aggregates.products.get(id_of(line.product_id))) for line in request.lines]
    currency = next((product.currency for _, product in lines if product), "")
    totals = [_line_total(line, product) if product else 0 for line, product in lines]
    fee = request.shipping_fee.minor_units
    total = sum(totals) + fee
    broken = [
        *_customer_rules(request, customer, destination),
        *_line_rules(lines, currency),
        *_total_rules(request, currency, total),
    ]
    if broken or customer is None or destination is None:
        raise PreconditionFailed(broken)
    # Field by field: this is the command that there is most of, and constructors take messages twice as long.
    placed = OrderPlaced(order_id=command.subject_id, version=1, customer_id=customer.id)
    placed.personal.name = customer.name
    _address(placed.personal, destination, customer)
    for (line, product), line_total in zip(lines, totals, strict=True):
        if product:
            _add_line(placed, line, product, line_total)
    _set_money(placed.shipping_fee, fee, currency)
    _set_money(placed.total, total, currency)
    placed.placed_at.CopyFrom(_moment(request, "placed_at", command.now))
    return [placed]


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
    personal = PersonalData()
    _address(personal, address, customer)
    return [
        ShippingAddressChanged(
            order_id=str(order.id),
            version=order.version + 1,
            customer_id=str(customer.id),
            personal=personal,
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


Line = tuple[commands.PlaceOrderLine, Product | None]
"""What is ordered, and the product if it is known."""


def _line_total(line: commands.PlaceOrderLine, product: Product) -> int:
    return line_total(product.price, line.quantity, line.discount_basis_points)


def _add_line(placed: OrderPlaced, line: commands.PlaceOrderLine, product: Product, total: int) -> None:
    added = placed.lines.add()
    # As UUIDs are written.
    added.product_id = line.product_id.lower()
    added.product_name = product.name
    added.quantity = line.quantity
    added.discount_basis_points = line.discount_basis_points
    _set_money(added.unit_price, product.price, product.currency)
    _set_money(added.line_total, total, product.currency)


def _set_money(money: Money, minor_units: int, currency: str) -> None:
    money.minor_units = minor_units
    money.currency_code = currency


def _customer_rules(
    request: commands.PlaceOrderRequest, customer: Customer | None, destination: Address | None
) -> list[Violation]:
    if destination and customer and not customer.erased:
        return []
    subject = f"customers/{request.customer_id}"
    if customer is None:
        return [Violation(subject, "the customer is not known", "CUSTOMER_UNKNOWN")]
    if customer.erased:
        return [Violation(subject, "the customer was erased", "CUSTOMER_ERASED")]
    if request.shipping_address_name:
        return [Violation(subject, "the customer has no address of this name", "ADDRESS_UNKNOWN")]
    return [Violation(subject, "the customer has no address and the order names none", "ADDRESS_REQUIRED")]


def _destination(request: commands.PlaceOrderRequest, customer: Customer) -> Address | None:
    if request.HasField("shipping_address"):
        return request.shipping_address
    if request.shipping_address_name:
        return customer.address_named(request.shipping_address_name)
    default = customer.default_address
    return default.address if default else None


def _line_rules(lines: list[Line], currency: str) -> list[Violation]:
    return [it for line, product in lines for it in _line_rule(line, product, currency)]


def _line_rule(line: commands.PlaceOrderLine, product: Product | None, currency: str) -> list[Violation]:
    """The first thing that is wrong with the line, or nothing."""
    if product and not product.discontinued and product.currency == currency and product.stock >= line.quantity:
        return []
    subject = f"products/{line.product_id}"
    if product is None:
        return [Violation(subject, "the product is not known", "PRODUCT_UNKNOWN")]
    if product.discontinued:
        return [Violation(subject, "the product is no longer sold", "PRODUCT_DISCONTINUED")]
    if product.currency != currency:
        description = f"it is sold in {product.currency}, the order is in {currency}"
        return [Violation(subject, description, "CURRENCY_MISMATCH")]
    return [Violation(subject, f"{line.quantity} are ordered, {product.stock} are left", "OUT_OF_STOCK")]


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


def _address(personal: PersonalData, address: Address, customer: Customer) -> None:
    """Sets the address, with the customer's name where it names no recipient."""
    personal.address.CopyFrom(address)
    if not address.recipient:
        personal.address.recipient = customer.name


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
