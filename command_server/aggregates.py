"""The aggregates as the rules see them, and how an event changes them."""

import uuid
from dataclasses import dataclass, field, replace

from google.protobuf.message import Message

from commerce.event.v1 import event_pb2
from commerce.type.v1.address_pb2 import Address
from commerce.type.v1.order_status_pb2 import OrderStatus


@dataclass(frozen=True, slots=True)
class Customer:
    id: uuid.UUID
    version: int
    name: str
    email: str
    phone: str
    address: Address | None


@dataclass(frozen=True, slots=True)
class Product:
    """`stock` is what can still be ordered: orders take from it when they are placed. `price` in minor units.

    Orders do not count up `version`: a caller that changes a price must not race with every sale.
    """

    id: uuid.UUID
    version: int
    name: str
    description: str
    category: str
    price: int
    currency: str
    stock: int
    discontinued: bool


@dataclass(frozen=True, slots=True)
class OrderedLine:
    """A line as the write model keeps it; money in minor units."""

    product_id: uuid.UUID
    quantity: int
    unit_price: int
    discount_basis_points: int
    line_total: int


@dataclass(frozen=True, slots=True)
class Order:
    id: uuid.UUID
    version: int
    customer_id: uuid.UUID
    status: OrderStatus.ValueType
    currency: str
    total: int
    lines: tuple[OrderedLine, ...]


@dataclass(frozen=True, slots=True)
class Keys:
    """Which aggregates a command may read or change."""

    orders: frozenset[uuid.UUID] = frozenset()
    customers: frozenset[uuid.UUID] = frozenset()
    products: frozenset[uuid.UUID] = frozenset()


@dataclass
class Aggregates:
    """The aggregates that a batch has locked and loaded, by id. What is not in the database is not in here."""

    orders: dict[uuid.UUID, Order] = field(default_factory=dict)
    customers: dict[uuid.UUID, Customer] = field(default_factory=dict)
    products: dict[uuid.UUID, Product] = field(default_factory=dict)


def version_of(aggregates: Aggregates, subject_id: uuid.UUID) -> int:
    """The version of the aggregate with this id. Ids are UUIDs: no two kinds share one in a batch."""
    subject = (
        aggregates.orders.get(subject_id) or aggregates.customers.get(subject_id) or aggregates.products.get(subject_id)
    )
    assert subject is not None, f"no aggregate {subject_id}"
    return subject.version


def apply(aggregates: Aggregates, event: Message) -> None:
    """Replaces the aggregates that the event changes by their next state. Raises KeyError for one not loaded."""
    match event:
        case event_pb2.CustomerRegistered():
            _register_customer(aggregates, event)
        case event_pb2.AddressUpdated():
            customer = aggregates.customers[uuid.UUID(event.customer_id)]
            aggregates.customers[customer.id] = replace(customer, version=event.version, address=event.personal.address)
        case event_pb2.ProductAdded():
            _add_product(aggregates, event)
        case event_pb2.PriceChanged():
            product = aggregates.products[uuid.UUID(event.product_id)]
            aggregates.products[product.id] = replace(product, version=event.version, price=event.price.minor_units)
        case event_pb2.StockAdjusted():
            product = aggregates.products[uuid.UUID(event.product_id)]
            aggregates.products[product.id] = replace(product, version=event.version, stock=product.stock + event.delta)
        case event_pb2.ProductDiscontinued():
            product = aggregates.products[uuid.UUID(event.product_id)]
            aggregates.products[product.id] = replace(product, version=event.version, discontinued=True)
        case event_pb2.OrderPlaced():
            _place_order(aggregates, event)
        case event_pb2.OrderPaid():
            _move_order(aggregates, event.order_id, event.version, OrderStatus.ORDER_STATUS_PAID)
        case event_pb2.OrderShipped():
            _move_order(aggregates, event.order_id, event.version, OrderStatus.ORDER_STATUS_SHIPPED)
        case event_pb2.OrderCancelled():
            _move_order(aggregates, event.order_id, event.version, OrderStatus.ORDER_STATUS_CANCELLED)
            for released in event.released:
                _change_stock(aggregates, uuid.UUID(released.product_id), released.quantity)
        case _:
            raise TypeError(f"no rule applies {event.DESCRIPTOR.full_name}")


def _register_customer(aggregates: Aggregates, event: event_pb2.CustomerRegistered) -> None:
    personal = event.personal
    customer = Customer(
        id=uuid.UUID(event.customer_id),
        version=event.version,
        name=personal.name,
        email=personal.email,
        phone=personal.phone,
        address=personal.address if personal.HasField("address") else None,
    )
    aggregates.customers[customer.id] = customer


def _add_product(aggregates: Aggregates, event: event_pb2.ProductAdded) -> None:
    product = Product(
        id=uuid.UUID(event.product_id),
        version=event.version,
        name=event.name,
        description=event.description,
        category=event.category,
        price=event.price.minor_units,
        currency=event.price.currency_code,
        stock=event.stock,
        discontinued=False,
    )
    aggregates.products[product.id] = product


def _place_order(aggregates: Aggregates, event: event_pb2.OrderPlaced) -> None:
    lines = tuple(
        OrderedLine(
            product_id=uuid.UUID(line.product_id),
            quantity=line.quantity,
            unit_price=line.unit_price.minor_units,
            discount_basis_points=line.discount_basis_points,
            line_total=line.line_total.minor_units,
        )
        for line in event.lines
    )
    order = Order(
        id=uuid.UUID(event.order_id),
        version=event.version,
        customer_id=uuid.UUID(event.customer_id),
        status=OrderStatus.ORDER_STATUS_PLACED,
        currency=event.total.currency_code,
        total=event.total.minor_units,
        lines=lines,
    )
    aggregates.orders[order.id] = order
    for line in lines:
        _change_stock(aggregates, line.product_id, -line.quantity)


def _move_order(aggregates: Aggregates, order_id: str, version: int, status: OrderStatus.ValueType) -> None:
    order = aggregates.orders[uuid.UUID(order_id)]
    aggregates.orders[order.id] = replace(order, version=version, status=status)


def _change_stock(aggregates: Aggregates, product_id: uuid.UUID, delta: int) -> None:
    product = aggregates.products[product_id]
    aggregates.products[product_id] = replace(product, stock=product.stock + delta)
