"""Composing a response from views that are stored serialised: bytes put behind bytes, nothing parsed.

A message's encoding is its fields' encodings, one behind the other; a field of bytes, text or a message is its tag, its
length and its content. Tags come from the descriptors.
"""

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

_LENGTH_DELIMITED = 2
_TYPES = (FieldDescriptor.TYPE_MESSAGE, FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)


class EncodedField:
    """Encodes one field of a message, given its content: a serialised message, or text in UTF-8."""

    __slots__ = ("_tag",)

    def __init__(self, message: type[Message], name: str) -> None:
        """Raises KeyError when `message` has no such field."""
        field = message.DESCRIPTOR.fields_by_name[name]
        assert field.type in _TYPES, f"{field.full_name} is not length-delimited"
        self._tag = _varint(field.number << 3 | _LENGTH_DELIMITED)

    def __call__(self, content: bytes) -> bytes:
        return self._tag + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
