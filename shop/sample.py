"""Sample data: commands for a small shop, the same every time.

Ids and times are part of it, and each command has a request id: to send it again changes nothing.
"""

import random
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from commerce.command.v1 import command_service_pb2 as commands
from commerce.type.v1.address_pb2 import Address
from commerce.type.v1.money_pb2 import Money
from commerce.type.v1.product_attribute_pb2 import ProductAttribute
from tandem.cli.sample import Stage

CUSTOMERS = 200
PRODUCTS = 500
ORDERS = 1000
SUBSCRIPTIONS = 100

_NAMESPACE = uuid.UUID("5c3f2a0e-51a7-4d0a-9a55-0d6d1f3f7b11")
_FIRST_ORDER = datetime(2025, 1, 2, 8, 0, tzinfo=UTC)

_GIVEN_NAMES = ("Ada", "Ben", "Chiara", "Deniz", "Elif", "Farid", "Greta", "Hugo", "Ines", "Jonas", "Keiko", "Lena",
                "Milan", "Nora", "Omar", "Priya", "Rosa", "Sven", "Tomás", "Yara")  # fmt: skip
_FAMILY_NAMES = ("Almeida", "Bauer", "Costa", "Dubois", "Eriksson", "Fischer", "García", "Haddad", "Jansen",
                 "Kowalski", "Lindqvist", "Moreau", "Novak", "Okafor", "Petit", "Rossi", "Tanaka", "Weber")  # fmt: skip
_PLACES = (
    ("Berlin", "10115", "DE"), ("Hamburg", "20095", "DE"), ("Paris", "75002", "FR"), ("Lyon", "69001", "FR"),
    ("Lisboa", "1100-048", "PT"), ("Madrid", "28001", "ES"), ("Milano", "20121", "IT"), ("Wien", "1010", "AT"),
    ("Stockholm", "111 22", "SE"), ("Kraków", "31-001", "PL"),
)  # fmt: skip
_STREETS = ("Station Road", "Mill Lane", "Market Square", "Harbour Street", "Garden Row", "Church Street", "Elm Avenue")
_QUALITIES = ("Plain", "Fine", "Sturdy", "Light", "Small", "Large", "Everyday", "Classic", "Folding", "Double")
_THINGS = {
    "Kitchen": ("Teapot", "Bread Knife", "Saucepan", "Mixing Bowl", "Coffee Grinder", "Chopping Board", "Whisk"),
    "Desk": ("Notebook", "Fountain Pen", "Desk Lamp", "Letter Tray", "Ruler", "Stapler"),
    "Garden": ("Watering Can", "Trowel", "Pruning Shears", "Flower Pot", "Garden Chair", "Wheelbarrow"),
    "Travel": ("Rucksack", "Water Bottle", "Travel Mug", "Umbrella", "Suitcase", "Map Case"),
}
_MATERIALS = {
    "Kitchen": ("Steel", "Beech", "Stoneware", "Glass"),
    "Desk": ("Brass", "Oak", "Paper", "Leather"),
    "Garden": ("Steel", "Ash", "Terracotta", "Zinc"),
    "Travel": ("Canvas", "Leather", "Nylon", "Aluminium"),
}
_COLOURS = ("White", "Black", "Green", "Blue", "Red", "Grey", "Yellow")
_CARRIERS = ("DHL", "UPS", "GLS", "PostNord")
_PLANS = {"basic": 990, "family": 1990, "gold": 4990}
# Of ten subscriptions five just go on, and one each changes its plan and is renewed; by the last digit of the number.
_UPGRADED, _RENEWED, _CANCELING, _CANCELLED, _LAPSED = 5, 6, 7, 8, 9
_REASONS = ("Ordered twice", "No longer needed", "Found it elsewhere", "Delivery takes too long")


def identity(kind: str, number: int) -> str:
    """The id of a thing of the sample: identity("order", 7). Numbers begin at 1."""
    return str(uuid.uuid5(_NAMESPACE, f"{kind}/{number}"))


