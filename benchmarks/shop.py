"""The shop of all scenarios: who buys, what is sold, and the orders. The same every time.

Ids of orders, and of requests, are chosen at random, or in the order of time as docs/clients.md has it. As PostgreSQL
compares them, all random ones are before all in the order of time: their first byte is 0, which that of a UUIDv7 was
until 2004. So those in the order of time come to an index's end, whatever is in it, and random ones anywhere among
those that are random.
"""

import hashlib
import random
import uuid
from collections.abc import Iterator, Sequence
from functools import cache

from commerce.command.v1 import command_service_pb2 as commands
from commerce.type.v1.money_pb2 import Money
from commerce.type.v1.product_attribute_pb2 import ProductAttribute
from tests.support.builders import identity
from tests.support.catalogue import Product, catalogue

CUSTOMERS = 1_000
LINES = 3
# Different carts; after the last one the first comes again. Another order in ten thousand is no other work.
_CARTS = 10_000
# Milliseconds since the epoch, of the ids in the order of time.
_OPENED = 1_767_225_600_000
# Of each that can be ordered: no run uses it up, whatever it places.
STOCK_FACTOR = 1_000_000


def customer_id(number: int) -> str:
    """number: from 0 to CUSTOMERS - 1."""
    return identity("customer", number)


def order_id(number: int) -> str:
    return _id("order", number)


def _id(kind: str, number: int) -> str:
    """As random as `identity` but for its first byte, in 1.5 µs: runs make hundreds of thousands."""
    return str(uuid.UUID(bytes=b"\0" + _random(kind, number, 15)))


def _timed_id(kind: str, number: int) -> str:
    """A UUIDv7, as if numbers came one in a millisecond."""
    digits = b"%b%b" % ((_OPENED + number).to_bytes(6), _random(kind, number, 10))
    return str(uuid.UUID(int=int.from_bytes(digits) & ~_FIXED | _VERSION_7))


def _random(kind: str, number: int, size: int) -> bytes:
    return hashlib.blake2b(b"%b/%d" % (kind.encode(), number), digest_size=size).digest()


@cache
def products_in_stock() -> Sequence[Product]:
    return [product for product in catalogue() if product.stock]


def registrations() -> Iterator[commands.RegisterCustomerRequest]:
    for number in range(CUSTOMERS):
        request = commands.RegisterCustomerRequest(
            request_id=_id("register", number), customer_id=customer_id(number), name=f"Customer {number}"
        )
        address = request.address
        address.street, address.city = f"Obere Str. {number}", "Berlin"
        address.postal_code, address.country_code = f"{10_000 + number}", "DE"
        yield request


def additions() -> Iterator[commands.AddProductRequest]:
    for product in catalogue():
        yield commands.AddProductRequest(
            request_id=_id("add", product.number),
            product_id=product.product_id,
            name=product.name,
            description=product.description,
            category=product.category,
            price=Money(minor_units=product.price, currency_code="EUR"),
            initial_stock=product.stock * STOCK_FACTOR,
            attributes=[ProductAttribute(name=name, value=value) for name, value in product.attributes],
        )


def order(number: int) -> commands.PlaceOrderRequest:
    """Order `number`, with ids at random: some customer, LINES different products, one to three of each."""
    return commands.PlaceOrderRequest.FromString(order_body(number))


def order_body(number: int) -> bytes:
    """The same, serialised: both ids, which have the same length in each, and a cart that is made once."""
    request, order = _id("place", number).encode(), order_id(number).encode()
    return b"%b%b%b%b%b" % (_REQUEST_ID, request, _ORDER_ID, order, carts()[number % _CARTS])


def timed_order_body(number: int) -> bytes:
    """The same order from a caller that follows docs/clients.md: its request_id is a UUIDv7, and the server chooses the
    order's id, another UUIDv7. Who places it knows of no id that it has.
    """
    return b"%b%b%b" % (_REQUEST_ID, _timed_id("place", number).encode(), carts()[number % _CARTS])


def customer_of(number: int) -> str:
    """Who placed order `number`."""
    return commands.PlaceOrderRequest.FromString(carts()[number % _CARTS]).customer_id


@cache
def carts() -> Sequence[bytes]:
    """Orders without their ids."""
    dice = random.Random("carts")
    return [
        commands.PlaceOrderRequest(
            customer_id=customer_id(dice.randrange(CUSTOMERS)),
            lines=[
                commands.PlaceOrderLine(product_id=product.product_id, quantity=dice.randint(1, 3))
                for product in dice.sample(products_in_stock(), LINES)
            ],
        ).SerializeToString()
        for _ in range(_CARTS)
    ]


def _opening(field: str) -> bytes:
    """What a UUID's text begins with as this field: tag and length."""
    number = commands.PlaceOrderRequest.DESCRIPTOR.fields_by_name[field].number
    return bytes((number << 3 | 2, 36))


_REQUEST_ID, _ORDER_ID = _opening("request_id"), _opening("order_id")
# Bits of a UUID that say its version and its variant.
_FIXED, _VERSION_7 = 0xF << 76 | 0b11 << 62, 7 << 76 | 0b10 << 62
