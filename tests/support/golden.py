"""Golden events: each kind of event with all of its fields set, as a version stores it, and what it says when read.

`python -m tests.support.golden > tests/golden/events/NAME.jsonl` writes those of the contract that is here. Files that
are there are never written again: they stand for what is in feeds.
"""

import base64
import json
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from commerce.event.v1.event_pb2 import Event
from shop.events import EVENTS
from tandem.feed.events import FeedEvent

FOLDER = Path(__file__).parents[1] / "golden" / "events"
KEY = bytes(range(32))


class Golden(NamedTuple):
    """An event as it is stored, and what it says: all that a reader of any later version must find in it, too."""

    kind: str
    version: int
    payload: bytes
    key: bytes | None
    supplement: bytes | None
    says: dict[str, Any]

    def event(self) -> FeedEvent:
        return FeedEvent(EVENTS, 1, self.kind, self.payload, self.key, None, self.version, self.supplement)

    def line(self) -> str:
        return json.dumps({name: _text(value) for name, value in self._asdict().items()}, ensure_ascii=False)


def read(path: Path) -> Iterator[Golden]:
    for line in path.read_text(encoding="utf-8").splitlines():
        stored = json.loads(line)
        of_bytes = {name: base64.b64decode(it) if (it := stored[name]) is not None else None for name in _OF_BYTES}
        yield Golden(**stored | of_bytes)


def of_this_contract() -> Iterator[Golden]:
    for kind in EVENTS.kinds:
        event = Event(recorded_at=Timestamp(seconds=1_800_000_000))
        fill(getattr(event, kind))
        key = KEY if EVENTS.subject_of(event) else None
        payload = (EVENTS.seal(event, key) if key else event).SerializeToString(deterministic=True)
        yield Golden(kind, EVENTS.versions[kind], payload, key, None, as_dict(event))


def fill(message: Message) -> None:
    """Sets each field, in the same way each time, but for what is only stored: `sealed`."""
    message.SetInParent()
    for field in message.DESCRIPTOR.fields:
        if field.name == "sealed":
            continue
        if field.message_type is not None and field.message_type.full_name == "google.protobuf.Timestamp":
            getattr(message, field.name).seconds = 1_700_000_000 + field.number
        elif field.message_type is not None:
            inner = getattr(message, field.name)
            fill(inner.add() if field.is_repeated else inner)
        elif field.is_repeated:
            getattr(message, field.name).append(_value(field))
        else:
            setattr(message, field.name, _value(field))


def as_dict(event: Message) -> dict[str, Any]:
    said: dict[str, Any] = MessageToDict(event, preserving_proto_field_name=True)
    return said


def _value(field: Any) -> object:
    if field.type == FieldDescriptor.TYPE_BOOL:
        return True
    if field.type != FieldDescriptor.TYPE_STRING:
        return field.number
    return str(uuid.UUID(int=field.number)) if field.name.endswith(("_id", "_ids")) else f"the {field.name}"


_OF_BYTES = ("payload", "key", "supplement")


def _text(value: object) -> object:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


if __name__ == "__main__":
    sys.stdout.writelines(f"{it.line()}\n" for it in of_this_contract())
