"""Composing a response from views that are stored serialised: bytes put behind bytes, nothing parsed.

A message's encoding is its fields' encodings, one behind the other; a field of bytes, text or a message is its tag, its
length and its content. Tags come from the descriptors.
"""

from bisect import bisect_right
from collections.abc import Iterable
from functools import lru_cache
from itertools import accumulate

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from tandem.feed.token import Token, encode_token
from tandem.feed.token_signature import remembered
from tandem.read_store.contract import name_of
from tandem.read_store.tables import name_in_this_program

_LENGTH_DELIMITED = 2
_TYPES = (FieldDescriptor.TYPE_MESSAGE, FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)


def room_for_rows(max_response_bytes: int) -> int:
    """How many bytes of an answer its rows may take. A quarter is for all else that it says."""
    return max_response_bytes * 3 // 4


def fitting(sizes: Iterable[int], room: int) -> int:
    """How many rows of these sizes, in bytes, have room, from the first on. The first one always has."""
    return max(bisect_right(list(accumulate(sizes)), room), 1)


@remembered(maxsize=1024)
def as_of_text(as_of: Token) -> bytes:
    """The token's text in UTF-8. All answers between two announcements share it."""
    return encode_token(as_of.epoch, as_of.position, as_of.mark).encode()


@remembered(maxsize=1024)
def watch_as_of_text(as_of: Token) -> bytes:
    """With the view's generation: whoever comes back with it is shown what was made anew since."""
    return encode_token(as_of.epoch, as_of.position, as_of.mark, as_of.generation).encode()


def view_of(field: FieldDescriptor) -> str:
    """The view whose rows a response's field holds: it is named as their message is, order_details for OrderDetails.

    A later version of it has another table, and so another name.
    """
    assert field.message_type is not None, f"{field.full_name} holds rows"
    return name_in_this_program(name_of(field.message_type))


class EncodedField:
    """Encodes one field of a message, given its content: a serialised message, or text in UTF-8."""

    __slots__ = ("_before", "_opening", "tag")

    def __init__(self, message: type[Message], name: str) -> None:
        """Raises KeyError when `message` has no such field."""
        field = message.DESCRIPTOR.fields_by_name[name]
        assert field.type in _TYPES, f"{field.full_name} is not length-delimited"
        self.tag = _varint(field.number << 3 | _LENGTH_DELIMITED)
        # Most contents are of few sizes.
        self._before = lru_cache(maxsize=4096)(lambda size: self.tag + _varint(size))
        self._opening = lru_cache(maxsize=4096)(self._opening_of)

    def __call__(self, content: bytes) -> bytes:
        return self._before(len(content)) + content

    def each(self, contents: Iterable[bytes]) -> bytes:
        """The field once for each content: as a repeated field is encoded."""
        before = self._before
        return b"".join([part for content in contents for part in (before(len(content)), content)])

    def start_of(self, encoded: bytes) -> int:
        """Where the content begins, of what this has encoded."""
        place = len(self.tag)
        while encoded[place] > 0x7F:
            place += 1
        return place + 1

    def encodes(self, encoded: bytes) -> bool:
        """Whether `encoded` is this field and nothing else."""
        opening = self._opening(len(encoded))
        return opening is not None and encoded.startswith(opening)

    def _opening_of(self, size: int) -> bytes | None:
        """The tag and the length of a field that takes `size` bytes in all; None where no field does."""
        for length_bytes in range(1, 6):
            opening = self.tag + _varint(max(size - len(self.tag) - length_bytes, 0))
            if len(opening) == len(self.tag) + length_bytes:
                return opening if size >= len(opening) else None
        return None


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
