"""Any Protobuf message with a oneof of events can be fed: here a library's, of which the engine knows nothing."""

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.timestamp_pb2 import DESCRIPTOR as TIMESTAMP
from google.protobuf.timestamp_pb2 import Timestamp

from tandem.feed.events import EventContract, FeedEvent
from tandem.feed.sealing import new_key
from tandem.internal.v1.stored_pb2 import Envelope
from tests.support.builders import identity

READER = identity("reader", 1)
TEXT, BYTES, MESSAGE = (
    FieldDescriptorProto.TYPE_STRING,
    FieldDescriptorProto.TYPE_BYTES,
    FieldDescriptorProto.TYPE_MESSAGE,
)


def add_field(message: DescriptorProto, name: str, kind: Any, type_name: str = "", **options: Any) -> None:
    number = len(message.field) + 1
    field = message.field.add(name=name, number=number, type=kind, label="LABEL_OPTIONAL", **options)
    if type_name:
        field.type_name = type_name


def library(change: Callable[[dict[str, DescriptorProto]], None] = lambda _: None) -> Any:
    """The message `Happening`; `change` gets all messages by name before they are made."""
    file = FileDescriptorProto(name="library.proto", package="library", syntax="proto3", dependency=[TIMESTAMP.name])
    messages = {name: file.message_type.add(name=name) for name in ("Happening", "Joined", "Shelved", "Private")}
    messages["Happening"].oneof_decl.add(name="what")
    add_field(messages["Happening"], "recorded_at", MESSAGE, ".google.protobuf.Timestamp")
    add_field(messages["Happening"], "joined", MESSAGE, ".library.Joined", oneof_index=0)
    add_field(messages["Happening"], "shelved", MESSAGE, ".library.Shelved", oneof_index=0)
    add_field(messages["Joined"], "reader_id", TEXT)
    add_field(messages["Joined"], "private", MESSAGE, ".library.Private")
    add_field(messages["Shelved"], "title", TEXT)
    add_field(messages["Private"], "name", TEXT)
    add_field(messages["Private"], "sealed", BYTES)
    change(messages)
    pool = DescriptorPool()
    pool.AddSerializedFile(TIMESTAMP.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    return GetMessageClass(pool.FindMessageTypeByName("library.Happening"))


def contract_of(message: Any) -> EventContract[Any]:
    return EventContract(message, oneof="what", personal="private", subject_field="reader_id")


HAPPENING = library()
CONTRACT = contract_of(HAPPENING)
JOINED = HAPPENING(joined={"reader_id": READER, "private": {"name": "Ada"}})
SHELVED = HAPPENING(shelved={"title": "Emma"})


def test_a_contract_knows_the_kinds_of_its_events() -> None:
    assert CONTRACT.kinds == ("joined", "shelved")
    assert CONTRACT.kind_of(type(SHELVED.shelved)) == "shelved"
    with pytest.raises(KeyError):
        CONTRACT.kind_of(Timestamp)


def test_a_change_is_wrapped_into_an_event_of_its_kind() -> None:
    moment = HAPPENING(recorded_at={"seconds": 7}).recorded_at
    event = CONTRACT.wrap(SHELVED.shelved, moment)
    assert event == HAPPENING(recorded_at=moment, shelved=SHELVED.shelved)


def test_the_personal_data_of_any_message_is_sealed_and_opened() -> None:
    key = new_key()
    assert (CONTRACT.subject_of(JOINED), CONTRACT.subject_of(SHELVED)) == (READER, None)
    stored = CONTRACT.seal(JOINED, key).SerializeToString()
    assert b"Ada" not in stored
    assert FeedEvent(CONTRACT, 1, "joined", stored, key).event == JOINED
    erased = FeedEvent(CONTRACT, 1, "joined", stored).message
    assert (erased.reader_id, erased.HasField("private")) == (READER, False)


def test_an_event_has_the_envelope_that_was_stored_with_it() -> None:
    envelope = Envelope(
        actor="a-1", request_id="r-1", causation_id="c-1", correlation_id="o-1", traceparent="00-1-1-00"
    )
    fed = FeedEvent(CONTRACT, 1, "shelved", SHELVED.SerializeToString(), None, envelope.SerializeToString())
    assert fed.envelope == envelope
    assert FeedEvent(CONTRACT, 1, "shelved", b"").envelope is None, "stored before there were envelopes"
    with pytest.raises(DecodeError):
        _ = FeedEvent(CONTRACT, 1, "shelved", b"", None, b"\xff").envelope


def without(message: str, field: str) -> Any:
    def change(messages: dict[str, DescriptorProto]) -> None:
        [found] = [it for it in messages[message].field if it.name == field]
        messages[message].field.remove(found)

    return library(change)


def with_kind(kind: Any, type_name: str) -> Any:
    return library(lambda messages: add_field(messages["Happening"], "another", kind, type_name, oneof_index=0))


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (Timestamp, "no oneof what"),
        (without("Happening", "recorded_at"), "no field recorded_at"),
        (without("Joined", "reader_id"), "library.Joined has private and no reader_id"),
        (without("Private", "sealed"), "library.Joined.private has no field sealed"),
        (with_kind(TEXT, ""), "a message of its own"),
        (with_kind(MESSAGE, ".library.Shelved"), "a message of its own"),
    ],
)
def test_a_message_that_cannot_be_fed_is_refused(message: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        contract_of(message)
