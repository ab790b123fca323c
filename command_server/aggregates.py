"""The aggregates as the rules see them. Tuples, since each command of a batch makes some: they are made the fastest."""

from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import NamedTuple

from commerce.type.v1.address_pb2 import Address, NamedAddress
from commerce.type.v1.order_status_pb2 import OrderStatus
from commerce.type.v1.subscription_status_pb2 import SubscriptionStatus

Id = str
"""A UUID as text: as requests and events have it, and compared and hashed in a tenth of the time of an object."""


def id_of(text: str) -> Id:
    """The id that a validated request writes as text, maybe in capitals. Events hold ids as they are here."""
    return text.lower()


class Customer(NamedTuple):
    id: Id
    version: int
    name: str
    email: str
    phone: str
    addresses: tuple[NamedAddress, ...]
    erased: bool

    @property
    def default_address(self) -> NamedAddress | None:
        for it in self.addresses:
            if it.is_default:
                return it
        return None

    def address_named(self, name: str) -> Address | None:
        return next((it.address for it in self.addresses if it.name == name), None)


class Product(NamedTuple):
    """`stock` is what can still be ordered: orders take from it when they are placed. `price` in minor units.

    Orders do not count up `version`: a caller that changes a price must not race with every sale.
    """

    id: Id
    version: int
    name: str
    description: str
    category: str
    price: int
    currency: str
    stock: int
    discontinued: bool
    attributes: tuple[tuple[str, str], ...]
    """(name, value), by name."""

    def with_stock(self, stock: int) -> "Product":
        """As `_replace`, in half of the time: each order does this to some products."""
        return Product(
            self.id, self.version, self.name, self.description, self.category, self.price, self.currency, stock,
            self.discontinued, self.attributes,
        )  # fmt: skip


class OrderedLine(NamedTuple):
    """A line as the write model keeps it; money in minor units."""

    product_id: Id
    quantity: int
    unit_price: int
    discount_basis_points: int
    line_total: int


class Order(NamedTuple):
    id: Id
    version: int
    customer_id: Id
    status: OrderStatus.ValueType
    currency: str
    total: int
    lines: tuple[OrderedLine, ...]
    """None where nothing asked for them: see Keys.with_lines."""
    placed_at: datetime


class Subscription(NamedTuple):
    """Its plan and price are those of the next renewal; `price` in minor units for `period_months` months.

    period_start, period_end: the last period that is paid for, UTC.
    """

    id: Id
    version: int
    customer_id: Id
    status: SubscriptionStatus.ValueType
    plan: str
    price: int
    currency: str
    period_months: int
    started_at: datetime
    period_start: datetime
    period_end: datetime
    cancellation_reason: str

    @property
    def anchor_day(self) -> int:
        """The day of the month on which its periods begin and end, where the month has it."""
        return self.started_at.day


@dataclass
class Keys:
    """Which aggregates the commands of a batch may read or change."""

    orders: set[Id] = field(default_factory=set)
    customers: set[Id] = field(default_factory=set)
    products: set[Id] = field(default_factory=set)
    subscriptions: set[Id] = field(default_factory=set)
    with_customer: set[Id] = field(default_factory=set)
    """Those of `orders` whose customers are read too."""
    with_lines: set[Id] = field(default_factory=set)
    """Those of `orders` whose lines are read too, and the lines' products."""
    whole_customers: set[Id] = field(default_factory=set)
    """Those of `customers` of which all orders are wanted, by id."""


@dataclass
class Aggregates:
    """The aggregates that a batch has locked and loaded, by id. What is not in the database is not in here."""

    orders: dict[Id, Order] = field(default_factory=dict)
    customers: dict[Id, Customer] = field(default_factory=dict)
    products: dict[Id, Product] = field(default_factory=dict)
    subscriptions: dict[Id, Subscription] = field(default_factory=dict)
    order_ids: dict[Id, frozenset[Id]] = field(default_factory=dict)
    """All orders of the customers that were asked for as a whole, by customer."""

    def copy(self) -> "Aggregates":
        """The same aggregates, to be replaced one by one."""
        return Aggregates(**{it.name: dict(getattr(self, it.name)) for it in fields(Aggregates)})


_BY_ID_FIELD = {
    "order_id": "orders",
    "customer_id": "customers",
    "product_id": "products",
    "subscription_id": "subscriptions",
}


def version_of(aggregates: Aggregates, id_field: str, subject_id: Id) -> int:
    """The version of what `id_field` of a request names: callers may give one id to things of two kinds."""
    version: int = getattr(aggregates, _BY_ID_FIELD[id_field])[subject_id].version
    return version
