"""Columns of values as PostgreSQL's binary arrays.

psycopg can dump a list, but looks at each of its elements anew, which takes longer than all else of storing a batch.
Here the column says what its values are.
"""

import datetime
import struct
import uuid
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import psycopg
from psycopg.abc import Buffer
from psycopg.adapt import Dumper
from psycopg.pq import Format
from sqlalchemy import Column
from sqlalchemy.dialects import postgresql

_NULL = b"\xff\xff\xff\xff"
_length = struct.Struct(">i").pack
_header = struct.Struct(">iiIii").pack
_EPOCH = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)
_FIRST_DAY = datetime.date(2000, 1, 1).toordinal()
_MICROSECOND = datetime.timedelta(microseconds=1)


class BinaryArray(bytes):
    """A parameter that is an array; the statement casts it to its type."""


class _BinaryArrayDumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: BinaryArray) -> Buffer:
        return obj


def accept_arrays(connection: "psycopg.Connection[Any]") -> None:
    """Makes the connection take BinaryArrays as parameters."""
    connection.adapters.register_dumper(BinaryArray, _BinaryArrayDumper)


def array_type(column: Column[Any]) -> str:
    """The name of the type of an array of the column's values."""
    return column.type.compile(dialect=postgresql.dialect()) + "[]"  # type: ignore[no-untyped-call]


def binary_array(column: Column[Any], values: Sequence[Any]) -> BinaryArray:
    """The values, which may be None, as an array. Raises KeyError for a column of a type that is not known here."""
    oid, encode = _ELEMENTS[_name_of(column)]
    elements = [_NULL if value is None else encode(value) for value in values]
    # One dimension, with NULLs, from index 1.
    return BinaryArray(_header(1, 1, oid, len(elements), 1) + b"".join(elements))


@cache
def _name_of(column: Column[Any]) -> str:
    return str(column.type.compile(dialect=postgresql.dialect()))  # type: ignore[no-untyped-call]


def _sized(value: bytes) -> bytes:
    return _length(len(value)) + value


def _text(value: str) -> bytes:
    return _sized(value.encode())


def _uuid(value: uuid.UUID | str) -> bytes:
    """Messages hold ids as text."""
    return b"\x00\x00\x00\x10" + (
        value.bytes if isinstance(value, uuid.UUID) else bytes.fromhex(value.replace("-", ""))
    )


def _integer(layout: str) -> Callable[[int], bytes]:
    size, pack = struct.calcsize(layout), struct.Struct(f">i{layout}").pack
    return lambda value: pack(size, value)


_int8 = _integer("q")
_int4 = _integer("i")


def _moment(value: datetime.datetime) -> bytes:
    return _int8((value - _EPOCH) // _MICROSECOND)


def _day(value: datetime.date) -> bytes:
    return _int4(value.toordinal() - _FIRST_DAY)


_ELEMENTS: dict[str, tuple[int, Callable[[Any], bytes]]] = {
    "BOOLEAN": (16, lambda value: b"\x00\x00\x00\x01\x01" if value else b"\x00\x00\x00\x01\x00"),
    "BYTEA": (17, _sized),
    "BIGINT": (20, _int8),
    "SMALLINT": (21, _integer("h")),
    "TEXT": (25, _text),
    "DATE": (1082, _day),
    "TIMESTAMP WITH TIME ZONE": (1184, _moment),
    "UUID": (2950, _uuid),
}
"""By type: PostgreSQL's number for it, the same on every server, and what an element looks like."""
