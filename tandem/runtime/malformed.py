"""Which field makes a message malformed. Protobuf says that bytes are no such message, and not where."""

from typing import Any

from google.protobuf import message_factory
from google.protobuf.message import DecodeError, Message

# A refusal is not worth more: to parse a field alone takes about a microsecond.
_MOST_FIELDS = 1000


def malformed_field(message_class: type[Message], payload: bytes) -> str:
    """The path (`lines[2].product_id`) of the first field that is not as the contract has it.

    Empty where that cannot be known: where the bytes are no fields, or behind the first thousand fields.
    """
    position, seen = 0, dict[int, int]()
    for _ in range(_MOST_FIELDS):
        try:
            number, content, end = _field_at(payload, position)
        except IndexError:
            return ""
        index = seen[number] = seen.get(number, -1) + 1
        if not _is_one(message_class, payload[position:end]):
            return _path(message_class, number, index, content)
        position = end
    return ""


def _is_one(message_class: type[Message], payload: bytes) -> bool:
    try:
        message_class.FromString(payload)
    except DecodeError:
        return False
    return True


def _path(message_class: type[Message], number: int, index: int, content: bytes) -> str:
    field = message_class.DESCRIPTOR.fields_by_number.get(number)
    if field is None:
        return ""
    name = f"{field.name}[{index}]" if field.is_repeated else field.name
    inside: Any = field.message_type
    if inside is None:
        return name
    inner = malformed_field(message_factory.GetMessageClass(inside), content)
    return f"{name}.{inner}" if inner else name


def _field_at(payload: bytes, position: int) -> tuple[int, bytes, int]:
    """A field's number, its content where that has a length, and where it ends. Raises IndexError for what is none."""
    tag, start = _varint_at(payload, position)
    match tag & 7:
        case 0:
            _, end = _varint_at(payload, start)
        case 1:
            end = start + 8
        case 2:
            length, start = _varint_at(payload, start)
            end = start + length
        case 5:
            end = start + 4
        case _:
            raise IndexError("a kind of field that no message of ours has")
    if end > len(payload):
        raise IndexError("the message ends in a field")
    return tag >> 3, payload[start:end], end


def _varint_at(payload: bytes, position: int) -> tuple[int, int]:
    """The number, and where it ends. Raises IndexError."""
    number = 0
    for shift in range(0, 70, 7):
        byte = payload[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
    raise IndexError("a number that is too long")
