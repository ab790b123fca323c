"""Orders: placed, paid, shipped, delivered, sent elsewhere and cancelled."""

from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    SmallInteger,
    Table,
    Text,
    Uuid,
)

from command_server.customers import CUSTOMER_ORDERS, CUSTOMERS, Customer, customer_table
from command_server.products import PRODUCTS, Product, change_stock, product_table
from commerce.command.v1 import command_service_pb2 as commands
from commerce.event.v1 import event_pb2 as events
from commerce.type.v1.address_pb2 import Address
from commerce.type.v1.money_pb2 import Money
from commerce.type.v1.order_status_pb2 import OrderStatus
from tandem.commands.domain import Command, change, change_fields, rule
from tandem.commands.rules import Id, datetime_of, id_of, must_be_new, refusal, timestamp
from tandem.commands.write_model import Aggregate, Keys, Part, Reference, States, of_subject
from tandem.feed.table import metadata
from tandem.runtime.bulk import Row
from tandem.runtime.checker import Checker
from tandem.runtime.errors import PreconditionFailed, Violation

# 10 trillion of a currency with cents: sums of it stay exact in 64 bits.
MAX_TOTAL = 1_000_000_000_000_000

_NOT_SHIPPED = (OrderStatus.ORDER_STATUS_PLACED, OrderStatus.ORDER_STATUS_PAID)


# The state, its tables and their rows


class OrderedLine(NamedTuple):
    """A line as the write model keeps it; money in minor units."""

    product_id: Id
    quantity: int
    unit_price: int
    discount_basis_points: int
    line_total: int


class Order(NamedTuple):
    """Its lines are in LINES."""

    id: Id
    version: int
    customer_id: Id
    status: OrderStatus.ValueType
    currency: str
    total: int
    placed_at: datetime


order_table = Table(
    "customer_order",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("customer_id", Uuid, ForeignKey(customer_table.c.id), nullable=False),
    Column("status", SmallInteger, nullable=False, comment="commerce.type.v1.OrderStatus"),
    Column("currency", Text, nullable=False),
    Column("total", BigInteger, nullable=False, comment="minor units"),
    Column("placed_at", DateTime(timezone=True), nullable=False),
)
# For the orders of a customer, some at a time.
Index("customer_order_of_customer", order_table.c.customer_id, order_table.c.id)

line_table = Table(
    "order_line",
    metadata,
    Column("order_id", Uuid, ForeignKey(order_table.c.id), primary_key=True),
    Column("line_number", Integer, primary_key=True),
    Column("product_id", Uuid, ForeignKey(product_table.c.id), nullable=False),
    Column("quantity", Integer, CheckConstraint("quantity > 0"), nullable=False),
    Column("unit_price", BigInteger, nullable=False, comment="minor units"),
    Column("discount_basis_points", Integer, nullable=False),
    Column("line_total", BigInteger, nullable=False, comment="minor units"),
)


def _line_rows(order_id: Id, lines: tuple[OrderedLine, ...]) -> Iterator[Row]:
    for number, it in enumerate(lines, start=1):
        yield (
            order_id, number, it.product_id, it.quantity, it.unit_price, it.discount_basis_points, it.line_total,
        )  # fmt: skip


LINES: Part[tuple[OrderedLine, ...]] = Part(
    "SELECT CAST(order_id AS text), CAST(product_id AS text), quantity, unit_price, discount_basis_points, line_total"  # noqa: S608
    f" FROM {line_table.fullname} WHERE order_id = ANY(%s) ORDER BY order_id, line_number",
    of_rows=lambda rows: tuple(OrderedLine(*row) for row in rows),
    table=line_table,
    rows_of=_line_rows,
)
"""The lines of an order: of those that are placed now, and of those for which a command asks."""
CUSTOMER_OF_ORDER = Reference(CUSTOMERS, order_table.c.customer_id, key=order_table.c.id)
PRODUCTS_OF_ORDER = Reference(PRODUCTS, line_table.c.product_id, key=line_table.c.order_id)

ORDERS = Aggregate(
    "order",
    order_table,
    of_row=Order._make,
    parts=[LINES],
    refers=[CUSTOMER_OF_ORDER, PRODUCTS_OF_ORDER],
)


# What makes a request wrong in itself, beside what the contract says of each field


def check_place_order(request: commands.PlaceOrderRequest, check: Checker) -> None:
    if request.shipping_address_name and request.HasField("shipping_address"):
        check.wrong("shipping_address_name", "INVALID", "must not be set together with shipping_address")


