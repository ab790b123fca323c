"""One statement for many rows: each column goes as one array, whatever the number of rows.

So a statement is prepared once, and a batch of any size is one round trip.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import cache

from sqlalchemy import Column, Connection, Table, TextClause, text
from sqlalchemy.dialects import postgresql

Row = Sequence[object]
"""Values in the order of the table's columns; columns that the caller leaves off the end get their defaults."""


def insert_rows(connection: Connection, table: Table, rows: Iterable[Row]) -> None:
    """Inserts the rows; a unique violation when one exists."""
    _execute(connection, table, rows, _insert)


def upsert_rows(connection: Connection, table: Table, rows: Iterable[Row]) -> None:
    """Inserts the rows or replaces those with the same primary key. Each key once."""
    _execute(connection, table, rows, _upsert)


def update_rows(connection: Connection, table: Table, rows: Iterable[Row]) -> None:
    """Replaces the rows with the same primary key."""
    _execute(connection, table, rows, _update)


def _execute(
    connection: Connection, table: Table, rows: Iterable[Row], build: Callable[[Table, int], TextClause]
) -> None:
    columns = list(zip(*rows, strict=True))
    if columns:
        statement = build(table, len(columns))
        connection.execute(statement, {f"c{number}": list(values) for number, values in enumerate(columns)})


@cache
def _insert(table: Table, width: int) -> TextClause:
    return text(f"INSERT INTO {table.fullname} ({_names(table, width)}) SELECT * FROM {_unnest(table, width)}")  # noqa: S608


@cache
def _upsert(table: Table, width: int) -> TextClause:
    key = ", ".join(column.name for column in table.primary_key)
    changes = ", ".join(f"{column.name} = excluded.{column.name}" for column in _others(table, width))
    return text(f"{_insert(table, width).text} ON CONFLICT ({key}) DO UPDATE SET {changes}")


@cache
def _update(table: Table, width: int) -> TextClause:
    changes = ", ".join(f"{column.name} = v.{column.name}" for column in _others(table, width))
    same = " AND ".join(f"t.{column.name} = v.{column.name}" for column in table.primary_key)
    values = f"{_unnest(table, width)} AS v ({_names(table, width)})"
    return text(f"UPDATE {table.fullname} AS t SET {changes} FROM {values} WHERE {same}")  # noqa: S608


def _unnest(table: Table, width: int) -> str:
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    arrays = (
        f"CAST(:c{number} AS {column.type.compile(dialect=dialect)}[])"
        for number, column in enumerate(list(table.columns)[:width])
    )
    return f"unnest({', '.join(arrays)})"


def _names(table: Table, width: int) -> str:
    return ", ".join(column.name for column in list(table.columns)[:width])


def _others(table: Table, width: int) -> list[Column[object]]:
    return [column for column in list(table.columns)[:width] if not column.primary_key]
