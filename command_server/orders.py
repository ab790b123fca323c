"""Orders: placed or brought in, paid, shipped, delivered, sent elsewhere, cancelled and refunded."""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
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
    LargeBinary,
    SmallInteger,
    Table,
    Text,
    Uuid,
    text,
)

from command_server.customers import CUSTOMER_ORDERS, CUSTOMERS, Customer, customer_table
from command_server.products import PRODUCTS, Product, change_stock, product_table
from commerce.command.v1 import command_service_pb2 as commands
from commerce.event.v1 import event_pb2 as events
from commerce.internal.v1.stored_pb2 import CancelUnpaidOrderRequest, CancelUnpaidOrderResponse, StoredTerms
from commerce.type.v1.address_pb2 import Address
from commerce.type.v1.money_pb2 import Money
from commerce.type.v1.order_status_pb2 import OrderStatus
from tandem.commands.domain import Command, change, change_fields, rule
from tandem.commands.rules import Id, datetime_of, id_of, moment, must_be_new, not_found, refusal, timestamp
from tandem.commands.write_model import Aggregate, Keys, Part, Reference, States, of_subject
from tandem.feed.table import metadata
from tandem.runtime.bulk import Row
from tandem.runtime.checker import Checker
from tandem.runtime.errors import PreconditionFailed, Violation

# 10 trillion of a currency with cents: sums of it stay exact in 64 bits.
MAX_TOTAL = 1_000_000_000_000_000

_NOT_SHIPPED = (OrderStatus.ORDER_STATUS_PLACED, OrderStatus.ORDER_STATUS_PAID)
_CARRIED = (OrderStatus.ORDER_STATUS_SHIPPED, OrderStatus.ORDER_STATUS_DELIVERED)
# The clock of another system, from which a time may come.
_CLOCK_SKEW = timedelta(minutes=1)


# The state, its tables and their rows


class OrderedLine(NamedTuple):
    """A line as the write model keeps it; money in minor units."""

    product_id: Id
    quantity: int
    unit_price: int
    discount_basis_points: int
    line_total: int


class Terms(NamedTuple):
    """What few orders have: the fields of commerce.internal.v1.StoredTerms. Money in minor units."""

    discount: int = 0
    added_tax: int = 0
    payment_due_on_delivery: bool = False
    nothing_to_ship: bool = False
    refunded: int = 0


_USUAL = Terms()


class Order(NamedTuple):
    """Its lines are in LINES."""

    id: Id
    version: int
    customer_id: Id
    status: OrderStatus.ValueType
    currency: str
    total: int
    placed_at: datetime
    terms: Terms = _USUAL

    @property
    def is_paid(self) -> bool:
        """Of one that stands."""
        return self.status != OrderStatus.ORDER_STATUS_PLACED and not self.terms.payment_due_on_delivery


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
    Column(
        "terms",
        LargeBinary,
        nullable=False,
        server_default=text("''::bytea"),
        comment="commerce.internal.v1.StoredTerms",
    ),
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


# Orders of a kind have the same.
@lru_cache(maxsize=1024)
def _terms_of(stored: bytes) -> Terms:
    it = StoredTerms.FromString(stored)
    terms = Terms(it.discount, it.added_tax, it.payment_due_on_delivery, it.nothing_to_ship, it.refunded)
    return _USUAL if terms == _USUAL else terms


def _of_row(row: Row) -> Order:
    return Order._make((*row[:-1], _terms_of(row[-1])))


def _row_of(it: Order) -> Row:
    terms = it.terms
    return *it[:-1], b"" if terms is _USUAL else StoredTerms(**terms._asdict()).SerializeToString(deterministic=True)


ORDERS = Aggregate(
    "order",
    order_table,
    of_row=_of_row,
    row_of=_row_of,
    parts=[LINES],
    refers=[CUSTOMER_OF_ORDER, PRODUCTS_OF_ORDER],
)


# What makes a request wrong in itself, beside what the contract says of each field


def check_place_order(request: commands.PlaceOrderRequest, check: Checker) -> None:
    if request.shipping_address_name and request.HasField("shipping_address"):
        check.wrong("shipping_address_name", "INVALID", "must not be set together with shipping_address")


