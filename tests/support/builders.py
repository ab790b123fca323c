"""Requests that are right unless a test says otherwise, and ids that tell what they are."""

import uuid
from datetime import UTC, datetime

from google.protobuf.message import Message

from command_server.app import DOMAIN
from commerce.command.v1 import command_service_pb2 as commands
from commerce.type.v1.address_pb2 import Address
from commerce.type.v1.money_pb2 import Money
from commerce.type.v1.product_attribute_pb2 import ProductAttribute
from tandem.commands.domain import Command

NOW = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
_NAMESPACE = uuid.UUID("6f0f5c0e-8a0b-4b5e-9f0a-7d1f6f1a2b3c")


def identity(*name: object) -> str:
    """The same UUID for the same name, every time: identity("order", 7)."""
    return str(uuid.uuid5(_NAMESPACE, "/".join(map(str, name))))


def address(**changes: str) -> Address:
    fields = {"street": "Obere Str. 57", "city": "Berlin", "postal_code": "12209", "country_code": "DE"}
    return Address(**(fields | changes))


def usd(minor_units: int) -> Money:
    return Money(minor_units=minor_units, currency_code="USD")


def euros(minor_units: int) -> Money:
    return Money(minor_units=minor_units, currency_code="EUR")


def register_customer(number: int = 1, *, has_address: bool = True) -> commands.RegisterCustomerRequest:
    return commands.RegisterCustomerRequest(
        request_id=identity("register", number),
        customer_id=identity("customer", number),
        name=f"Customer {number}",
        address=address() if has_address else None,
    )


def add_product(
    number: int = 1, *, price: int = 1999, stock: int = 100, currency: str = "USD", **attributes: str
) -> commands.AddProductRequest:
    return commands.AddProductRequest(
        request_id=identity("add", number),
        product_id=identity("product", number),
        name=f"Product {number}",
        category="Tea",
        price=Money(minor_units=price, currency_code=currency),
        initial_stock=stock,
        attributes=[ProductAttribute(name=name, value=value) for name, value in attributes.items()],
    )


def revise_product(
    number: int = 1,
    *,
    name: str | None = None,
    description: str | None = None,
    category: str | None = None,
    attributes: dict[str, str] | None = None,
) -> commands.ReviseProductRequest:
    """None leaves a field unset."""
    given = [ProductAttribute(name=name, value=value) for name, value in (attributes or {}).items()]
    return commands.ReviseProductRequest(
        product_id=identity("product", number),
        name=name,
        description=description,
        category=category,
        attributes=None if attributes is None else commands.ProductAttributes(attributes=given),
    )


def place_order(
    number: int = 1, *, customer: int = 1, lines: dict[int, int] | None = None, discount: int = 0
) -> commands.PlaceOrderRequest:
    """`lines`: product number to quantity."""
    return commands.PlaceOrderRequest(
        request_id=identity("place", number),
        order_id=identity("order", number),
        customer_id=identity("customer", customer),
        lines=[
            commands.PlaceOrderLine(
                product_id=identity("product", product), quantity=quantity, discount_basis_points=discount
            )
            for product, quantity in (lines or {1: 1}).items()
        ],
    )


def import_order(
    number: int = 1,
    lines: dict[int, tuple[int, int]] | None = None,
    times: dict[str, str] | None = None,
    *,
    customer: int = 1,
) -> commands.ImportOrderRequest:
    """lines: product number to quantity and price. times: RFC 3339, by field; without placed_at the first of 2025."""
    request = commands.ImportOrderRequest(
        request_id=identity("import", number),
        order_id=identity("order", number),
        customer_id=identity("customer", customer),
        lines=[
            commands.ImportOrderLine(product_id=identity("product", product), quantity=quantity, unit_price=usd(price))
            for product, (quantity, price) in (lines or {1: (1, 500)}).items()
        ],
    )
    for field, moment in ({"placed_at": "2025-01-01T00:00:00Z"} | (times or {})).items():
        getattr(request, field).FromJsonString(moment)
    return request


def start_subscription(
    number: int = 1, *, customer: int = 1, started_at: str = "", months: int = 1
) -> commands.StartSubscriptionRequest:
    """started_at: RFC 3339; empty for now."""
    request = commands.StartSubscriptionRequest(
        request_id=identity("subscribe", number),
        subscription_id=identity("subscription", number),
        customer_id=identity("customer", customer),
        plan="silver",
        price=usd(1900),
        period_months=months,
    )
    if started_at:
        request.started_at.FromJsonString(started_at)
    return request


def command(request: Message, now: datetime = NOW) -> Command:
    """The command that the command server makes of a request."""
    return DOMAIN.command_of(request, now)
