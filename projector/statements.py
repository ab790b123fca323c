"""The statements that rows are read and written by: each column is one array, whatever the number of rows."""

import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache, lru_cache
from typing import Any

import psycopg
from sqlalchemy import Column

from projector.fold import Changes, Stored
from projector.projections.catalogue import PROJECTIONS
from shop.views import VIEWS
from tandem.read_store.tables import change, projection, written_columns
from tandem.runtime.arrays import Array, array, sql_type

Driver = psycopg.Connection[Any]


def load(driver: Driver, wanted: Mapping[str, Collection[bytes]]) -> dict[str, dict[bytes, Stored]]:
    """Those of the rows that exist, by view and key."""
    found: dict[str, dict[bytes, Stored]] = {view: {} for view in wanted}
    of_view = list(found.values())
    with driver.cursor(binary=True) as cursor:
        statement = _load_all(tuple(wanted))
        cursor.execute(statement, [array("UUID", keys) for keys in wanted.values()], prepare=True)
        for number, key, began, value in cursor.fetchall():
            of_view[number][key] = began, value
    return found


def save(driver: Driver, epoch: uuid.UUID, ways: Mapping[str, tuple[int, int]], changes: Mapping[str, Changes]) -> None:
    """Moves the views' positions (before, after), stores their changed rows and the change log, or does nothing at all.

    All in one statement, which in autocommit mode is a transaction, and one round trip. Raises NOT_MOVED when a view
    is not where it is thought; before anything else, for its rows would fail in ways that say nothing of that.

    Not in psycopg's pipeline mode: it ends with a Flush, on which PostgreSQL forgets the session's idle time-outs. A
    projector that hangs then would keep its views for ever.
    """
    parts = [part for view, it in changes.items() for part in _parts(view, it)]
    statements = tuple(statement for statement, _ in parts)
    before, after = zip(*ways.values(), strict=True)
    moved = [array("TEXT", list(ways)), array("BIGINT", before), array("BIGINT", after), epoch, len(ways)]
    driver.execute(_together(statements), [*moved, *(it for _, arrays in parts for it in arrays)], prepare=True)


Part = tuple[str, list[Array | list[Any]]]


def _parts(view: str, changes: Changes) -> Iterator[Part]:
    """Inserts the rows or replaces those that are there; deletes those of None; logs what changed."""
    present = [(key, row.position, *row.columns, row.value) for key, row in changes.rows.items() if row is not None]
    if present:
        yield _upsert(view), _arrays(written_columns(VIEWS[view]), present)
    gone = [(key,) for key, row in changes.rows.items() if row is None]
    if gone:
        yield _delete(view), _arrays([VIEWS[view].c.key], gone)
    if changes.log:
        yield _log(view), _arrays([change.c.position, change.c.key], changes.log)


def _arrays(columns: Sequence[Column[Any]], rows: Sequence[Sequence[Any]]) -> list[Array | list[Any]]:
    return [array(sql_type(column), values) for column, values in zip(columns, zip(*rows, strict=True), strict=True)]


@lru_cache(maxsize=100)
def _together(statements: Sequence[str]) -> str:
    parts = "".join(f", part{number} AS ({statement})" for number, statement in enumerate(statements))
    return f"WITH moved AS ({_MOVE}), held AS ({_HELD}){parts} SELECT one FROM held"  # noqa: S608


_MOVE = f"""
UPDATE {projection.fullname} AS p SET position = v.after
FROM unnest(%s::text[], %s::bigint[], %s::bigint[]) AS v (view, before, after), (SELECT %s::uuid AS epoch) AS feed
WHERE p.view = v.view AND p.position = v.before AND p.feed_epoch = feed.epoch
RETURNING p.view
"""  # noqa: S608 - only names of tables and columns are put in, here and below

# A row that all others are joined with: an error, of which nothing is left, unless all views were moved.
_HELD = "SELECT 1 / (count(*) = %s)::integer AS one FROM moved"
NOT_MOVED = psycopg.errors.DivisionByZero


@lru_cache(maxsize=100)
def _load_all(views: Sequence[str]) -> str:
    return " UNION ALL ".join(_load(number, view) for number, view in enumerate(views))


def _load(number: int, view: str) -> str:
    """uuid_send: keys are bytes here."""
    began = PROJECTIONS[view].began or "0::bigint"
    return (
        f"SELECT {number}, uuid_send(key), {began}, value FROM {VIEWS[view].fullname}"  # noqa: S608
        " WHERE key = ANY (%s::uuid[])"
    )


@cache
def _upsert(view: str) -> str:
    table = VIEWS[view]
    columns = written_columns(table)
    names = ", ".join(column.name for column in columns)
    changes = ", ".join(f"{it.name} = excluded.{it.name}" for it in columns if not it.primary_key)
    return (
        f"INSERT INTO {table.fullname} ({names})"  # noqa: S608
        f" SELECT rows.* FROM held, unnest({_casts(columns)}) AS rows WHERE one = 1"
        f" ON CONFLICT (key) DO UPDATE SET {changes}"
    )


@cache
def _delete(view: str) -> str:
    return f"DELETE FROM {VIEWS[view].fullname} USING held WHERE one = 1 AND key = ANY (%s::uuid[])"  # noqa: S608


@cache
def _log(view: str) -> str:
    casts = _casts([change.c.position, change.c.key])
    return (
        f"INSERT INTO {change.fullname} (view, position, key)"  # noqa: S608
        f" SELECT '{view}', rows.* FROM held, unnest({casts}) AS rows WHERE one = 1"
    )


def _casts(columns: Sequence[Column[Any]]) -> str:
    return ", ".join(f"%s::{sql_type(column)}[]" for column in columns)