def generate() -> list[Stage]:
    """The sample data in stages."""
    dice = random.Random("tandem")  # noqa: S311 - the same every time is the point
    placed = [_placed_at(number) for number in range(1, ORDERS + 1)]
    fates = [_fate(dice) for _ in placed]
    shipped = [at + timedelta(days=1 + number % 4) for number, at in enumerate(placed)]
    return [
        Stage("customers", tuple(_register(dice, number) for number in range(1, CUSTOMERS + 1))),
        Stage("products", tuple(_add(dice, number) for number in range(1, PRODUCTS + 1))),
        Stage("orders", tuple(_place(dice, n, at) for n, at in enumerate(placed, 1))),
        Stage("payments", tuple(_pay(n, at) for n, at in enumerate(placed, 1) if fates[n - 1].paid)),
        Stage("shipments and cancellations", tuple(_endings(dice, shipped, fates))),
        Stage("deliveries", tuple(_deliver(dice, n, at) for n, at in enumerate(shipped, 1) if fates[n - 1].delivered)),
        Stage("subscriptions", tuple(_subscribe(dice, number) for number in range(1, SUBSCRIPTIONS + 1))),
        Stage("changes of plan and cancellations", tuple(_change_subscriptions(dice))),
        Stage("renewals", tuple(_renew(number) for number in range(1, SUBSCRIPTIONS + 1) if number % 10 == _RENEWED)),
    ]


@dataclass(frozen=True)
class _Fate:
    paid: bool
    shipped: bool
    delivered: bool
    cancelled: bool


def _fate(dice: random.Random) -> _Fate:
    """Of 100 orders 55 are delivered, 10 on their way, 15 wait for shipment, 10 for payment, and 10 are cancelled.

    Half of the cancelled ones are paid.
    """
    roll = dice.random()
    return _Fate(paid=roll < 0.85, shipped=roll < 0.65, delivered=roll < 0.55, cancelled=0.80 <= roll < 0.90)


