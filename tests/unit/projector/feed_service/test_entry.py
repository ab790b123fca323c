"""What followers get of an event, and what it is about."""

import uuid
from collections.abc import Iterator

import pytest
from google.protobuf.message import Message

from commerce.event.v1.event_pb2 import Event
from commerce.feed.v1.feed_service_pb2 import FeedItem, SubscribeResponse
from projector.feed_service.entry import entry_of, ids_of, without_personal_data
from shop.events import EVENTS
from tandem.feed.events import FeedEvent
from tandem.feed.sealing import new_key
from tests.support import events
from tests.support.builders import identity


def item_of(item: bytes) -> FeedItem:
    [found] = SubscribeResponse.FromString(item).events
    return found


def fill(message: Message, *, depth: int = 0) -> Iterator[str]:
    """Gives every text field at any depth another value, each list two elements; yields the values of ids."""
    for field in message.DESCRIPTOR.fields:
        if field.message_type is not None:
            count = 2 if field.is_repeated else 1
            for _ in range(count if depth < 3 else 0):
                inner = getattr(message, field.name).add() if field.is_repeated else getattr(message, field.name)
                yield from fill(inner, depth=depth + 1)
        elif field.type == field.TYPE_STRING:
            values = [str(uuid.uuid4()) for _ in range(2 if field.is_repeated else 1)]
            if field.is_repeated:
                getattr(message, field.name).extend(values)
            else:
                setattr(message, field.name, values[0])
            if field.name.endswith(("_id", "_ids")):
                yield from values


@pytest.mark.parametrize("kind", EVENTS.kinds)
def test_an_event_is_about_everything_whose_id_it_holds(kind: str) -> None:
    event = Event()
    getattr(event, kind).SetInParent()
    ids = set(fill(getattr(event, kind)))
    assert ids, "every event names something"
    assert ids_of(event) == ids


def test_an_entry_holds_the_event_with_its_position_and_type() -> None:
    placed = events.order_placed(1, customer=2)
    [stored] = events.feed_events([placed], first=7)
    entry = entry_of(stored)
    assert item_of(entry.item) == FeedItem(position=7, type="order_placed", event=placed)
    assert (entry.position, entry.kind, entry.unreadable) == (7, "order_placed", "")
    assert {identity("order", 1), identity("customer", 2)} < entry.ids
    assert entry.personal_of == identity("customer", 2)


def test_personal_data_is_opened_and_left_out_where_the_key_is_gone() -> None:
    registered, key = events.customer_registered(3), new_key()
    sealed = EVENTS.seal(registered, key).SerializeToString()
    opened = entry_of(FeedEvent(EVENTS, 1, "customer_registered", sealed, key))
    assert item_of(opened.item).event == registered
    erased = entry_of(FeedEvent(EVENTS, 1, "customer_registered", sealed, None))
    assert not item_of(erased.item).event.customer_registered.HasField("personal")
    assert (opened.personal_of, erased.personal_of) == (identity("customer", 3), "")
    assert without_personal_data(opened) == erased


@pytest.mark.parametrize(
    ("stored", "why"),
    [
        (FeedEvent(EVENTS, 1, "order_paid", b"\xff"), "parsing"),
        (FeedEvent(EVENTS, 1, "of_a_newer_server", b""), "not known"),
        (FeedEvent(EVENTS, 1, "order_paid", events.order_shipped().SerializeToString()), "order_paid"),
        (
            FeedEvent(
                EVENTS,
                1,
                "customer_registered",
                EVENTS.seal(events.customer_registered(), new_key()).SerializeToString(),
                new_key(),
            ),
            "cannot be opened",
        ),
    ],
    ids=["damaged", "unknown", "mislabelled", "another key"],
)
def test_an_event_that_cannot_be_read_says_why_and_holds_nothing(stored: FeedEvent, why: str) -> None:
    entry = entry_of(stored)
    assert why in entry.unreadable
    assert (entry.item, entry.ids) == (b"", frozenset())
