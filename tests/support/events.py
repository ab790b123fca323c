"""Events as the command server stores them, and histories of a shop made of them."""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from google.protobuf.timestamp_pb2 import Timestamp

from commerce.event.v1 import event_pb2 as events
from commerce.event.v1.event_pb2 import Event
from commerce.type.v1.money_pb2 import Money
from commerce.type.v1.product_attribute_pb2 import ProductAttribute
from shop.events import EVENTS
from tandem.feed.events import FeedEvent
from tandem.testing import views as testing
from tests.support.builders import NOW, address, identity, usd
from tests.support.subscriptions import Subscriptions


def at(seconds: int) -> Timestamp:
    """A moment, `seconds` after NOW."""
    return timestamp(NOW + timedelta(seconds=seconds))


def timestamp(moment: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp


def feed_events(history: Iterable[Event], *, first: int = 1) -> list[FeedEvent]:
    """The events with positions from `first` on."""
    return testing.feed_events(EVENTS, history, first=first)


def customer_registered(customer: int = 1, *, has_address: bool = True) -> Event:
    personal = events.PersonalData(
        name=f"Customer {customer}",
        email=f"{customer}@example.org",
        phone="030-0074321",
        address=address() if has_address else None,
    )
    return Event(
        customer_registered=events.CustomerRegistered(
            customer_id=identity("customer", customer), version=1, personal=personal, registered_at=at(customer)
        )
    )


def customer_renamed(customer: int = 1, *, version: int = 2, name: str = "Renamed") -> Event:
    return Event(
        customer_renamed=events.CustomerRenamed(
            customer_id=identity("customer", customer), version=version, personal=events.PersonalData(name=name)
        )
    )


def address_updated(
    customer: int = 1, *, version: int = 2, city: str = "Hamburg", name: str = "", default: bool = False
) -> Event:
    personal = events.PersonalData(address=address(city=city), address_name=name)
    return Event(
        address_updated=events.AddressUpdated(
            customer_id=identity("customer", customer), version=version, personal=personal, is_default=default
        )
    )


def address_removed(customer: int = 1, *, version: int = 2, name: str = "main") -> Event:
    return Event(
        address_removed=events.AddressRemoved(
            customer_id=identity("customer", customer),
            version=version,
            personal=events.PersonalData(address_name=name),
        )
    )


def customer_erased(customer: int = 1, *, version: int = 2) -> Event:
    return Event(
        customer_erased=events.CustomerErased(
            customer_id=identity("customer", customer), version=version, erased_at=at(400)
        )
    )


def orders_anonymized(customer: int = 1, *, orders: Iterable[int] = ()) -> Event:
    return Event(
        orders_anonymized=events.OrdersAnonymized(
            customer_id=identity("customer", customer), order_ids=[identity("order", number) for number in orders]
        )
    )


def product_added(product: int = 1, *, stock: int = 100, description: str = "10 boxes x 20 bags") -> Event:
    return Event(
        product_added=events.ProductAdded(
            product_id=identity("product", product),
            version=1,
            name=f"Product {product}",
            description=description,
            category="Tea",
            price=usd(1999),
            stock=stock,
        )
    )


def product_revised(
    product: int = 1, *, version: int = 2, name: str = "Product, revised", attributes: dict[str, str] | None = None
) -> Event:
    return Event(
        product_revised=events.ProductRevised(
            product_id=identity("product", product),
            version=version,
            name=name,
            description="20 boxes",
            category="Beverages",
            attributes=[ProductAttribute(name=name, value=value) for name, value in (attributes or {}).items()],
        )
    )


def price_changed(product: int = 1, *, version: int = 2, price: int = 2499) -> Event:
    return Event(
        price_changed=events.PriceChanged(product_id=identity("product", product), version=version, price=usd(price))
    )


def stock_adjusted(product: int = 1, *, version: int = 2, delta: int = 5) -> Event:
    return Event(
        stock_adjusted=events.StockAdjusted(product_id=identity("product", product), version=version, delta=delta)
    )


def product_discontinued(product: int = 1, *, version: int = 2) -> Event:
    return Event(
        product_discontinued=events.ProductDiscontinued(product_id=identity("product", product), version=version)
    )


def order_placed(
    order: int = 1,
    *,
    customer: int = 1,
    lines: Iterable[tuple[int, int]] = ((1, 1),),
    placed_at: Timestamp | None = None,
    currency: str = "USD",
) -> Event:
    """lines: (product, quantity); a product may come twice."""
    placed = events.OrderPlaced(
        order_id=identity("order", order),
        version=1,
        customer_id=identity("customer", customer),
        personal=events.PersonalData(name=f"Customer {customer}", address=address()),
        lines=[
            events.OrderLine(
                product_id=identity("product", product),
                product_name=f"Product {product}",
                unit_price=Money(minor_units=1000, currency_code=currency),
                quantity=quantity,
                discount_basis_points=1000,
                line_total=Money(minor_units=900 * quantity, currency_code=currency),
            )
            for product, quantity in lines
        ],
        shipping_fee=Money(minor_units=495, currency_code=currency),
        placed_at=placed_at or at(order),
    )
    total = 495 + sum(line.line_total.minor_units for line in placed.lines)
    placed.total.CopyFrom(Money(minor_units=total, currency_code=currency))
    return Event(order_placed=placed)


def order_paid(order: int = 1, *, version: int = 2) -> Event:
    return Event(
        order_paid=events.OrderPaid(
            order_id=identity("order", order), version=version, payment_reference=f"pay-{order}", paid_at=at(100)
        )
    )


def order_shipped(order: int = 1, *, version: int = 3) -> Event:
    return Event(
        order_shipped=events.OrderShipped(
            order_id=identity("order", order),
            version=version,
            carrier="Speedy Express",
            tracking_number=f"track-{order}",
            shipped_at=at(200),
        )
    )


def order_delivered(order: int = 1, *, version: int = 4) -> Event:
    return Event(
        order_delivered=events.OrderDelivered(order_id=identity("order", order), version=version, delivered_at=at(300))
    )


def shipping_address_changed(order: int = 1, *, customer: int = 1, version: int = 2, city: str = "Hamburg") -> Event:
    return Event(
        shipping_address_changed=events.ShippingAddressChanged(
            order_id=identity("order", order),
            version=version,
            customer_id=identity("customer", customer),
            personal=events.PersonalData(address=address(city=city)),
        )
    )


def order_cancelled(
    order: int = 1, *, version: int = 2, lines: Iterable[tuple[int, int]] = ((1, 1),), placed: Event | None = None
) -> Event:
    """placed: the order's order_placed; without it, the one that the other arguments tell."""
    before = (placed or order_placed(order, lines=lines)).order_placed
    return Event(
        order_cancelled=events.OrderCancelled(
            order_id=before.order_id,
            version=version,
            reason="changed my mind",
            cancelled_at=at(150),
            released=[
                events.ReleasedStock(product_id=it.product_id, quantity=it.quantity, line_total=it.line_total)
                for it in before.lines
            ],
            placed_at=before.placed_at,
            shipping_fee=before.shipping_fee,
            total=before.total,
        )
    )


@dataclass
class _Order:
    customer: int
    placed: Event
    status: str = "placed"
    version: int = 1


@dataclass
class Shop:
    """Draws one event after the other such that each is possible after those before it."""

    rng: random.Random
    customers: int = 0
    versions: dict[int, int] = field(default_factory=dict)
    """Product to version."""
    orders: dict[int, _Order] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._subscriptions = Subscriptions(self.rng)

    def events(self, count: int) -> Iterator[Event]:
        for _ in range(count):
            yield self._next()

    def _next(self) -> Event:
        if not self.customers or self.rng.random() < 0.1:
            self.customers += 1
            return customer_registered(self.customers, has_address=self.rng.random() < 0.8)
        if not self.versions or self.rng.random() < 0.1:
            product = len(self.versions) + 1
            self.versions[product] = 1
            return product_added(product, stock=self.rng.randint(0, 100))
        about = [self._about_product, self._about_customer, self._place, self._about_order, self._about_subscription]
        return self.rng.choice(about)()

    def _about_subscription(self) -> Event:
        return self._subscriptions.event(self.customers)

    def _about_customer(self) -> Event:
        customer = self.rng.randint(1, self.customers)
        if self.rng.random() < 0.3:
            return customer_renamed(customer, name=f"Name {self.rng.randint(1, 99)}")
        return address_updated(customer, city=f"City {self.rng.randint(1, 99)}")

    def _about_product(self) -> Event:
        product = self.rng.choice(list(self.versions))
        self.versions[product] += 1
        version = self.versions[product]
        kind = self.rng.randrange(6)
        if kind < 2:
            return price_changed(product, version=version, price=self.rng.randint(0, 9999))
        if kind < 4:
            return stock_adjusted(product, version=version, delta=self.rng.randint(-50, 50))
        if kind < 5:
            name = f"Product {product}, {version}"
            return product_revised(product, version=version, name=name, attributes={"Origin": f"Place {version}"})
        return product_discontinued(product, version=version)

    def _place(self) -> Event:
        order = len(self.orders) + 1
        lines = [(self.rng.choice(list(self.versions)), self.rng.randint(1, 9)) for _ in range(self.rng.randint(1, 4))]
        customer = self.rng.randint(1, self.customers)
        placed = order_placed(
            order,
            customer=customer,
            lines=lines,
            # Over some days of two months, and not in the order of time.
            placed_at=at(self.rng.randint(-2, 2) * 43_200 + order),
            currency=self.rng.choice(["USD", "EUR"]),
        )
        self.orders[order] = _Order(customer, placed)
        return placed

    def _about_order(self) -> Event:
        open_orders = [number for number, it in self.orders.items() if it.status in {"placed", "paid", "shipped"}]
        if not open_orders:
            return self._place()
        number = self.rng.choice(open_orders)
        order = self.orders[number]
        order.version += 1
        if order.status == "shipped":
            order.status = "delivered"
            return order_delivered(number, version=order.version)
        if self.rng.random() < 0.2:
            city = f"City {self.rng.randint(1, 99)}"
            return shipping_address_changed(number, customer=order.customer, version=order.version, city=city)
        if self.rng.random() < 0.3:
            order.status = "cancelled"
            return order_cancelled(number, version=order.version, placed=order.placed)
        if order.status == "placed":
            order.status = "paid"
            return order_paid(number, version=order.version)
        order.status = "shipped"
        return order_shipped(number, version=order.version)


def a_history(count: int, seed: int = 1) -> list[Event]:
    """The same events for the same seed."""
    return list(Shop(random.Random(seed)).events(count))
