"""Whose a row is: the domain says which field of a view's message names the owner."""

from collections.abc import Collection, Mapping

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message

from tandem.queries.encoding import view_of

_VARINT, _FIXED64, _LENGTH_DELIMITED, _FIXED32 = 0, 1, 2, 5
# Numbers up to this take one byte, as most do. To read those in place takes a third of the time of `is_of` less.
_ONE_BYTE = 0x7F


def owner_fields(service: ServiceDescriptor, owners: Mapping[str, str], look: Collection[str]) -> dict[str, str]:
    """Of each query for rows that have owners: the field of its request that names the owner, or else "".

    owners: the field that names the owner, by view. look: the queries whose handlers look whose a row is; another one
    whose request names no owner is left out, so that nobody is let in to see what is their own.
    """
    found = {}
    for method in service.methods:
        field = owner_field(method, owners)
        if field is not None and field in method.input_type.fields_by_name:
            found[method.name] = field
        elif field is not None and method.name in look:
            found[method.name] = ""
    return found


def owner_field(method: MethodDescriptor, owners: Mapping[str, str]) -> str | None:
    """Of the rows that a query's response holds; None where they have no owners."""
    views = [view_of(it) for it in method.output_type.fields if it.message_type is not None]
    return next((owners[it] for it in views if it in owners), None)


class RowOwner:
    """Reads the owner out of a serialised row, without parsing it: in 0.4 µs."""

    def __init__(self, row: type[Message], field: str) -> None:
        """field: of text, in the row's message."""
        self._number = row.DESCRIPTOR.fields_by_name[field].number

    def is_of(self, row: bytes, owner: str, start: int = 0) -> bool:
        """Whether the row that begins at `start` is somebody's. owner: in lower case."""
        try:
            return self._found(row, start).lower() == owner.encode()
        except IndexError:
            # Bytes that are no message: of nobody.
            return False

    def _found(self, row: bytes, place: int) -> bytes:
        """Empty where the field is not there. Raises IndexError."""
        end = len(row)
        while place < end:
            tag = row[place]
            place += 1
            if tag > _ONE_BYTE:
                tag, place = _varint(row, place - 1)
            kind = tag & 7
            if kind == _LENGTH_DELIMITED:
                length = row[place]
                place += 1
                if length > _ONE_BYTE:
                    length, place = _varint(row, place - 1)
                if tag >> 3 == self._number:
                    return row[place : place + length]
                place += length
            elif kind == _VARINT:
                _, place = _varint(row, place)
            elif kind in (_FIXED64, _FIXED32):
                place += 8 if kind == _FIXED64 else 4
            else:
                break
        return b""


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """The number, and the place behind it."""
    number = data[place]
    if number < 0x80:
        return number, place + 1
    number &= 0x7F
    for shift in range(7, 64, 7):
        place += 1
        byte = data[place]
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, place + 1
    raise IndexError("a varint has ten bytes at most")
