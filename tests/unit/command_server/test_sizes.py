"""Whatever a caller sends, what is stored is of a size that every reader can take."""

import uuid
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from command_server.app import DOMAIN
from command_server.customers import CUSTOMER_ORDERS, MAX_ADDRESSES
from command_server.orders import MAX_LINES
from command_server.products import MAX_ATTRIBUTES
from commerce.command.v1 import command_service_pb2 as commands
from commerce.event.v1.event_pb2 import Event
from commerce.type.v1.product_attribute_pb2 import ProductAttribute
from shop.views import CACHED_VIEWS
from tandem.commands.batch import decide_batch
from tandem.commands.write_model import States
from tandem.feed.service import MAX_MESSAGE_BYTES
from tandem.feed.table import MAX_EVENT_BYTES
from tandem.runtime.call import decoded
from tandem.runtime.settings import ServerSettings
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

# What memcached takes and gRPC's clients take, unless they are told otherwise.
CACHED_BYTES, RECEIVED_BYTES = 2**20, 4 * 2**20
# Of four bytes in UTF-8, as long as text can be.
LONG = "\U0001f375"
# Field 1000, of bytes: no contract of today has it.
UNKNOWN = b"\xc2\x3e\x05extra"


def messages_in(message: Message) -> list[Message]:
    """The message and all that it holds."""
    found = [message]
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for it in value if field.is_repeated else [value]:
                found += messages_in(it)
    return found


@pytest.mark.parametrize(
    "request_",
    [
        register_customer(),
        add_product(Size="L"),
        place_order(lines={1: 1, 2: 2}),
        start_subscription(started_at="2026-01-01T00:00:00Z"),
        commands.ReviseProductRequest(
            attributes=commands.ProductAttributes(attributes=[ProductAttribute(name="Size", value="L")])
        ),
    ],
    ids=lambda it: type(it).__name__,
)
def test_what_the_contract_does_not_know_is_taken_out_of_a_request_and_all_that_it_holds(request_: Message) -> None:
    plain = request_.SerializeToString(deterministic=True)
    for it in messages_in(request_):
        it.MergeFromString(UNKNOWN)
    sent = request_.SerializeToString()
    assert sent.count(UNKNOWN) == len(messages_in(request_))
    assert decoded(type(request_), sent).SerializeToString(deterministic=True) == plain


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
        ProductAttribute(name=text(46) + f"{it:04}", value=text(200)) for it in range(MAX_ATTRIBUTES)
    )
    return request


def long_history() -> list[Message]:
    """Every command as large as the contract lets it be, as often as that makes something larger."""
    products = range(1, MAX_LINES + 1)
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


def test_the_largest_event_of_the_contract_is_far_below_what_is_stored() -> None:
    events = events_of(long_history())
    # What events are sealed with adds some bytes.
    assert 2 * max(it.ByteSize() for it in events) < MAX_EVENT_BYTES


def test_every_reader_takes_the_largest_event_and_what_is_made_of_it() -> None:
    assert MAX_MESSAGE_BYTES + MAX_EVENT_BYTES < RECEIVED_BYTES // 2
    assert ServerSettings(port=0).max_response_bytes // 2 > MAX_MESSAGE_BYTES + MAX_EVENT_BYTES
    # Without the erasure: the orders that it is made large with are in no view.
    events = feed_events(events_of(long_history()[:-1]))
    for view in CACHED_VIEWS:
        changes = fold(PROJECTIONS[view], events, {})
        assert changes.stopped_by is None
        assert 2 * max(len(row.value) for row in changes.rows.values() if row) < CACHED_BYTES
