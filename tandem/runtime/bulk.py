"""One statement for many rows: each column goes as one array, whatever the number of rows.

So a statement is prepared once, and a batch of any size is one round trip. What a batch does to several tables is one
statement too: `Write`s that are executed together.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

from sqlalchemy import Connection, Table

from tandem.runtime.arrays import Array, array, sql_type
from tandem.runtime.database import driver_of

Row = Sequence[Any]
"""Values in the order of the table's columns; columns that are missing at the end get their defaults."""
Names = tuple[str, ...]


class Write(NamedTuple):
    """What is done to the rows of a table: a statement, and a parameter for each column."""

    statement: str
    arrays: list[Array | list[Any]]


def inserted(table: Table, rows: Iterable[Row]) -> list[Write]:
    """Inserts the rows; a unique violation when one exists. Nothing for no rows, here and below."""
    return _write(_insert, table, rows)


def updated(table: Table, rows: Iterable[Row], names: Names = ()) -> list[Write]:
    """Replaces the rows with the same primary key. names: of the columns that the rows hold, when not all."""
    return _write(_update, table, rows, names)


def execute(connection: Connection, writes: Sequence[Write]) -> None:
    """All of them in one statement, so none sees what another does: each row is in one of them."""
    if writes:
        with driver_of(connection) as driver:
            driver.send(_together(tuple(it.statement for it in writes)), [it for w in writes for it in w.arrays])


def _write(build: Callable[[Table, Names], str], table: Table, rows: Iterable[Row], names: Names = ()) -> list[Write]:
    columns = list(zip(*rows, strict=True))
    if not columns:
        return []
    names = names or _first(table, len(columns))
    arrays = [array(kind, values) for kind, values in zip(_types(table, names), columns, strict=True)]
    return [Write(build(table, names), arrays)]


@lru_cache(maxsize=256)
def _together(statements: tuple[str, ...]) -> str:
    if len(statements) == 1:
        return statements[0]
    parts = ", ".join(f"write{number} AS ({statement})" for number, statement in enumerate(statements))
    return f"WITH {parts} SELECT"


@cache
def _insert(table: Table, names: Names) -> str:
    return f"INSERT INTO {table.fullname} ({', '.join(names)}) SELECT * FROM {_unnest(table, names)}"  # noqa: S608


@cache
def _update(table: Table, names: Names) -> str:
    changes = ", ".join(f"{name} = v.{name}" for name in names if not table.c[name].primary_key)
    same = " AND ".join(f"t.{column.name} = v.{column.name}" for column in table.primary_key)
    values = f"{_unnest(table, names)} AS v ({', '.join(names)})"
    return f"UPDATE {table.fullname} AS t SET {changes} FROM {values} WHERE {same}"  # noqa: S608


@cache
def _first(table: Table, width: int) -> Names:
    return tuple(column.name for column in list(table.columns)[:width])


@cache
def _types(table: Table, names: Names) -> tuple[str, ...]:
    return tuple(sql_type(table.c[name]) for name in names)


def _unnest(table: Table, names: Names) -> str:
    return f"unnest({', '.join(f'CAST(%s AS {kind}[])' for kind in _types(table, names))})"
