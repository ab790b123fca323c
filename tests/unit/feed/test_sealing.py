"""Personal data is sealed with a data subject's key, and gone with it."""

import pytest
from google.protobuf.descriptor import FieldDescriptor

from commerce.event.v1.event_pb2 import Event, PersonalData
from shop.events import EVENTS
from tandem.feed.events import FeedEvent
from tandem.feed.sealing import WrongKey, new_key
from tests.support import events
from tests.support.builders import identity

PLACED = events.order_placed()
KEY = new_key()


def fed(event: Event, key: bytes | None) -> Event:
    found: Event = FeedEvent(EVENTS, 1, str(event.WhichOneof("kind")), event.SerializeToString(), key).event
    return found


def test_a_sealed_event_is_opened_with_its_key() -> None:
    assert fed(EVENTS.seal(PLACED, KEY), KEY) == PLACED


def test_a_sealed_event_holds_no_word_of_the_person_and_all_of_the_rest() -> None:
    sealed = EVENTS.seal(PLACED, KEY)
    assert sealed.order_placed.personal == PersonalData(sealed=sealed.order_placed.personal.sealed)
    for word in (b"Customer 1", b"Obere", b"Berlin", b"12209"):
        assert word in PLACED.SerializeToString()
        assert word not in sealed.SerializeToString()
    sealed.order_placed.personal.CopyFrom(PLACED.order_placed.personal)
    assert sealed == PLACED


def test_the_same_event_is_sealed_differently_each_time_and_left_as_it_was() -> None:
    before = PLACED.SerializeToString()
    assert EVENTS.seal(PLACED, KEY) != EVENTS.seal(PLACED, KEY)
    assert PLACED.SerializeToString() == before


def test_without_its_key_an_event_tells_nothing_of_the_person() -> None:
    opened = fed(EVENTS.seal(PLACED, KEY), None)
    assert not opened.order_placed.HasField("personal")
    assert opened.order_placed.total == PLACED.order_placed.total


def test_another_key_and_another_subjects_event_are_refused() -> None:
    sealed = EVENTS.seal(PLACED, KEY)
    with pytest.raises(WrongKey):
        fed(EVENTS.seal(PLACED, KEY), new_key())
    sealed.order_placed.customer_id = identity("customer", 2)
    with pytest.raises(WrongKey):
        fed(sealed, KEY)


def test_an_event_without_personal_data_is_nobodys() -> None:
    assert EVENTS.subject_of(PLACED) == identity("customer", 1)
    assert EVENTS.subject_of(events.order_paid()) is None
    assert EVENTS.subject_of(events.customer_erased()) is None
    assert fed(events.order_paid(), None) == events.order_paid()


def test_a_key_never_shows_where_an_event_is_printed() -> None:
    assert KEY.hex() not in repr(FeedEvent(EVENTS, 1, "order_placed", b"", KEY))
    assert repr(KEY) not in repr(FeedEvent(EVENTS, 1, "order_placed", b"", KEY))


@pytest.mark.parametrize("kind", EVENTS.kinds)
def test_whoever_is_told_of_in_an_event_is_named_beside_it_and_nowhere_else(kind: str) -> None:
    fields = type(getattr(Event(), kind)).DESCRIPTOR.fields_by_name
    messages = {it.message_type.name for it in fields.values() if it.type == FieldDescriptor.TYPE_MESSAGE}
    assert not messages & {"Address", "NamedAddress", "AddressBook"}, "an address belongs into PersonalData"
    assert not {"email", "phone", "customer_name"} & set(fields)
    if "personal" in fields:
        assert "customer_id" in fields
