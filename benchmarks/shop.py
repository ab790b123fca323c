"""The shop of all scenarios: who buys, what is sold, and the orders. The same every time."""

import random
from collections.abc import Iterator, Sequence
from functools import cache

from commerce.command.v1 import command_service_pb2 as commands
from commerce.type.v1.money_pb2 import Money
from commerce.type.v1.product_attribute_pb2 import ProductAttribute
from tests.support.builders import identity
from tests.support.catalogue import Product, catalogue

CUSTOMERS = 1_000
LINES = 3
# Of each that can be ordered: no run uses it up, whatever it places.
STOCK_FACTOR = 1_000_000


def customer_id(number: int) -> str:
    """number: from 0 to CUSTOMERS - 1."""
    return identity("customer", number)


def order_id(number: int) -> str:
    return identity("order", number)


@cache
def products_in_stock() -> Sequence[Product]:
    return [product for product in catalogue() if product.stock]


def registrations() -> Iterator[commands.RegisterCustomerRequest]:
    for number in range(CUSTOMERS):
        request = commands.RegisterCustomerRequest(
            request_id=identity("register", number), customer_id=customer_id(number), name=f"Customer {number}"
        )
        address = request.address
        address.street, address.city = f"Obere Str. {number}", "Berlin"
        address.postal_code, address.country_code = f"{10_000 + number}", "DE"
        yield request


def additions() -> Iterator[commands.AddProductRequest]:
    for product in catalogue():
        yield commands.AddProductRequest(
            request_id=identity("add", product.number),
            product_id=product.product_id,
            name=product.name,
            description=product.description,
            category=product.category,
            price=Money(minor_units=product.price, currency_code="EUR"),
            initial_stock=product.stock * STOCK_FACTOR,
            attributes=[ProductAttribute(name=name, value=value) for name, value in product.attributes],
        )


def order(number: int) -> commands.PlaceOrderRequest:
    """Order `number`: some customer, LINES different products, one to three of each."""
    dice = random.Random(number)
    return commands.PlaceOrderRequest(
        request_id=identity("place", number),
        order_id=order_id(number),
        customer_id=customer_id(dice.randrange(CUSTOMERS)),
        lines=[
            commands.PlaceOrderLine(product_id=product.product_id, quantity=dice.randint(1, 3))
            for product in dice.sample(products_in_stock(), LINES)
        ],
    )
