"""What differs between the message that a test expects and the one that came, field by field, in words."""

from collections.abc import Iterator, Sequence
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message


def differences(expected: Message, came: Message) -> list[str]:
    """A line for each field that differs: "total.minor_units: 450 was expected, 500 came"; none for equal messages."""
    if expected.DESCRIPTOR is not came.DESCRIPTOR:
        return [f"{expected.DESCRIPTOR.name} was expected, {came.DESCRIPTOR.name} came"]
    lines = list(_of_messages(expected, came, ""))
    if not lines and expected != came:
        lines = ["fields that this program does not know"]
    return lines


def in_words(message: Message) -> str:
    """The message on one line, for a sentence."""
    text = " ".join(str(message).split())
    return f"{message.DESCRIPTOR.name}({text})"


def _of_messages(expected: Any, came: Any, path: str) -> Iterator[str]:
    for field in expected.DESCRIPTOR.fields:
        name = f"{path}{field.name}"
        wanted, found = getattr(expected, field.name), getattr(came, field.name)
        if _is_map(field):
            yield from _of_maps(field, wanted, found, name)
        elif field.is_repeated:
            yield from _of_lists(field, wanted, found, name)
        elif field.has_presence and expected.HasField(field.name) != came.HasField(field.name):
            yield f"{name}: {_value(field, expected, wanted)} was expected, {_value(field, came, found)} came"
        else:
            yield from _of_values(field, wanted, found, name)


def _of_lists(field: FieldDescriptor, wanted: Sequence[Any], found: Sequence[Any], name: str) -> Iterator[str]:
    if len(wanted) != len(found):
        yield f"{name}: {len(wanted)} were expected, {len(found)} came"
    for number, pair in enumerate(zip(wanted, found, strict=False)):
        yield from _of_values(field, *pair, f"{name}[{number}]")


def _of_maps(field: FieldDescriptor, wanted: Any, found: Any, name: str) -> Iterator[str]:
    assert field.message_type is not None, "a map's entries are messages"
    value = field.message_type.fields_by_name["value"]
    for key in sorted({*wanted, *found}):
        if key in wanted and key in found:
            yield from _of_values(value, wanted[key], found[key], f"{name}[{key!r}]")
        else:
            yield f"{name}[{key!r}]: {'was expected, and did not come' if key in wanted else 'was not expected'}"


def _of_values(field: FieldDescriptor, wanted: Any, found: Any, name: str) -> Iterator[str]:
    if field.message_type is not None:
        yield from _of_messages(wanted, found, f"{name}.")
    elif wanted != found:
        yield f"{name}: {_shown(field, wanted)} was expected, {_shown(field, found)} came"


def _value(field: FieldDescriptor, message: Message, value: Any) -> str:
    if not message.HasField(field.name):
        return "nothing"
    return in_words(value) if isinstance(value, Message) else _shown(field, value)


def _shown(field: FieldDescriptor, value: Any) -> str:
    """An enum's value by its name."""
    if field.enum_type is not None and value in field.enum_type.values_by_number:
        return str(field.enum_type.values_by_number[value].name)
    return repr(value)


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry
