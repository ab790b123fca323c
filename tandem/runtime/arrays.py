"""A column's values as one array in PostgreSQL's binary form.

psycopg writes lists element by element, through a dumper for each; even its binary lists take two to six times as long
for an element as these arrays. A column knows its type, so here one pass over the values is enough.
"""

import struct
import uuid
from collections.abc import Callable, Collection, Iterable
from datetime import UTC, date, datetime, timedelta
from functools import cache
from typing import Any, ClassVar, NamedTuple

import psycopg
from psycopg.adapt import Dumper
from psycopg.pq import Format
from sqlalchemy import Column
from sqlalchemy.dialects import postgresql

_LENGTH = struct.Struct("!i").pack
_BIGINT = struct.Struct("!q").pack
_NULL = _LENGTH(-1)
# Dimensions, whether there are NULLs, the elements' type; and of one dimension its length and its first number.
_EMPTY = struct.Struct("!iiI").pack
_HEADER = struct.Struct("!iiIii").pack
_MIDNIGHT_2000 = datetime(2000, 1, 1, tzinfo=UTC)
_FIRST_DAY = date(2000, 1, 1).toordinal()
_MICROSECOND = timedelta(microseconds=1)


class Parameter:
    """A value that is ready to be sent; a parameter of any statement on a connection that `send_arrays` prepared.

    Each type is a class of its own: by that psycopg finds what writes a parameter, once a statement. oid: of the type.
    """

    __slots__ = ("value",)
    oid: ClassVar[int]

    def __init__(self, value: bytes) -> None:
        self.value = value


class Array(Parameter):
    """As such: a column's values."""

    __slots__ = ()


def array(kind: str, values: Collection[Any]) -> Array | list[Any]:
    """The values, None among them for NULL, as an array of `kind`.

    As they are where psycopg is to write them: a type that is not known here, or values of another one, such as a
    number that is too large.
    """
    known = _KINDS.get(kind)
    if known is None:
        return list(values)
    nulls = None in values
    try:
        body = b"".join(_with_nulls(known.encode, values) if nulls else known.encode(values))
    except (AttributeError, OverflowError, TypeError, ValueError, struct.error):
        return list(values)
    if not values:
        return known.array(_EMPTY(0, 0, known.element))
    return known.array(_HEADER(1, nulls, known.element, len(values), 1) + body)


def bigint(value: int) -> Parameter:
    """Raises struct.error for one of more than 64 bits."""
    return _Bigint(_BIGINT(value))


def text_of(value: str) -> Parameter:
    return _Text(value.encode())


def uuid_of(value: uuid.UUID) -> Parameter:
    return _Uuid(value.bytes)


@cache
def sql_type(column: Column[Any]) -> str:
    """The column's type as SQL writes it."""
    return column.type.compile(dialect=postgresql.dialect())  # type: ignore[no-untyped-call]


def send_arrays(connection: psycopg.Connection[Any]) -> None:
    """Makes them parameters of this connection's statements."""
    ready: list[type[Parameter]] = [_Bigint, _Text, _Uuid, *(kind.array for kind in _KINDS.values())]
    for it in ready:
        connection.adapters.register_dumper(it, type(f"{it.__name__}_dumper", (_AsItIs,), {"oid": it.oid}))


class _AsItIs(Dumper):
    format = Format.BINARY

    def dump(self, obj: Parameter) -> bytes:
        return obj.value


def _with_nulls(encode: Callable[[Iterable[Any]], Iterable[bytes]], values: Iterable[Any]) -> Iterable[bytes]:
    others = iter(encode([value for value in values if value is not None]))
    return [_NULL if value is None else next(others) for value in values]


def _fixed(form: str) -> Callable[[Iterable[Any]], Iterable[bytes]]:
    """Of values that struct packs, each behind its length."""
    pack = struct.Struct(f"!i{form}").pack
    size = struct.calcsize(f"!{form}")
    return lambda values: [pack(size, value) for value in values]


def _uuids(values: Iterable[uuid.UUID | str | bytes]) -> Iterable[bytes]:
    """Messages hold ids as text; bytes are the 16 of an id. All values are of one kind."""
    ids: list[Any] = list(values)
    if ids and isinstance(ids[0], str):
        together = bytes.fromhex("".join(ids).replace("-", ""))
        ids = [together[start : start + 16] for start in range(0, 16 * len(ids), 16)]
        is_right = len(together) == 16 * len(ids)
    else:
        if ids and isinstance(ids[0], uuid.UUID):
            ids = [it.int.to_bytes(16, "big") for it in ids]
        is_right = {16}.issuperset(map(len, ids))
    if not is_right:
        raise ValueError("not all of them are UUIDs")
    return [b"\0\0\0\x10" + it for it in ids]


def _days(values: Iterable[date]) -> Iterable[bytes]:
    return _int32([value.toordinal() - _FIRST_DAY for value in values])


def _bytes(values: Iterable[bytes]) -> Iterable[bytes]:
    return [_LENGTH(len(value)) + value for value in values]


def _texts(values: Iterable[str]) -> Iterable[bytes]:
    return _bytes([value.encode() for value in values])


_int64 = _fixed("q")
_int32 = _fixed("i")


def _moments(values: Iterable[datetime]) -> Iterable[bytes]:
    return _int64([(value - _MIDNIGHT_2000) // _MICROSECOND for value in values])


class _Kind(NamedTuple):
    """element: its type in PostgreSQL."""

    encode: Callable[[Iterable[Any]], Iterable[bytes]]
    element: int
    array: type[Array]


def _kind(name: str, encode: Callable[[Iterable[Any]], Iterable[bytes]]) -> _Kind:
    element = psycopg.adapters.types[name]
    assert element is not None
    made = type(f"{element.name}_array", (Array,), {"__slots__": (), "oid": element.array_oid})
    return _Kind(encode, element.oid, made)


class _Bigint(Parameter):
    __slots__ = ()
    oid = psycopg.adapters.types.get_oid("int8")


class _Text(Parameter):
    __slots__ = ()
    oid = psycopg.adapters.types.get_oid("text")


class _Uuid(Parameter):
    __slots__ = ()
    oid = psycopg.adapters.types.get_oid("uuid")


# By the type of a column as SQLAlchemy writes it.
_KINDS = {
    "UUID": _kind("uuid", _uuids),
    "BIGINT": _kind("int8", _int64),
    "INTEGER": _kind("int4", _int32),
    "SMALLINT": _kind("int2", _fixed("h")),
    "BOOLEAN": _kind("bool", _fixed("?")),
    "TEXT": _kind("text", _texts),
    "BYTEA": _kind("bytea", _bytes),
    "DATE": _kind("date", _days),
    "TIMESTAMP WITH TIME ZONE": _kind("timestamptz", _moments),
}
