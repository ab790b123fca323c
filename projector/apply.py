"""One batch of one or more views: rows, change log and positions in one transaction."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from sqlalchemy import Connection, bindparam, select, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.types import Uuid

from projector.fold import Changes, ViewRow, fold, touched
from projector.projections.catalogue import PROJECTIONS
from projector.projections.shape import Projection
from tandem.feed.events import FeedEvent
from tandem.read_store.tables import VIEWS, change, projection, written_columns
from tandem.runtime.bulk import insert_rows, upsert_rows


class Deposed(Exception):
    """Another projector has moved the view: this one does not hold it any more."""


_MOVE = text(f"""
UPDATE {projection.fullname} AS p SET position = v.after
FROM unnest(CAST(:views AS text[]), CAST(:before AS bigint[]), CAST(:after AS bigint[])) AS v (view, before, after)
WHERE p.view = v.view AND p.position = v.before AND p.feed_epoch = :epoch
""")  # noqa: S608 - only the table's name is put in


def plan(connection: Connection, view: str, events: Sequence[FeedEvent]) -> Changes:
    """What the events do to the view, up to the first that it cannot take in."""
    projection_ = PROJECTIONS[view]
    keys = touched(projection_, events)
    return fold(projection_, events, load_rows(connection, projection_, keys) if keys else {})


@dataclass(frozen=True)
class Move:
    """A view's way through a batch: from the position that was read to the one that its rows include then."""

    before: int
    after: int
    changes: Changes


def commit(connection: Connection, epoch: uuid.UUID, moves: Mapping[str, Move]) -> None:
    """Stores the changes of all views and moves their positions, or does nothing at all.

    connection: in autocommit mode, so that BEGIN and COMMIT are said here. Raises Deposed when a view is not where it
    was read any more, or belongs to another feed than `epoch`.
    """
    with raw(connection).transaction():
        # First of all: the rows of a view that somebody else has moved would fail in ways that say nothing of that.
        moved = connection.execute(
            _MOVE,
            {
                "views": list(moves),
                "before": [move.before for move in moves.values()],
                "after": [move.after for move in moves.values()],
                "epoch": epoch,
            },
        )
        if moved.rowcount != len(moves):
            raise Deposed(f"{', '.join(moves)}: moved by another projector")
        for view, move in moves.items():
            _save(connection, view, move.changes)
        insert_rows(
            connection,
            change,
            [(position, view, key) for view, move in moves.items() for position, key in move.changes.log],
        )


def load_rows(connection: Connection, projection_: Projection, keys: set[uuid.UUID]) -> dict[uuid.UUID, ViewRow]:
    """Those of the rows that exist."""
    table = VIEWS[projection_.view]
    query = select(*written_columns(table)).where(table.c.key == bindparam("keys", type_=ARRAY(Uuid)).any_())
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
