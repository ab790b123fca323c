"""One batch of one or more views: rows, change log and positions in one transaction."""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from sqlalchemy import Connection

from projector.fold import Changes, Steps, Stored, fold_steps, steps_of
from projector.projections.catalogue import PROJECTIONS
from projector.recent import RecentRows
from projector.statements import NOT_MOVED, load, save
from tandem.feed.events import FeedEvent


class Deposed(Exception):
    """Another projector has moved the view: this one does not hold it any more."""


@dataclass(frozen=True)
class Prepared:
    """A batch that a view is to take in, with the rows that it changes: what is left to do needs no database.

    needed: the keys of rows that it changes and does not make. rows: those of them that exist.
    """

    view: str
    steps: Steps
    needed: set[bytes]
    rows: dict[bytes, Stored]

    def put(self, changes: Changes) -> None:
        """Replaces rows by what a batch before this one makes of them."""
        for key in self.needed & changes.rows.keys():
            if row := changes.rows[key]:
                self.rows[key] = row.stored
            else:
                self.rows.pop(key, None)

    def fold(self) -> Changes:
        """What the events do to the view, up to the first that it cannot take in."""
        return fold_steps(PROJECTIONS[self.view], self.steps, self.rows)


def prepare(
    connection: Connection,
    views: Iterable[str],
    events: Sequence[FeedEvent],
    recent: Mapping[str, RecentRows],
    before: Mapping[str, Changes],
) -> list[Prepared]:
    """recent: rows that need not be loaded. before: what the batch before changes, where it is not committed yet.

    All rows that are to be loaded are loaded in one round trip. Raises psycopg.Error.
    """
    prepared: list[Prepared] = []
    missing: dict[str, set[bytes]] = {}
    for view in views:
        projection = PROJECTIONS[view]
        steps = steps_of(projection, events)
        needed = steps.needed(projection)
        rows = recent[view].get(needed) if view in recent else {}
        unknown = needed - rows.keys()
        if view in before:
            unknown -= before[view].rows.keys()
        if unknown:
            missing[view] = unknown
        prepared.append(Prepared(view, steps, needed, rows))
    found = load(raw(connection), missing) if missing else {}
    for it in prepared:
        it.rows.update(found.get(it.view, {}))
        if it.view in before:
            it.put(before[it.view])
    return prepared


@dataclass(frozen=True)
class Move:
    """A view's way through a batch: from the position that was read to the one that its rows include then."""

    before: int
    after: int
    changes: Changes


def commit(connection: Connection, epoch: uuid.UUID, moves: Mapping[str, Move]) -> None:
    """Stores the changes of all views and moves their positions, or does nothing at all.

    connection: in autocommit mode, so that the one statement is the transaction. Raises psycopg.Error, and Deposed when
    a view is not where it was read any more, or belongs to another feed than `epoch`.
    """
    ways = {view: (it.before, it.after) for view, it in moves.items()}
    try:
        save(raw(connection), epoch, ways, {view: it.changes for view, it in moves.items()})
    except NOT_MOVED:
        raise Deposed(f"{', '.join(moves)}: moved by another projector") from None


def raw(connection: Connection) -> "psycopg.Connection[Any]":
    """psycopg's own connection: for transactions in autocommit mode, and what SQLAlchemy does not have."""
    driver = connection.connection.dbapi_connection
    assert isinstance(driver, psycopg.Connection)
    return driver
