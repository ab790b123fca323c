"""What projectors do a step at a time, in one go; and views filled without one."""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Table
from sqlalchemy.dialects.postgresql import insert

from projector.app import VIEWS
from tandem.feed.events import FeedEvent
from tandem.projection.changes import StoredRow, ViewChanges
from tandem.projection.fold import Steps, fold_steps, steps_of
from tandem.projection.projection import Projection
from tandem.projection.statements import Move, move_views, select_rows
from tandem.runtime.database import driver_under

OWNER = uuid.UUID(int=1)
"""The session of a projector that the test stands for."""

PROJECTIONS, KINDS = VIEWS.projections, VIEWS.kinds


def steps(projection: Projection, events: Sequence[FeedEvent]) -> Steps:
    """Those of the shop's events that concern a view."""
    return steps_of(projection, events, KINDS)


def fold(projection: Projection, events: Sequence[FeedEvent], rows: Mapping[bytes, StoredRow]) -> ViewChanges:
    """The rows after the events, from `rows`, which holds those of their keys that exist."""
    return fold_steps(projection, steps(projection, events), rows)


def plan(connection: Connection, view: str, events: Sequence[FeedEvent]) -> ViewChanges:
    """What the events do to one view, up to the first that it cannot take in. Raises psycopg.Error."""
    projection = PROJECTIONS[view]
    needed = steps(projection, events).needed(projection)
    return fold(projection, events, select_rows(driver_under(connection), PROJECTIONS, {view: needed})[view])


def store(
    connection: Connection, epoch: uuid.UUID, before: int, after: int, changes: Mapping[str, ViewChanges]
) -> None:
    """Moves views of OWNER's from one position to another, by name, with what changes.

    Raises psycopg.Error and Deposed.
    """
    moves = [Move(PROJECTIONS[view], before, after, it) for view, it in changes.items()]
    move_views(driver_under(connection), epoch, OWNER, moves)


def upsert(connection: Connection, table: Table, rows: Iterable[Sequence[Any]]) -> None:
    """Inserts the rows or replaces those with the same primary key; values in the order of the table's columns.

    All with one statement: each row has as many values.
    """
    values = [dict(zip(table.columns.keys(), row, strict=False)) for row in rows]
    if not values:
        return
    statement = insert(table)
    new = {name: statement.excluded[name] for name in values[0]}
    connection.execute(statement.on_conflict_do_update(index_elements=[*table.primary_key], set_=new), values)