def _placed_at(number: int) -> datetime:
    """Spread evenly over 2025, which is past: commands may not lie in the future."""
    return _FIRST_ORDER + timedelta(minutes=number * (340 * 24 * 60 // ORDERS))


def _moment(at: datetime) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(at)
    return timestamp


def _euros(cents: int) -> Money:
    return Money(minor_units=cents, currency_code="EUR")


def _register(dice: random.Random, number: int) -> Message:
    given, family = dice.choice(_GIVEN_NAMES), dice.choice(_FAMILY_NAMES)
    city, postal_code, country = dice.choice(_PLACES)
    return commands.RegisterCustomerRequest(
        request_id=identity("register", number),
        customer_id=identity("customer", number),
        name=f"{given} {family}",
        email=f"customer{number}@example.com",
        address=Address(
            street=f"{dice.randint(1, 120)} {dice.choice(_STREETS)}",
            city=city,
            postal_code=postal_code,
            country_code=country,
        ),
    )


def _add(dice: random.Random, number: int) -> Message:
    category = dice.choice(tuple(_THINGS))
    quality, colour, thing = dice.choice(_QUALITIES), dice.choice(_COLOURS), dice.choice(_THINGS[category])
    name = f"{quality} {colour} {thing}"
    return commands.AddProductRequest(
        request_id=identity("add", number),
        product_id=identity("product", number),
        name=name,
        description=f"{name}, article {number:04d}",
        category=category,
        price=_euros(dice.randint(3, 120) * 100 - dice.choice((1, 5, 10, 50))),
        # More than all the sample's orders together may take of one product.
        initial_stock=dice.randint(200, 600),
        attributes=[
            ProductAttribute(name="Colour", value=colour),
            ProductAttribute(name="Material", value=dice.choice(_MATERIALS[category])),
            ProductAttribute(name="Weight", value=f"{dice.randint(4, 80) * 25} g"),
        ],
    )


def _place(dice: random.Random, number: int, at: datetime) -> Message:
    chosen = dice.sample(range(1, PRODUCTS + 1), dice.randint(1, 5))
    return commands.PlaceOrderRequest(
        request_id=identity("place", number),
        order_id=identity("order", number),
        customer_id=identity("customer", dice.randint(1, CUSTOMERS)),
        lines=[
            commands.PlaceOrderLine(
                product_id=identity("product", product),
                quantity=dice.randint(1, 4),
                discount_basis_points=dice.choice((0, 0, 0, 500, 1000)),
            )
            for product in chosen
        ],
        shipping_fee=_euros(dice.choice((0, 495, 795))),
        placed_at=_moment(at),
    )


def _pay(number: int, placed: datetime) -> Message:
    return commands.PayOrderRequest(
        request_id=identity("pay", number),
        order_id=identity("order", number),
        payment_reference=f"PAY-{number:06d}",
        paid_at=_moment(placed + timedelta(hours=2)),
    )


def _endings(dice: random.Random, shipped: Sequence[datetime], fates: Sequence[_Fate]) -> Iterator[Message]:
    for number, (at, fate) in enumerate(zip(shipped, fates, strict=True), 1):
        if fate.shipped:
            yield commands.ShipOrderRequest(
                request_id=identity("ship", number),
                order_id=identity("order", number),
                carrier=dice.choice(_CARRIERS),
                tracking_number=f"{dice.randrange(10**12):012d}",
                shipped_at=_moment(at),
            )
        elif fate.cancelled:
            yield commands.CancelOrderRequest(
                request_id=identity("cancel", number),
                order_id=identity("order", number),
                reason=dice.choice(_REASONS),
            )


def _deliver(dice: random.Random, number: int, shipped: datetime) -> Message:
    return commands.DeliverOrderRequest(
        request_id=identity("deliver", number),
        order_id=identity("order", number),
        delivered_at=_moment(shipped + timedelta(hours=dice.randint(20, 96))),
    )


def _subscribe(dice: random.Random, number: int) -> Message:
    plan = dice.choice(("basic", "family"))
    request = commands.StartSubscriptionRequest(
        request_id=identity("subscribe", number),
        subscription_id=identity("subscription", number),
        customer_id=identity("customer", dice.randint(1, CUSTOMERS)),
        plan=plan,
        price=_euros(_PLANS[plan]),
        period_months=1,
    )
    if number % 10 == _LAPSED:
        # Long over, so it lapses as soon as a command server looks. The others start when they are loaded: what is to
        # be cancelled or renewed then must not have lapsed, whenever that is.
        request.started_at.CopyFrom(_moment(_FIRST_ORDER + timedelta(days=dice.randint(0, 90))))
        request.period_count = dice.randint(1, 6)
    return request


def _change_subscriptions(dice: random.Random) -> Iterator[Message]:
    for number in range(1, SUBSCRIPTIONS + 1):
        name = identity("subscription", number)
        if number % 10 == _UPGRADED:
            yield commands.ChangeSubscriptionPlanRequest(
                request_id=identity("upgrade", number),
                subscription_id=name,
                plan="gold",
                price=_euros(_PLANS["gold"]),
                period_months=3,
            )
        elif number % 10 in (_CANCELING, _CANCELLED):
            at_once = number % 10 == _CANCELLED
            yield commands.CancelSubscriptionRequest(
                request_id=identity("unsubscribe", number),
                subscription_id=name,
                when=commands.CANCELLATION_TIME_AT_ONCE if at_once else commands.CANCELLATION_TIME_AT_PERIOD_END,
                reason=dice.choice(("Too dear", "Not used enough", "Moving abroad")),
            )


def _renew(number: int) -> Message:
    return commands.RenewSubscriptionRequest(
        request_id=identity("renew", number), subscription_id=identity("subscription", number)
    )