# What a command needs beside its order


def _place_order_keys(request: commands.PlaceOrderRequest, _subject: Id, keys: Keys) -> None:
    keys[CUSTOMERS].add(id_of(request.customer_id))
    keys[PRODUCTS].update([id_of(line.product_id) for line in request.lines])


# The rules


@rule(ORDERS, check=check_place_order, keys=_place_order_keys)
def place_order(request: commands.PlaceOrderRequest, command: Command, states: States) -> list[Message]:
    must_be_new(states[ORDERS].get(command.subject_id), "order", command.subject_id)
    customer = states[CUSTOMERS].get(id_of(request.customer_id))
    destination = _destination(request, customer) if customer else None
    products = states[PRODUCTS]
    lines = [(line, products.get(id_of(line.product_id))) for line in request.lines]
    currency = next((product.currency for _, product in lines if product), "")
    totals = [
        line_total(product.price, line.quantity, line.discount_basis_points) if product else 0
        for line, product in lines
    ]
    fee = request.shipping_fee.minor_units
    total = sum(totals) + fee
    broken = [
        *_customer_rules(request, customer, destination),
        *[it for line, product in lines for it in _line_rule(line, product, currency)],
        *_total_rules(request, currency, total),
    ]
    if broken or customer is None or destination is None:
        raise PreconditionFailed(broken)
    # Field by field, since most commands are this one: constructors that are given messages take twice as long.
    placed = events.OrderPlaced(order_id=command.subject_id, version=1, customer_id=customer.id)
    placed.personal.name = customer.name
    _address(placed.personal, destination, customer)
    for (line, product), cost in zip(lines, totals, strict=True):
        if product:
            _add_line(placed, line, product, cost)
    _set_money(placed.shipping_fee, fee, currency)
    _set_money(placed.total, total, currency)
    placed.placed_at.CopyFrom(_moment(request, "placed_at", command.now))
    return [placed]


@rule(ORDERS)
def pay_order(request: commands.PayOrderRequest, command: Command, states: States) -> list[Message]:
    order = ORDERS.current(states, request, command.subject_id)
    if order.status != OrderStatus.ORDER_STATUS_PLACED:
        raise refusal("ORDER_NOT_PLACED", f"orders/{order.id}", f"only a placed order is paid; it is {_name(order)}")
    return [
        events.OrderPaid(
            order_id=order.id,
            version=order.version + 1,
            payment_reference=request.payment_reference,
            paid_at=_moment(request, "paid_at", command.now),
        )
    ]


@rule(ORDERS)
def ship_order(request: commands.ShipOrderRequest, command: Command, states: States) -> list[Message]:
    order = ORDERS.current(states, request, command.subject_id)
    if order.status != OrderStatus.ORDER_STATUS_PAID:
        raise refusal("ORDER_NOT_PAID", f"orders/{order.id}", f"only a paid order is shipped; it is {_name(order)}")
    return [
        events.OrderShipped(
            order_id=order.id,
            version=order.version + 1,
            carrier=request.carrier,
            tracking_number=request.tracking_number,
            shipped_at=_moment(request, "shipped_at", command.now),
        )
    ]


@rule(ORDERS)
def deliver_order(request: commands.DeliverOrderRequest, command: Command, states: States) -> list[Message]:
    order = ORDERS.current(states, request, command.subject_id)
    if order.status != OrderStatus.ORDER_STATUS_SHIPPED:
        raise refusal(
            "ORDER_NOT_SHIPPED", f"orders/{order.id}", f"only a shipped order is delivered; it is {_name(order)}"
        )
    return [
        events.OrderDelivered(
            order_id=order.id,
            version=order.version + 1,
            delivered_at=_moment(request, "delivered_at", command.now),
        )
    ]


@rule(ORDERS, keys=of_subject(CUSTOMER_OF_ORDER))
def change_shipping_address(
    request: commands.ChangeShippingAddressRequest, command: Command, states: States
) -> list[Message]:
    order = ORDERS.current(states, request, command.subject_id)
    if order.status not in _NOT_SHIPPED:
        description = f"only an unshipped order can go elsewhere; it is {_name(order)}"
        raise refusal("ORDER_NOT_READDRESSABLE", f"orders/{order.id}", description)
    customer = states[CUSTOMERS][order.customer_id]
    subject = f"customers/{customer.id}"
    if customer.erased:
        raise refusal("CUSTOMER_ERASED", subject, "the customer was erased")
    address = customer.address_of(request.address_name) if request.address_name else request.address
    if address is None:
        raise refusal("ADDRESS_UNKNOWN", subject, "the customer has no address of this name")
    personal = events.PersonalData()
    _address(personal, address, customer)
    return [
        events.ShippingAddressChanged(
            order_id=order.id,
            version=order.version + 1,
            customer_id=customer.id,
            personal=personal,
        )
    ]


