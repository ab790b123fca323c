"""Commands as large as the contract lets them be, and what they make of the views."""

import uuid
from collections.abc import Iterable
from typing import Any

from google.protobuf.message import Message

from command_server.app import DOMAIN
from command_server.customers import CUSTOMER_ORDERS, MAX_ADDRESSES
from commerce.command.v1 import command_service_pb2 as commands
from commerce.event.v1.event_pb2 import Event
from commerce.type.v1.product_attribute_pb2 import ProductAttribute
from tandem.commands.batch import decide_batch
from tandem.commands.write_model import States
from tandem.options.v1.options_pb2 import FieldRule
from tandem.projection.changes import ViewRow
from tandem.runtime.field_checks import rule_of
from tests.support.builders import (
    add_product,
    address,
    command,
    identity,
    place_order,
    register_customer,
    start_subscription,
)
from tests.support.events import feed_events
from tests.support.projecting import PROJECTIONS, fold

# Of four bytes in UTF-8, as long as text can be.
LONG = "\U0001f375"


def rule(message: Message, field: str) -> FieldRule:
    """What the contract says of the field."""
    descriptor: Any = message.DESCRIPTOR
    return rule_of(descriptor.fields_by_name[field])


def text(characters: int) -> str:
    return LONG * characters


def long_address() -> Any:
    return address(
        recipient=text(200), street=text(300), city=text(100), region=text(100), postal_code=text(20), country_code="DE"
    )


def long_product(number: int) -> commands.AddProductRequest:
    request = add_product(number)
    request.name, request.description, request.category = text(200), text(4000), text(100)
    request.attributes.extend(
        ProductAttribute(name=text(46) + f"{it:04}", value=text(200))
        for it in range(rule(request, "attributes").max_elements)
    )
    return request


def long_history() -> list[Message]:
    """Every command as large as the contract lets it be, as often as that makes something larger."""
    products = range(1, rule(commands.PlaceOrderRequest(), "lines").max_elements + 1)
    registered = register_customer(has_address=False)
    registered.name, registered.email, registered.phone = text(200), f"{text(126)}@{text(127)}", text(40)
    registered.address.CopyFrom(long_address())
    moved = [
        commands.UpdateAddressRequest(
            customer_id=identity("customer", 1), address=long_address(), address_name=text(46) + f"{number:04}"
        )
        for number in range(MAX_ADDRESSES - 1)
    ]
    placed = place_order(lines=dict.fromkeys(products, 1))
    placed.shipping_address.CopyFrom(long_address())
    order = identity("order", 1)
    started = start_subscription()
    started.plan = text(100)
    return [
        registered,
        *moved,
        commands.RenameCustomerRequest(customer_id=identity("customer", 1), name=text(200)),
        *map(long_product, products),
        commands.ReviseProductRequest(product_id=identity("product", 1), name=text(200)),
        placed,
        commands.ChangeShippingAddressRequest(order_id=order, address=long_address()),
        commands.PayOrderRequest(order_id=order, payment_reference=text(200)),
        commands.CancelOrderRequest(order_id=order, reason=text(500)),
        started,
        commands.CancelSubscriptionRequest(
            subscription_id=identity("subscription", 1), when=commands.CANCELLATION_TIME_AT_ONCE, reason=text(500)
        ),
        commands.EraseCustomerRequest(customer_id=identity("customer", 1)),
    ]


def events_of(requests: list[Message]) -> list[Event]:
    orders = {identity("customer", 1): frozenset(str(uuid.UUID(int=it)) for it in range(1000))}
    decisions = decide_batch(DOMAIN, [command(it) for it in requests], States({CUSTOMER_ORDERS: orders}), {})
    refused = [it for it in decisions.outcomes if isinstance(it, Exception)]
    assert refused == []
    return [event for _, event in decisions.events]


def long_views(names: Iterable[str]) -> dict[str, dict[bytes, ViewRow]]:
    """The rows of views after `long_history`, by key; without the erasure: its orders are in no view."""
    history = feed_events(events_of(long_history()[:-1]))
    found = {}
    for name in names:
        changes = fold(PROJECTIONS[name], history, {})
        assert changes.stopped_by is None
        found[name] = {key: row for key, row in changes.rows.items() if row}
    return found
