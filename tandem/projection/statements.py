"""The statements that rows are read and written by: each column is one array, whatever the number of rows."""

import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache, lru_cache
from itertools import chain
from typing import Any, NamedTuple

import psycopg
from sqlalchemy import Column, Table

from tandem.projection.changes import FoundRows, ParkedKeys, Room, ViewChanges, ViewRow, in_words
from tandem.projection.projection import Projection
from tandem.read_store.announcement import Announcement
from tandem.read_store.tables import CHANNEL, change, newest, parked, projection, view_of_table, written_columns
from tandem.runtime.arrays import Array, array, bigint, sql_type, text_of, uuid_of
from tandem.runtime.database import WITHOUT_THE_DISK, Driver
from tandem.runtime.sqlstate import ViewAction, failure_of


class Move(NamedTuple):
    """What a batch does to a view: it moves from one position to another, and its rows with it.

    mark: of the event at `after`.
    """

    projection: Projection
    before: int
    after: int
    changes: ViewChanges
    mark: int = 0


class Deposed(Exception):
    """Another projector has moved the view: this one does not hold it any more."""


def limit_statements(driver: Driver, statement_seconds: float, lock_seconds: float) -> None:
    """How long each statement may take from now on, and wait for a lock. Raises psycopg.Error."""
    driver.execute(
        "SELECT set_config('statement_timeout', %s, false), set_config('lock_timeout', %s, false)",
        (f"{int(statement_seconds * 1000)}ms", f"{int(lock_seconds * 1000)}ms"),
    )


def select_rows(
    driver: Driver, projections: Mapping[str, Projection], wanted: Mapping[str, Collection[bytes]]
) -> FoundRows:
    """Those of the rows that exist, by view and key. One round trip. Raises psycopg.Error."""
    found: FoundRows = {view: {} for view in wanted}
    of_view = list(found.values())
    statement = _select_all(tuple((projections[view].table, projections[view].began) for view in wanted))
    for number, key, began, value in driver.send(statement, [array("UUID", keys) for keys in wanted.values()]):
        of_view[number][key] = began, value
    return found


def select_parked(driver: Driver, room: Room, view: str) -> ParkedKeys:
    """One round trip. Raises psycopg.Error."""
    found = driver.execute(
        f"SELECT uuid_send(key), count(*) FROM {parked.fullname} WHERE view = %s GROUP BY key",  # noqa: S608
        (view,),
    ).fetchall()
    return ParkedKeys({bytes(key) for key, _ in found}, sum(count for _, count in found), room)


def select_waiting(driver: Driver, view: str, keys: Sequence[bytes]) -> dict[bytes, list[int]]:
    """By key of those that are parked: the positions of what waits. Raises psycopg.Error."""
    found = driver.execute(
        f"SELECT uuid_send(key), array_agg(position) FROM {parked.fullname}"  # noqa: S608
        " WHERE view = %s AND key = ANY (%s::uuid[]) GROUP BY key",
        (view, array("UUID", keys)),
    ).fetchall()
    return {bytes(key): positions for key, positions in found}


def count_parked(driver: Driver, view: str) -> int:
    """How many keys of a view are parked. Raises psycopg.Error."""
    found = driver.execute(
        f"SELECT count(DISTINCT key) FROM {parked.fullname} WHERE view = %s",  # noqa: S608
        (view,),
    ).fetchone()
    return int(found[0]) if found else 0


def move_views(
    driver: Driver, epoch: uuid.UUID, owner: uuid.UUID, moves: Sequence[Move], *, durable: bool = True
) -> None:
    """Moves the views' positions and stores their changed rows and the change log, or does nothing at all.

    driver: in autocommit mode, so that the one statement is the transaction. durable: whether it waits until that is on
    the disk. What comes out of the feed need not: after a crash the positions are where the rows are (ADR 79). One
    round trip. Raises psycopg.Error, and Deposed when a view has another owner, is not where it was read any more, or
    belongs to another feed than `epoch`.
    """
    parts = [part for move in moves for part in _parts(move.projection.table, move.changes)]
    views = [move.projection.view for move in moves]
    numbers = [[it.before for it in moves], [it.after for it in moves], [it.mark for it in moves]]
    numbers.append([it.changes.parked_keys for it in moves])
    count = bigint(len(moves))
    parameters: list[Any] = [array("TEXT", views), *(array("BIGINT", it) for it in numbers)]
    parameters += [uuid_of(epoch), uuid_of(owner), count, count, *(it for part in parts for it in part.arrays)]
    if not list(driver.send(_together(tuple(part.statement for part in parts), durable), parameters)):
        raise Deposed(f"{', '.join(views)}: moved by another projector")