def check_import_order(request: commands.ImportOrderRequest, check: Checker) -> None:
    placed = (request.placed_at.seconds, request.placed_at.nanos)
    for name in ("paid_at", "shipped_at", "delivered_at", "cancelled_at", "refunded_at"):
        at = getattr(request, name)
        if request.HasField(name) and (at.seconds, at.nanos) < placed:
            check.wrong(name, "OUT_OF_RANGE", "must not be before placed_at")
    carried = request.HasField("shipped_at") or request.HasField("delivered_at")
    if request.HasField("cancelled_at") and carried:
        check.wrong("cancelled_at", "INVALID", "must not be set together with shipped_at or delivered_at")
    if request.HasField("refunded_at") and not request.HasField("refunded"):
        check.wrong("refunded_at", "INVALID", "must not be set without refunded")
    paid = request.HasField("paid_at") or (carried and not request.terms.payment_on_delivery)
    if request.refunded.minor_units and not paid:
        check.wrong("refunded", "INVALID", "must not be set for an order that was not paid")


def check_refund_order(request: commands.RefundOrderRequest, check: Checker) -> None:
    if request.HasField("amount") and request.amount.minor_units == 0:
        check.wrong("amount.minor_units", "OUT_OF_RANGE", "must not be zero")


# What a command needs beside its order


def _order_keys(request: commands.PlaceOrderRequest | commands.ImportOrderRequest, _subject: Id, keys: Keys) -> None:
    keys[CUSTOMERS].add(id_of(request.customer_id))
    keys[PRODUCTS].update([id_of(line.product_id) for line in request.lines])


# The rules


@rule(ORDERS, check=check_place_order, keys=_order_keys)
def place_order(request: commands.PlaceOrderRequest, command: Command, states: States) -> list[Message]:
    must_be_new(states[ORDERS].get(command.subject_id), "order", command.subject_id)
    customer = states[CUSTOMERS].get(id_of(request.customer_id))
    products = states[PRODUCTS]
    lines = [(line, products.get(id_of(line.product_id))) for line in request.lines]
    nothing_to_ship = _is_nothing_to_ship(lines)
    destination = _destination(request, customer, nothing_to_ship=nothing_to_ship) if customer else None
    currency = next((product.currency for _, product in lines if product), "")
    totals = [
        line_total(product.price, line.quantity, line.discount_basis_points) if product else 0
        for line, product in lines
    ]
    subtotal = sum(totals)
    total = _total(request, subtotal)
    broken = [
        *_customer_rules(request, customer),
        *(() if destination else _address_rules(request, customer, nothing_to_ship=nothing_to_ship)),
        *[it for line, product in lines for it in _line_rule(line, product, currency, line.quantity)],
        *_total_rules(request, currency, subtotal, total),
    ]
    if not broken and len({id(product) for _, product in lines}) < len(lines):
        broken = _shared_stock_rules(lines, currency)
    if broken or customer is None:
        raise PreconditionFailed(broken)
    # Field by field, since most commands are this one: constructors that are given messages take twice as long.
    placed = events.OrderPlaced(order_id=command.subject_id, version=1, customer_id=customer.id)
    placed.personal.name = customer.name
    if destination is not None:
        _set_address(placed.personal.address, destination, customer.name)
    ordered: dict[Id, int] = {}
    for (line, product), cost in zip(lines, totals, strict=True):
        if product:
            _add_line(placed, line, product, cost)
            ordered[product.id] = ordered.get(product.id, 0) + line.quantity
            left = product.stock if product.unlimited_stock else product.stock - ordered[product.id]
            placed.stock_left.append(left)
    _set_money(placed.shipping_fee, request.shipping_fee.minor_units, currency)
    _set_money(placed.total, total, currency)
    placed.placed_at.CopyFrom(moment(request, "placed_at", command.now))
    _add_terms(placed, request, customer.name)
    if nothing_to_ship:
        placed.nothing_to_ship = True
    return [placed]