# A cancelled order gives the stock of its lines back.
@rule(ORDERS, keys=of_subject(LINES, PRODUCTS_OF_ORDER))
def cancel_order(request: commands.CancelOrderRequest, command: Command, states: States) -> list[Message]:
    order = ORDERS.current(states, request, command.subject_id)
    if order.status not in _NOT_SHIPPED:
        raise refusal(
            "ORDER_NOT_CANCELLABLE", f"orders/{order.id}", f"only an unshipped order is cancelled; it is {_name(order)}"
        )
    lines = states[LINES][order.id]
    shipping_fee = order.total - sum(line.line_total for line in lines)
    return [
        events.OrderCancelled(
            order_id=order.id,
            version=order.version + 1,
            reason=request.reason,
            cancelled_at=timestamp(command.now),
            released=[
                events.ReleasedStock(
                    product_id=line.product_id,
                    quantity=line.quantity,
                    line_total=Money(minor_units=line.line_total, currency_code=order.currency),
                )
                for line in lines
            ],
            placed_at=timestamp(order.placed_at),
            shipping_fee=Money(minor_units=shipping_fee, currency_code=order.currency),
            total=Money(minor_units=order.total, currency_code=order.currency),
        )
    ]


def line_total(unit_price: int, quantity: int, discount_basis_points: int) -> int:
    """What a line costs, in minor units: rounded once, half up, after the discount.

    >>> line_total(unit_price=333, quantity=1, discount_basis_points=5000)
    167
    """
    return (unit_price * quantity * (10_000 - discount_basis_points) + 5_000) // 10_000


def _add_line(placed: events.OrderPlaced, line: commands.PlaceOrderLine, product: Product, total: int) -> None:
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
        return customer.address_of(request.shipping_address_name)
    default = customer.default_address
    return default.address if default else None


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


def _address(personal: events.PersonalData, address: Address, customer: Customer) -> None:
    """Sets the address, with the customer's name where it names no recipient."""
    personal.address.CopyFrom(address)
    if not address.recipient:
        personal.address.recipient = customer.name


def _name(order: Order) -> str:
    return OrderStatus.Name(order.status).removeprefix("ORDER_STATUS_").lower()


def _moment(request: Message, field: str, now: datetime) -> Timestamp:
    """The caller's time where it gave one, else now."""
    given: Timestamp = getattr(request, field)
    return given if request.HasField(field) else timestamp(now)


# What each event changes


@change(ORDERS)
def order_placed(states: States, event: events.OrderPlaced) -> None:
    order_id, customer_id = event.order_id, event.customer_id
    states[ORDERS][order_id] = Order(
        id=order_id,
        version=event.version,
        customer_id=customer_id,
        status=OrderStatus.ORDER_STATUS_PLACED,
        currency=event.total.currency_code,
        total=event.total.minor_units,
        placed_at=datetime_of(event.placed_at),
    )
    lines = tuple(
        [
            OrderedLine(
                line.product_id,
                line.quantity,
                line.unit_price.minor_units,
                line.discount_basis_points,
                line.line_total.minor_units,
            )
            for line in event.lines
        ]
    )
    states[LINES][order_id] = lines
    orders = states[CUSTOMER_ORDERS]
    if customer_id in orders:
        orders[customer_id] |= {order_id}
    for line in lines:
        change_stock(states, line.product_id, -line.quantity)


@change(ORDERS)
def order_cancelled(states: States, event: events.OrderCancelled) -> None:
    ORDERS.change(states, event, status=OrderStatus.ORDER_STATUS_CANCELLED)
    for released in event.released:
        change_stock(states, released.product_id, released.quantity)


change_fields(ORDERS, events.OrderPaid, status=OrderStatus.ORDER_STATUS_PAID)
change_fields(ORDERS, events.OrderShipped, status=OrderStatus.ORDER_STATUS_SHIPPED)
change_fields(ORDERS, events.OrderDelivered, status=OrderStatus.ORDER_STATUS_DELIVERED)
# Rules never ask where an order goes, so the write model does not keep it.
change_fields(ORDERS, events.ShippingAddressChanged)
