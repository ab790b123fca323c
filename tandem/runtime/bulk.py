"""One statement for many rows: each column goes as one array, whatever the number of rows.

So a statement is prepared once, and a batch of any size is one round trip, or a part of one where the caller has opened
tandem.runtime.database.pipelined.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

from sqlalchemy import Connection, Table

from tandem.runtime.arrays import array, sql_type
from tandem.runtime.database import driver_of

Row = Sequence[Any]
"""Values in the order of the table's columns; columns that the caller leaves off the end get their defaults."""
Names = tuple[str, ...]


def insert_rows(connection: Connection, table: Table, rows: Iterable[Row]) -> None:
    """Inserts the rows; a unique violation when one exists."""
    _execute(connection, table, rows, _insert)


def upsert_rows(connection: Connection, table: Table, rows: Iterable[Row]) -> None:
    """Inserts the rows or replaces those with the same primary key. Each key once."""
    _execute(connection, table, rows, _upsert)


def update_rows(connection: Connection, table: Table, rows: Iterable[Row], names: Names = ()) -> None:
    """Replaces the rows with the same primary key. names: of the columns that the rows hold, when not all."""
    _execute(connection, table, rows, _update, names)


def _execute(
    connection: Connection,
    table: Table,
    rows: Iterable[Row],
    build: Callable[[Table, Names], str],
    names: Names = (),
) -> None:
    columns = list(zip(*rows, strict=True))
    if columns:
        names = names or _first(table, len(columns))
        arrays = [array(kind, values) for kind, values in zip(_types(table, names), columns, strict=True)]
        with driver_of(connection) as driver:
            driver.execute(build(table, names), arrays)


@cache
def _insert(table: Table, names: Names) -> str:
    return f"INSERT INTO {table.fullname} ({', '.join(names)}) SELECT * FROM {_unnest(table, names)}"  # noqa: S608


@cache
def _upsert(table: Table, names: Names) -> str:
    key = ", ".join(column.name for column in table.primary_key)
    changes = ", ".join(f"{name} = excluded.{name}" for name in _others(table, names))
    return f"{_insert(table, names)} ON CONFLICT ({key}) DO UPDATE SET {changes}"


@cache
def _update(table: Table, names: Names) -> str:
    changes = ", ".join(f"{name} = v.{name}" for name in _others(table, names))
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


def _others(table: Table, names: Names) -> list[str]:
    return [name for name in names if not table.c[name].primary_key]
