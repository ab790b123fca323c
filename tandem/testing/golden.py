"""Golden events: each kind of event with all of its fields set, as a version stores it, and what it says when read.

`python -m tandem.testing.golden MODULE:CONTRACT > FOLDER/NAME.jsonl` writes those of the contract that is here. Files
that are there are never written again: they stand for what is in feeds.
"""

import argparse
import base64
import importlib
import json
import sys
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from tandem.feed.events import EventContract, FeedEvent

KEY = bytes(range(32))


class Golden(NamedTuple):
    """An event as it is stored, and what it says: all that a reader of any later version must find in it, too."""

    kind: str
    version: int
    payload: bytes
    key: bytes | None
    supplement: bytes | None
    says: dict[str, Any]

    def line(self) -> str:
        return json.dumps({name: _text(value) for name, value in self._asdict().items()}, ensure_ascii=False)

    def must_say_the_same(self, contract: EventContract[Any]) -> None:
        """Raises AssertionError, with the fields that differ, unless the contract of now reads in it all it said then.

        An upcaster of a later version may have added to it.
        """
        event = FeedEvent(contract, 1, self.kind, self.payload, self.key, None, self.version, self.supplement).event
        if lines := list(_missing(self.says, as_dict(event), "")):
            raise AssertionError("\n  ".join([f"{self.kind} of version {self.version} says other things:", *lines]))


def read(path: Path) -> Iterator[Golden]:
    for line in path.read_text(encoding="utf-8").splitlines():
        stored = json.loads(line)
        of_bytes = {name: base64.b64decode(it) if (it := stored[name]) is not None else None for name in _OF_BYTES}
        yield Golden(**stored | of_bytes)


def of_contract(contract: EventContract[Any]) -> Iterator[Golden]:
    """One of each kind, in the newest version."""
    for kind in contract.kinds:
        event = contract.message(recorded_at=Timestamp(seconds=1_800_000_000))
        fill(getattr(event, kind))
        key = KEY if contract.subject_of(event) else None
        payload = (contract.seal(event, key) if key else event).SerializeToString(deterministic=True)
        yield Golden(kind, contract.versions[kind], payload, key, None, as_dict(event))


def must_be_kept(contract: EventContract[Any], kept: Iterable[Golden]) -> None:
    """Raises AssertionError with the kinds and versions of the contract that are not among the kept ones."""
    found = {(it.kind, it.version) for it in kept}
    needed = {(kind, version) for kind, newest in contract.versions.items() for version in range(1, newest + 1)}
    missing = [f"{kind} of version {version}" for kind, version in sorted(needed - found)]
    if missing:
        how = "write them: python -m tandem.testing.golden MODULE:CONTRACT > FOLDER/NAME.jsonl"
        raise AssertionError("\n  ".join([f"not among the golden events ({how}):", *missing]))


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


def _missing(then: Any, now: Any, path: str) -> Iterator[str]:
    """A line for each value of then that is not there now."""
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        for name, value in then.items():
            yield from _missing(value, now.get(name), f"{path}.{name}" if path else name)
    elif isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        for number, pair in enumerate(zip(then, now, strict=True)):
            yield from _missing(*pair, f"{path}[{number}]")
    elif then != now:
        yield f"{path}: {then!r} then, {'nothing' if now is None else repr(now)} now"


def _value(field: Any) -> object:
    if field.type == FieldDescriptor.TYPE_BOOL:
        return True
    if field.type == FieldDescriptor.TYPE_BYTES:
        return f"the {field.name}".encode()
    if field.type != FieldDescriptor.TYPE_STRING:
        return field.number
    return str(uuid.UUID(int=field.number)) if field.name.endswith(("_id", "_ids")) else f"the {field.name}"


_OF_BYTES = ("payload", "key", "supplement")


def _text(value: object) -> object:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def _contract(name: str) -> EventContract[Any]:
    module, separator, attribute = name.partition(":")
    if not separator:
        raise argparse.ArgumentTypeError(f"{name} is not MODULE:CONTRACT, as in my.events:EVENTS")
    found = getattr(importlib.import_module(module), attribute, None)
    if not isinstance(found, EventContract):
        raise argparse.ArgumentTypeError(f"{attribute} of {module} is no EventContract")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Writes the golden events of a contract, a line each.")
    parser.add_argument("contract", type=_contract, help="where it is: MODULE:CONTRACT")
    sys.stdout.writelines(f"{it.line()}\n" for it in of_contract(parser.parse_args().contract))
