"""One batch of one or more views: rows, change log and positions in one transaction."""

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import psycopg
from sqlalchemy import Connection, bindparam, select, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.types import Uuid

from projector.fold import Changes, ViewRow, fold, keys_of
from projector.projections.catalogue import PROJECTIONS
from projector.projections.shape import Projection
from tandem.feed.events import FeedEvent
from tandem.read_store.tables import VIEWS, change, projection
from tandem.runtime.bulk import insert_rows, upsert_rows


class Deposed(Exception):
    """Another projector has moved the view: this one does not hold it any more."""


_MOVE = text(f"""
UPDATE {projection.fullname} AS p SET position = v.after
FROM unnest(CAST(:views AS text[]), CAST(:before AS bigint[]), CAST(:after AS bigint[])) AS v (view, before, after)
WHERE p.view = v.view AND p.position = v.before AND p.feed_epoch = :epoch
""")  # noqa: S608 - only the table's name is put in


def plan(connection: Connection, view: str, events: Sequence[FeedEvent]) -> Changes:
    """What the events do to the view. Raises CannotApply."""
    projection_ = PROJECTIONS[view]
    keys = keys_of(projection_, events)
    return fold(projection_, events, load_rows(connection, projection_, keys) if keys else {})


def commit(
    connection: Connection, epoch: uuid.UUID, before: Mapping[str, int], after: int, changes: Mapping[str, Changes]
) -> None:
    """Stores the changes of all views and moves them to position `after`, or does nothing at all.

    connection: in autocommit mode, so that BEGIN and COMMIT are said here. before: each view's position as it was read.
    Raises Deposed when a view is not there any more.
    """
    with raw(connection).transaction():
        for view, changed in changes.items():
            _save(connection, view, changed)
        insert_rows(
            connection,
            change,
            [(position, view, key) for view, changed in changes.items() for position, key in changed.log],
        )
        moved = connection.execute(
            _MOVE,
            {"views": list(before), "before": list(before.values()), "after": [after] * len(before), "epoch": epoch},
        )
        if moved.rowcount != len(before):
            raise Deposed(f"{', '.join(before)}: moved by another projector")


def load_rows(connection: Connection, projection_: Projection, keys: set[uuid.UUID]) -> dict[uuid.UUID, ViewRow]:
    """Those of the rows that exist."""
    table = VIEWS[projection_.view]
    query = select(table).where(table.c.key == bindparam("keys", type_=ARRAY(Uuid)).any_())
    return {
        row[0]: ViewRow(projection_.message.FromString(row[-1]), row[1], tuple(row[2:-1]))
        for row in connection.execute(query, {"keys": list(keys)})
    }


def raw(connection: Connection) -> "psycopg.Connection[Any]":
    """psycopg's own connection: for transactions in autocommit mode."""
    driver = connection.connection.dbapi_connection
    assert isinstance(driver, psycopg.Connection)
    return driver


def _save(connection: Connection, view: str, changed: Changes) -> None:
    table = VIEWS[view]
    present = [(key, row.position, *row.columns, row.value) for key, row in changed.rows.items() if row is not None]
    upsert_rows(connection, table, present)
    gone = [key for key, row in changed.rows.items() if row is None]
    if gone:
        connection.execute(
            table.delete().where(table.c.key == bindparam("keys", type_=ARRAY(Uuid)).any_()), {"keys": gone}
        )
