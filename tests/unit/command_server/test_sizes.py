"""Whatever a caller sends, what is stored is of a size that every reader can take."""

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from commerce.command.v1 import command_service_pb2 as commands
from commerce.type.v1.product_attribute_pb2 import ProductAttribute
from shop.views import CACHED_VIEWS
from tandem.feed.service import MAX_MESSAGE_BYTES
from tandem.feed.table import MAX_EVENT_BYTES
from tandem.runtime.call import decoded
from tandem.runtime.settings import ServerSettings
from tests.support.builders import (
    add_product,
    place_order,
    register_customer,
    start_subscription,
)
from tests.support.longest import events_of, long_history, long_views

# What memcached takes and gRPC's clients take, unless they are told otherwise.
CACHED_BYTES, RECEIVED_BYTES = 2**20, 4 * 2**20
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


def test_the_largest_event_of_the_contract_is_far_below_what_is_stored() -> None:
    events = events_of(long_history())
    # What events are sealed with adds some bytes.
    assert 2 * max(it.ByteSize() for it in events) < MAX_EVENT_BYTES


def test_every_reader_takes_the_largest_event_and_what_is_made_of_it() -> None:
    assert MAX_MESSAGE_BYTES + MAX_EVENT_BYTES < RECEIVED_BYTES // 2
    assert ServerSettings(port=0).max_response_bytes // 2 > MAX_MESSAGE_BYTES + MAX_EVENT_BYTES
    for rows in long_views(CACHED_VIEWS).values():
        assert 2 * max(len(row.value) for row in rows.values()) < CACHED_BYTES