def refused_rows(driver: Driver, projection: Projection, changes: ViewChanges) -> dict[bytes, str]:
    """Those of the changed rows that the database refuses, each by itself, with what it says. Stores nothing.

    Raises psycopg.Error for what is no fault of a row's.
    """
    refused: dict[bytes, str] = {}
    types = _written_types(projection.table)
    for key, row in changes.rows.items():
        if row is None:
            continue
        values = _arrays(types, _columns_of({key: row}))
        try:
            with driver.transaction(force_rollback=True):
                driver.execute(f"WITH held AS (SELECT 1) {_upsert(projection.table)}", values)
        except psycopg.Error as error:
            if failure_of(error).view is not ViewAction.PARK:
                raise
            refused[key] = in_words(error)
    return refused


def announce(driver: Driver, owner: uuid.UUID, announcement: Announcement) -> None:
    """Announces views, or raises Deposed when one of them has another owner. Raises psycopg.Error."""
    views = list(announcement.positions.keys() | announcement.problems.keys())
    said = (text_of(CHANNEL), text_of(announcement.encode()), array("TEXT", views), uuid_of(owner), bigint(len(views)))
    if not list(driver.send(_ANNOUNCE, said)):
        raise Deposed(f"{', '.join(views)}: taken over by another projector")


# Reading the views' rows may tidy their page, and that alone would be waited for.
_ANNOUNCE = f"""
SELECT pg_notify(%s, %s), {WITHOUT_THE_DISK}
WHERE (
  SELECT count(*) FROM unnest(%s::text[]) AS v (view) CROSS JOIN LATERAL {newest("v.view")} AS p WHERE p.owner = %s
) = %s
"""  # noqa: S608 - only the table's name is put in


class _Part(NamedTuple):
    """What is done to a table: a statement that joins `held`, and a parameter for each column."""

    statement: str
    arrays: list[Array | list[Any]]


def _parts(table: Table, changes: ViewChanges) -> Iterator[_Part]:
    """Inserts the rows or replaces those that are there; deletes those that are gone; logs what changed."""
    present = {key: row for key, row in changes.rows.items() if row is not None}
    if present:
        yield _Part(_upsert(table), _arrays(_written_types(table), _columns_of(present)))
    gone = [key for key, row in changes.rows.items() if row is None]
    if gone:
        yield _Part(_delete(table), _arrays(_KEY_TYPES, [gone]))
    if changes.log:
        yield _Part(_log(table), _arrays(_LOG_TYPES, zip(*changes.log, strict=True)))
    if changes.parked:
        yield _Part(_park(table), _arrays(_PARKED_TYPES, zip(*changes.parked, strict=True)))
    if changes.taken:
        yield _Part(_take(table), _arrays(_TAKEN_TYPES, zip(*changes.taken, strict=True)))
    if changes.failing:
        yield _Part(_still_failing(table), _arrays(_PARKED_TYPES, zip(*changes.failing, strict=True)))


def _columns_of(rows: Mapping[bytes, ViewRow]) -> Iterator[Collection[Any]]:
    """What the rows have in each of the table's columns, as `written_columns` names them."""
    positions, _, others, values = zip(*rows.values(), strict=True)
    return chain((rows.keys(), positions), zip(*others, strict=True), (values,))


def _arrays(types: Sequence[str], values: Iterable[Collection[Any]]) -> list[Array | list[Any]]:
    """types: of the columns, as SQL writes them. values: of all rows, for each column."""
    return [array(it, of_rows) for it, of_rows in zip(types, values, strict=True)]


@lru_cache(maxsize=100)
def _together(statements: Sequence[str], durable: bool) -> str:
    """Locks the views that are where they were read. If those are all, moves them and executes the statements.

    `held` has a row only if all views match, and everything that writes joins it. That row is the answer: how many
    views were moved, which is all of them. No row means none.
    """
    parts = "".join(f", part{number} AS ({statement})" for number, statement in enumerate(statements))
    answer = "views" if durable else f"views, {WITHOUT_THE_DISK}"
    return f"WITH matched AS ({_MATCH}), held AS ({_HOLD}), moved AS ({_MOVE}){parts} SELECT {answer} FROM held"  # noqa: S608