@rule(ORDERS, check=check_import_order, keys=_order_keys)
def import_order(request: commands.ImportOrderRequest, command: Command, states: States) -> list[Message]:
    must_be_new(states[ORDERS].get(command.subject_id), "order", command.subject_id)
    customer = states[CUSTOMERS].get(id_of(request.customer_id))
    products = states[PRODUCTS]
    lines = [(line, products.get(id_of(line.product_id))) for line in request.lines]
    currency = request.lines[0].unit_price.currency_code
    totals = [_imported_line_total(line) for line in request.lines]
    subtotal = sum(totals)
    total = _total(request, subtotal)
    unknown = [line.product_id for line, product in lines if product is None]
    broken = [
        *_customer_rules(request, customer),
        *[Violation(f"products/{it}", "the product is not known", "PRODUCT_UNKNOWN") for it in dict.fromkeys(unknown)],
        *_total_rules(request, currency, subtotal, total),
        *_imported_rules(request, currency, total),
    ]
    if broken or customer is None:
        raise PreconditionFailed(broken)
    name = request.customer_name or customer.name
    imported = events.OrderImported(
        order_id=command.subject_id,
        version=1,
        customer_id=customer.id,
        personal=events.PersonalData(name=name),
        shipping_fee=Money(minor_units=request.shipping_fee.minor_units, currency_code=currency),
        total=Money(minor_units=total, currency_code=currency),
        status=_imported_status(request),
        nothing_to_ship=all(product.not_shipped for _, product in lines if product),
        payment_reference=request.payment_reference,
        carrier=request.carrier,
        tracking_number=request.tracking_number,
        cancellation_reason=request.cancellation_reason,
    )
    if request.HasField("shipping_address"):
        _set_address(imported.personal.address, request.shipping_address, name)
    _add_terms(imported, request, name)
    for (line, product), cost in zip(lines, totals, strict=True):
        if product:
            added = imported.lines.add()
            added.product_id = product.id
            added.product_name = line.product_name or product.name
            added.quantity = line.quantity
            added.discount_basis_points = line.discount_basis_points
            added.unit_price.CopyFrom(line.unit_price)
            _set_money(added.line_total, cost, currency)
    for field in ("placed_at", "paid_at", "shipped_at", "delivered_at", "cancelled_at"):
        if request.HasField(field):
            getattr(imported, field).CopyFrom(getattr(request, field))
    if request.refunded.minor_units:
        imported.refunded.CopyFrom(request.refunded)
        imported.refunded_at.CopyFrom(request.refunded_at if request.HasField("refunded_at") else request.placed_at)
    return [imported]


@rule(ORDERS)
def pay_order(request: commands.PayOrderRequest, command: Command, states: States) -> list[Message]:
    order = ORDERS.current(states, request, command.subject_id)
    if order.status != OrderStatus.ORDER_STATUS_PLACED and not (
        order.terms.payment_due_on_delivery and order.status in _CARRIED
    ):
        raise refusal("ORDER_NOT_PLACED", f"orders/{order.id}", f"only a placed order is paid; it is {_name(order)}")
    return [
        events.OrderPaid(
            order_id=order.id,
            version=order.version + 1,
            payment_reference=request.payment_reference,
            paid_at=_since_placed(request, "paid_at", command, order),
        )
    ]


@rule(ORDERS)
def ship_order(request: commands.ShipOrderRequest, command: Command, states: States) -> list[Message]:
    order = ORDERS.current(states, request, command.subject_id)
    if order.terms.nothing_to_ship:
        raise refusal("NOTHING_TO_SHIP", f"orders/{order.id}", "nothing of it is shipped; deliver it when it is paid")
    if order.status != OrderStatus.ORDER_STATUS_PAID and not _goes_unpaid(order):
        raise refusal("ORDER_NOT_PAID", f"orders/{order.id}", f"only a paid order is shipped; it is {_name(order)}")
    return [
        events.OrderShipped(
            order_id=order.id,
            version=order.version + 1,
            carrier=request.carrier,
            tracking_number=request.tracking_number,
            shipped_at=_since_placed(request, "shipped_at", command, order),
        )
    ]


