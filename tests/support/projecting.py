"""What projectors do a step at a time, in one go; and views filled without one."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Table
from sqlalchemy.dialects.postgresql import insert

from projector.apply import prepare
from projector.fold import Changes, Stored, fold_steps, steps_of
from projector.projections.shape import Projection
from tandem.feed.events import FeedEvent


def fold(projection: Projection, events: Sequence[FeedEvent], rows: Mapping[bytes, Stored]) -> Changes:
    """The rows after the events, from `rows`, which holds those of their keys that exist."""
    return fold_steps(projection, steps_of(projection, events), rows)


def plan(connection: Connection, view: str, events: Sequence[FeedEvent]) -> Changes:
    """What the events do to one view, up to the first that it cannot take in. Raises psycopg.Error."""
    [prepared] = prepare(connection, [view], events, {}, {})
    return prepared.fold()


def upsert(connection: Connection, table: Table, rows: Iterable[Sequence[Any]]) -> None:
    """Inserts the rows or replaces those with the same primary key; values in the order of the table's columns."""
    for row in rows:
        values = {column.name: value for column, value in zip(table.columns, row, strict=False)}
        keys = [column.name for column in table.primary_key]
        statement = insert(table).values(values)
        connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=values))