# Each view's row is looked up by its view and span. As a plain join, PostgreSQL may read the rows of all views once
# instead: it reckons with eight rows, and finds all versions of them. A subquery that locks is never made a join.
_MATCH = f"""
SELECT v.* FROM unnest(%s::text[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[])
  AS v (view, before, after, mark, parked)
CROSS JOIN LATERAL (
  SELECT FROM {projection.fullname} AS p WHERE p.view = v.view AND p.span = v.before >> 6
    AND p.position = v.before AND p.feed_epoch = %s AND p.owner = %s FOR NO KEY UPDATE
) AS p
"""  # noqa: S608 - only names of tables and columns are put in, here and below
_HOLD = "SELECT count(*) AS views FROM matched HAVING count(*) = %s"
# LIMIT: to as many as there are. What an UPDATE changes cannot be in a subquery; of a limit that it does not know
# PostgreSQL reckons with a tenth of the rows, which is one, and for one it looks up.
_MOVE = f"""
UPDATE {projection.fullname} AS p SET position = m.after, mark = m.mark, parked = m.parked, problem = NULL, error = NULL
FROM held, (SELECT * FROM matched LIMIT %s) AS m WHERE p.view = m.view AND p.span = m.before >> 6
"""  # noqa: S608


@lru_cache(maxsize=100)
def _select_all(tables: Sequence[tuple[Table, str]]) -> str:
    """uuid_send: keys are bytes here."""
    return " UNION ALL ".join(
        f"SELECT {number}, uuid_send(key), {began or '0::bigint'}, value FROM {table.fullname}"  # noqa: S608
        " WHERE key = ANY (%s::uuid[])"
        for number, (table, began) in enumerate(tables)
    )


@cache
def _upsert(table: Table) -> str:
    columns = written_columns(table)
    names = ", ".join(column.name for column in columns)
    changes = ", ".join(f"{it.name} = excluded.{it.name}" for it in columns if not it.primary_key)
    return (
        f"INSERT INTO {table.fullname} ({names})"  # noqa: S608
        f" SELECT rows.* FROM held, unnest({_casts(columns)}) AS rows ON CONFLICT (key) DO UPDATE SET {changes}"
    )


@cache
def _delete(table: Table) -> str:
    return f"DELETE FROM {table.fullname} USING held WHERE key = ANY (%s::uuid[])"  # noqa: S608


@cache
def _log(table: Table) -> str:
    casts = _casts([change.c.position, change.c.key])
    return (
        f"INSERT INTO {change.fullname} (view, position, key)"  # noqa: S608
        f" SELECT '{table.name}', rows.* FROM held, unnest({casts}) AS rows ON CONFLICT DO NOTHING"
    )


_PARKED = (parked.c.key, parked.c.position, parked.c.kind, parked.c.error, parked.c.scope)

# Of the values that are written, as `_arrays` wants them: what a table's columns are is looked up once, not each batch.
_KEY_TYPES, _LOG_TYPES, _PARKED_TYPES, _TAKEN_TYPES = (
    tuple(map(sql_type, columns))
    for columns in (
        (parked.c.key,),
        (change.c.position, change.c.key),
        _PARKED,
        (parked.c.key, parked.c.position),
    )
)


@cache
def _written_types(table: Table) -> tuple[str, ...]:
    return tuple(map(sql_type, written_columns(table)))


@cache
def _park(table: Table) -> str:
    return (
        f"INSERT INTO {parked.fullname} (view, key, position, kind, error, scope)"  # noqa: S608
        f" SELECT '{view_of_table(table)}', rows.* FROM held, unnest({_casts(_PARKED)}) AS rows"
    )


@cache
def _take(table: Table) -> str:
    casts = _casts([parked.c.key, parked.c.position])
    return (
        f"DELETE FROM {parked.fullname} AS it USING held, unnest({casts}) AS taken (key, position)"  # noqa: S608
        f" WHERE it.view = '{view_of_table(table)}' AND it.key = taken.key AND it.position = taken.position"
    )


@cache
def _still_failing(table: Table) -> str:
    return (
        f"UPDATE {parked.fullname} AS it SET error = rows.error, scope = rows.scope FROM held,"  # noqa: S608
        f" unnest({_casts(_PARKED)}) AS rows (key, position, kind, error, scope)"
        f" WHERE it.view = '{view_of_table(table)}' AND it.key = rows.key AND it.position = rows.position"
    )


def _casts(columns: Sequence[Column[Any]]) -> str:
    return ", ".join(f"%s::{sql_type(column)}[]" for column in columns)