@rule(ORDERS)
def deliver_order(request: commands.DeliverOrderRequest, command: Command, states: States) -> list[Message]:
    order = ORDERS.current(states, request, command.subject_id)
    if order.terms.nothing_to_ship:
        if order.status != OrderStatus.ORDER_STATUS_PAID and not _goes_unpaid(order):
            description = f"what is not shipped is delivered when it is paid; it is {_name(order)}"
            raise refusal("ORDER_NOT_PAID", f"orders/{order.id}", description)
    elif order.status != OrderStatus.ORDER_STATUS_SHIPPED:
        raise refusal(
            "ORDER_NOT_SHIPPED", f"orders/{order.id}", f"only a shipped order is delivered; it is {_name(order)}"
        )
    return [
        events.OrderDelivered(
            order_id=order.id,
            version=order.version + 1,
            delivered_at=_since_placed(request, "delivered_at", command, order),
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
    if order.terms.nothing_to_ship:
        raise refusal("ORDER_NOT_READDRESSABLE", f"orders/{order.id}", "nothing of it is shipped")
    customer = states[CUSTOMERS][order.customer_id]
    subject = f"customers/{customer.id}"
    if customer.erased:
        raise refusal("CUSTOMER_ERASED", subject, "the customer was erased")
    address = customer.address_of(request.address_name) if request.address_name else request.address
    if address is None:
        raise refusal("ADDRESS_UNKNOWN", subject, "the customer has no address of this name")
    personal = events.PersonalData()
    _set_address(personal.address, address, customer.name)
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
    return [_cancelled(order, states, request.reason, _since_placed(request, "cancelled_at", command, order))]


# No RPC takes it: the reaction to a placed order gives it when the time to pay is over.
@rule(ORDERS, keys=of_subject(LINES, PRODUCTS_OF_ORDER), response=CancelUnpaidOrderResponse)
def cancel_unpaid_order(request: CancelUnpaidOrderRequest, command: Command, states: States) -> list[Message]:
    order = states[ORDERS].get(command.subject_id)
    if order is None:
        raise not_found("order", request.order_id)
    if order.status != OrderStatus.ORDER_STATUS_PLACED or order.terms.payment_due_on_delivery:
        description = f"only an order that is to be paid now is cancelled for it; it is {_name(order)}"
        raise refusal("ORDER_NOT_CANCELLABLE", f"orders/{order.id}", description)
    return [_cancelled(order, states, "not paid in time", timestamp(command.now))]


def _cancelled(order: Order, states: States, reason: str, at: Timestamp) -> events.OrderCancelled:
    lines = states[LINES][order.id]
    terms = order.terms
    shipping_fee = order.total - sum(line.line_total for line in lines) + terms.discount - terms.added_tax
    return events.OrderCancelled(
        order_id=order.id,
        version=order.version + 1,
        reason=reason,
        cancelled_at=at,
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


@rule(ORDERS, check=check_refund_order)
def refund_order(request: commands.RefundOrderRequest, command: Command, states: States) -> list[Message]:
    order = ORDERS.current(states, request, command.subject_id)
    subject = f"orders/{order.id}"
    if not order.is_paid or order.status == OrderStatus.ORDER_STATUS_CANCELLED:
        description = f"only an order that stands and is paid is given back; it is {_name(order)}"
        raise refusal("ORDER_NOT_PAID", subject, description)
    if request.amount.currency_code != order.currency:
        raise refusal("CURRENCY_MISMATCH", subject, f"it was paid in {order.currency}")
    refunded = order.terms.refunded + request.amount.minor_units
    if refunded > order.total:
        description = f"it cost {order.total} minor units, {order.terms.refunded} of which were given back"
        raise refusal("REFUND_LIMIT", subject, description)
    return [
        events.OrderRefunded(
            order_id=order.id,
            version=order.version + 1,
            amount=request.amount,
            refunded=Money(minor_units=refunded, currency_code=order.currency),
            reason=request.reason,
            refunded_at=_since_placed(request, "refunded_at", command, order),
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


_New = commands.PlaceOrderRequest | commands.ImportOrderRequest
"""What a new order comes from: both have its amounts in the same fields."""


def _total(request: _New, subtotal: int) -> int:
    """What an order costs, in minor units."""
    total = subtotal + request.shipping_fee.minor_units
    if not request.HasField("terms"):
        return total
    terms = request.terms
    return total - terms.discount.minor_units + (0 if terms.tax_included else terms.tax.minor_units)


def _add_terms(event: events.OrderPlaced | events.OrderImported, request: _New, name: str) -> None:
    """What few orders have. name: the customer's."""
    if request.HasField("terms"):
        event.terms.CopyFrom(request.terms)
    if request.HasField("billing_address"):
        _set_address(event.personal.billing_address, request.billing_address, name)


def _imported_line_total(line: commands.ImportOrderLine) -> int:
    if line.HasField("line_total"):
        return line.line_total.minor_units
    return line_total(line.unit_price.minor_units, line.quantity, line.discount_basis_points)


def _imported_status(request: commands.ImportOrderRequest) -> OrderStatus.ValueType:
    """The last that happened to it."""
    given = {field.name for field, _ in request.ListFields()}
    for field, status in (
        ("cancelled_at", OrderStatus.ORDER_STATUS_CANCELLED),
        ("delivered_at", OrderStatus.ORDER_STATUS_DELIVERED),
        ("shipped_at", OrderStatus.ORDER_STATUS_SHIPPED),
        ("paid_at", OrderStatus.ORDER_STATUS_PAID),
    ):
        if field in given:
            return status
    return OrderStatus.ORDER_STATUS_PLACED


def _imported_rules(request: commands.ImportOrderRequest, currency: str, total: int) -> list[Violation]:
    amounts = {f"lines[{number}].unit_price": line.unit_price for number, line in enumerate(request.lines)}
    amounts |= {
        f"lines[{number}].line_total": line.line_total
        for number, line in enumerate(request.lines)
        if line.HasField("line_total")
    }
    amounts |= {name: getattr(request, name) for name in ("refunded", "total") if request.HasField(name)}
    broken = _currency_rules(amounts, currency)
    if request.HasField("total") and request.total.minor_units != total:
        description = f"it is said to be {request.total.minor_units} minor units, the order comes to {total}"
        broken.append(Violation("total", description, "TOTAL_MISMATCH"))
    if request.refunded.minor_units > total:
        broken.append(Violation("refunded", f"the order cost {total} minor units", "REFUND_LIMIT"))
    return broken


def _since_placed(request: Message, field: str, command: Command, order: Order) -> Timestamp:
    """The caller's time where it gave one, else now. Refuses one at which the order was not placed yet."""
    given = moment(request, field, command.now)
    if request.HasField(field) and datetime_of(given) < order.placed_at - _CLOCK_SKEW:
        description = f"{field} is before {order.placed_at.isoformat()}, when the order was placed"
        raise refusal("TIME_BEFORE_PLACED", f"orders/{order.id}", description)
    return given


def _goes_unpaid(order: Order) -> bool:
    """Whether it may be shipped although it is not paid."""
    return order.status == OrderStatus.ORDER_STATUS_PLACED and order.terms.payment_due_on_delivery


def _customer_rules(request: _New, customer: Customer | None) -> list[Violation]:
    if customer and not customer.erased:
        return []
    subject = f"customers/{request.customer_id}"
    if customer is None:
        return [Violation(subject, "the customer is not known", "CUSTOMER_UNKNOWN")]
    return [Violation(subject, "the customer was erased", "CUSTOMER_ERASED")]


def _address_rules(
    request: commands.PlaceOrderRequest,
    customer: Customer | None,
    *,
    nothing_to_ship: bool,
) -> list[Violation]:
    """Of an order that has no address."""
    if customer is None or customer.erased:
        return []
    subject = f"customers/{request.customer_id}"
    if request.shipping_address_name:
        return [Violation(subject, "the customer has no address of this name", "ADDRESS_UNKNOWN")]
    if nothing_to_ship:
        return []
    return [Violation(subject, "the customer has no address and the order names none", "ADDRESS_REQUIRED")]


def _destination(request: commands.PlaceOrderRequest, customer: Customer, *, nothing_to_ship: bool) -> Address | None:
    if request.HasField("shipping_address"):
        return request.shipping_address
    if request.shipping_address_name:
        return customer.address_of(request.shipping_address_name)
    default = None if nothing_to_ship else customer.default_address
    return default.address if default else None


_Lines = Sequence[tuple[commands.PlaceOrderLine, Product | None]]


def _is_nothing_to_ship(lines: _Lines) -> bool:
    # Mostly the first tells.
    first = lines[0][1]
    if first is None or not first.not_shipped:
        return False
    return all(product is not None and product.not_shipped for _, product in lines)


def _shared_stock_rules(lines: _Lines, currency: str) -> list[Violation]:
    """Of lines that are right alone, some of them of one product."""
    wanted: dict[Id, int] = {}
    last: dict[Id, tuple[commands.PlaceOrderLine, Product]] = {}
    for line, product in lines:
        if product:
            wanted[product.id] = wanted.get(product.id, 0) + line.quantity
            last[product.id] = line, product
    return [it for key, (line, product) in last.items() for it in _line_rule(line, product, currency, wanted[key])]


def _line_rule(line: commands.PlaceOrderLine, product: Product | None, currency: str, units: int) -> list[Violation]:
    """The first thing that is wrong with the line, or nothing. units: how many are wanted of the product."""
    if product and not product.discontinued and product.currency == currency and product.stock >= units:
        return []
    subject = f"products/{line.product_id}"
    if product is None:
        return [Violation(subject, "the product is not known", "PRODUCT_UNKNOWN")]
    if product.discontinued:
        return [Violation(subject, "the product is no longer sold", "PRODUCT_DISCONTINUED")]
    if product.currency != currency:
        description = f"it is sold in {product.currency}, the order is in {currency}"
        return [Violation(subject, description, "CURRENCY_MISMATCH")]
    return [Violation(subject, f"{units} are ordered, {product.stock} are left", "OUT_OF_STOCK")]


def _currency_rules(amounts: dict[str, Money], currency: str) -> list[Violation]:
    return [
        Violation(name, f"it is in {it.currency_code}, the order is in {currency}", "CURRENCY_MISMATCH")
        for name, it in amounts.items()
        if currency and it.currency_code != currency
    ]


def _total_rules(request: _New, currency: str, subtotal: int, total: int) -> list[Violation]:
    broken = []
    if request.HasField("shipping_fee"):
        broken += _currency_rules({"shipping_fee": request.shipping_fee}, currency)
    if request.HasField("terms"):
        terms = request.terms
        amounts = {"terms.discount": terms.discount, "terms.tax": terms.tax}
        given = {name: it for name, it in amounts.items() if it.currency_code}
        broken += _currency_rules(given, currency)
        if terms.discount.minor_units > subtotal:
            broken.append(Violation("terms.discount", f"the lines cost {subtotal} minor units", "DISCOUNT_LIMIT"))
    if total > MAX_TOTAL:
        broken.append(Violation("total", f"an order costs at most {MAX_TOTAL} minor units", "TOTAL_LIMIT"))
    return broken


def _set_address(of_event: Address, address: Address, name: str) -> None:
    """Sets the address, with the customer's name where it names no recipient."""
    of_event.CopyFrom(address)
    if not address.recipient:
        of_event.recipient = name


def _name(order: Order) -> str:
    return OrderStatus.Name(order.status).removeprefix("ORDER_STATUS_").lower()


# What each event changes


@change(ORDERS)
def order_placed(states: States, event: events.OrderPlaced) -> None:
    usual = not event.HasField("terms") and not event.nothing_to_ship
    terms = _USUAL if usual else _terms(event, is_paid=False)
    for line in _keep(states, event, OrderStatus.ORDER_STATUS_PLACED, terms):
        change_stock(states, line.product_id, -line.quantity)


@change(ORDERS)
def order_imported(states: States, event: events.OrderImported) -> None:
    """What is in stock is counted without what was sold elsewhere."""
    terms = _terms(event, is_paid=event.HasField("paid_at"))._replace(refunded=event.refunded.minor_units)
    _keep(states, event, event.status, _USUAL if terms == _USUAL else terms)


def _terms(event: events.OrderPlaced | events.OrderImported, *, is_paid: bool) -> Terms:
    terms = event.terms
    return Terms(
        discount=terms.discount.minor_units,
        added_tax=0 if terms.tax_included else terms.tax.minor_units,
        payment_due_on_delivery=terms.payment_on_delivery and not is_paid,
        nothing_to_ship=event.nothing_to_ship,
    )


def _keep(
    states: States,
    event: events.OrderPlaced | events.OrderImported,
    status: OrderStatus.ValueType,
    terms: Terms,
) -> tuple[OrderedLine, ...]:
    """Keeps the new order; returns its lines."""
    order_id, customer_id = event.order_id, event.customer_id
    states[ORDERS][order_id] = Order(
        id=order_id,
        version=event.version,
        customer_id=customer_id,
        status=status,
        currency=event.total.currency_code,
        total=event.total.minor_units,
        placed_at=datetime_of(event.placed_at),
        terms=terms,
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
    return lines


@change(ORDERS)
def order_paid(states: States, event: events.OrderPaid) -> None:
    order = states[ORDERS][event.order_id]
    placed = order.status == OrderStatus.ORDER_STATUS_PLACED
    terms = order.terms._replace(payment_due_on_delivery=False) if order.terms is not _USUAL else _USUAL
    ORDERS.change(states, event, status=OrderStatus.ORDER_STATUS_PAID if placed else order.status, terms=terms)


@change(ORDERS)
def order_refunded(states: States, event: events.OrderRefunded) -> None:
    terms = states[ORDERS][event.order_id].terms._replace(refunded=event.refunded.minor_units)
    ORDERS.change(states, event, terms=terms)


@change(ORDERS)
def order_cancelled(states: States, event: events.OrderCancelled) -> None:
    ORDERS.change(states, event, status=OrderStatus.ORDER_STATUS_CANCELLED)
    for released in event.released:
        change_stock(states, released.product_id, released.quantity)


change_fields(ORDERS, events.OrderShipped, status=OrderStatus.ORDER_STATUS_SHIPPED)
change_fields(ORDERS, events.OrderDelivered, status=OrderStatus.ORDER_STATUS_DELIVERED)
# Rules never ask where an order goes, so the write model does not keep it.
change_fields(ORDERS, events.ShippingAddressChanged)
