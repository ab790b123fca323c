"""Personal data is sealed with a customer's key, and gone with it."""

import pytest
from google.protobuf.descriptor import FieldDescriptor

from commerce.event.v1.event_pb2 import Event, PersonalData
from tandem.feed.events import EVENT_KINDS, FeedEvent
from tandem.feed.personal import WrongKey, customer_of, new_key, open_sealed, seal
from tests.support import events
from tests.support.builders import identity

PLACED = events.order_placed()
KEY = new_key()


def fed(event: Event, key: bytes | None) -> Event:
    return FeedEvent(1, "order_placed", event.SerializeToString(), key).event


def test_a_sealed_event_is_opened_with_its_key() -> None:
    assert fed(seal(PLACED, KEY), KEY) == PLACED


def test_a_sealed_event_holds_no_word_of_the_person_and_all_of_the_rest() -> None:
    sealed = seal(PLACED, KEY)
    assert sealed.order_placed.personal == PersonalData(sealed=sealed.order_placed.personal.sealed)
    for word in (b"Customer 1", b"Obere", b"Berlin", b"12209"):
        assert word in PLACED.SerializeToString()
        assert word not in sealed.SerializeToString()
    sealed.order_placed.personal.CopyFrom(PLACED.order_placed.personal)
    assert sealed == PLACED


def test_the_same_event_is_sealed_differently_each_time_and_left_as_it_was() -> None:
    before = PLACED.SerializeToString()
    assert seal(PLACED, KEY) != seal(PLACED, KEY)
    assert PLACED.SerializeToString() == before


def test_without_its_key_an_event_tells_nothing_of_the_person() -> None:
    opened = fed(seal(PLACED, KEY), None)
    assert not opened.order_placed.HasField("personal")
    assert opened.order_placed.total == PLACED.order_placed.total


def test_another_key_and_another_customers_event_are_refused() -> None:
    sealed = seal(PLACED, KEY)
    with pytest.raises(WrongKey):
        open_sealed(seal(PLACED, KEY), new_key())
    sealed.order_placed.customer_id = identity("customer", 2)
    with pytest.raises(WrongKey):
        open_sealed(sealed, KEY)


def test_an_event_without_personal_data_is_nobodys() -> None:
    assert customer_of(PLACED) == identity("customer", 1)
    assert customer_of(events.order_paid()) is None
    assert customer_of(events.customer_erased()) is None
    paid = events.order_paid()
    open_sealed(paid, None)
    assert paid == events.order_paid()


def test_a_key_never_shows_where_an_event_is_printed() -> None:
    assert KEY.hex() not in repr(FeedEvent(1, "order_placed", b"", KEY))
    assert repr(KEY) not in repr(FeedEvent(1, "order_placed", b"", KEY))


@pytest.mark.parametrize("kind", EVENT_KINDS)
def test_whoever_is_told_of_in_an_event_is_named_beside_it_and_nowhere_else(kind: str) -> None:
    fields = type(getattr(Event(), kind)).DESCRIPTOR.fields_by_name
    messages = {it.message_type.name for it in fields.values() if it.type == FieldDescriptor.TYPE_MESSAGE}
    assert not messages & {"Address", "NamedAddress", "AddressBook"}, "an address belongs into PersonalData"
    assert not {"email", "phone", "customer_name"} & set(fields)
    if "personal" in fields:
        assert "customer_id" in fields
