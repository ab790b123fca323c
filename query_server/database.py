"""The read database: rows by key and positions, and whatever statement a query has of its own.

Each statement returns rows and the view's position together, so the position is true of exactly those rows, also on a
replica, and also when there are no rows.
"""

import uuid
from collections.abc import Sequence
from typing import Any, NamedTuple

import psycopg
from sqlalchemy import TextClause, event, text

from query_server.store import Store
from shop.views import REVISION, VIEWS
from tandem.feed.token import Token
from tandem.read_store.tables import SCHEMA, change, projection
from tandem.runtime.arrays import array
from tandem.runtime.errors import Unavailable
from tandem.runtime.settings import DatabaseSettings


class State(NamedTuple):
    """A row as it is. changed: the position of the event that made it so."""

    value: bytes
    changed: int


class States(NamedTuple):
    """The rows that exist, and the view's position."""

    by_key: dict[uuid.UUID, State]
    as_of: Token


class Changes(NamedTuple):
    """The keys of a view that changed since a position, and the view's position.

    complete: False where there may have been others: the log is longer than was asked for, or was purged.
    """

    keys: set[uuid.UUID]
    as_of: Token
    complete: bool


ONE_PLAN = (
    "SET plan_cache_mode = force_generic_plan",
    # Else what was planned while a view was empty would read all of it.
    "SET enable_seqscan = off",
)
"""For connections whose statements find their rows in one way, whatever is asked for: to plan one takes longer than it.

By itself PostgreSQL plans anew for each list of keys, since it can count them and hopes that they are few.
"""

# After all of them.
_NO_POSITION = 2**63 - 1

# No row where the view's key is not there, but the position all the same.
_BY_KEY: dict[str, TextClause] = {
    name: text(
        f"SELECT p.feed_epoch, p.position, v.key, v.value, v.position AS changed FROM {projection.fullname} AS p"  # noqa: S608
        f" LEFT JOIN {table.fullname} AS v ON v.key = ANY(:keys) WHERE p.view = '{name}'"
    )
    for name, table in VIEWS.items()
}

# The log is purged from its beginning: where it reaches back to a position, it holds all that came after.
_CHANGES = text(
    f"""
    SELECT p.feed_epoch, p.position, c.key, EXISTS (
        SELECT 1 FROM {change.fullname} AS e WHERE e.view = p.view AND e.position <= :after
    ) AS reaches_back
    FROM {projection.fullname} AS p LEFT JOIN LATERAL (
        SELECT key FROM {change.fullname} WHERE view = p.view AND position > :after ORDER BY position LIMIT :most
    ) AS c ON true
    WHERE p.view = :view
    """  # noqa: S608
)

_POSITIONS = text(f"SELECT view, feed_epoch, position FROM {projection.fullname}")  # noqa: S608


class ReadDatabase(Store):
    """Statements on the read database, for threads."""

    def __init__(self, settings: DatabaseSettings, *, connections: int, session: Sequence[str] = ()) -> None:
        """session: statements for every connection before its first use."""
        super().__init__(settings, "read database", name="tandem-query", connections=connections)

        @event.listens_for(self._engine, "connect")
        def set_up(connection: "psycopg.Connection[Any]", _record: object) -> None:
            for statement in session:
                connection.execute(statement)
            connection.commit()

    def rows(self, view: str, keys: Sequence[uuid.UUID]) -> tuple[dict[uuid.UUID, bytes], Token]:
        """The rows of `view` that exist among `keys`, and the view's position. Raises Unavailable."""
        found = self.execute(view, _BY_KEY[view], {"keys": array("UUID", keys)})
        as_of = Token(found[0].feed_epoch, found[0].position)
        return {row.key: bytes(row.value) for row in found if row.key is not None}, as_of

    def states(self, view: str, keys: Sequence[uuid.UUID]) -> States:
        """As `rows`, with the position of each row's last change."""
        found = self.execute(view, _BY_KEY[view], {"keys": array("UUID", keys)})
        as_of = Token(found[0].feed_epoch, found[0].position)
        return States({it.key: State(bytes(it.value), it.changed) for it in found if it.key is not None}, as_of)

    def changes(self, view: str, after: int | None, most: int) -> Changes:
        """The keys that changed after a position, from at most `most` entries of the log; None: the position alone.

        Raises Unavailable.
        """
        arguments = {"view": view, "after": _NO_POSITION if after is None else after, "most": most}
        found = self.execute(view, _CHANGES, arguments)
        as_of = Token(found[0].feed_epoch, found[0].position)
        keys = [it.key for it in found if it.key is not None]
        reaches_back = found[0].reaches_back or as_of.position == arguments["after"]
        return Changes(set(keys), as_of, complete=reaches_back and len(keys) < most)

    def execute(self, view: str, statement: TextClause, arguments: dict[str, object]) -> Sequence[Any]:
        """The rows of a statement that begins with the position of `view`: at least one. Raises Unavailable."""
        found = self._execute(statement, arguments)
        if not found:
            raise Unavailable(f"no projector has begun the view {view} yet", reason="STORE_UNAVAILABLE")
        return found

    def positions(self) -> dict[str, Token]:
        """Every view's position. Raises Unavailable."""
        return {row.view: Token(row.feed_epoch, row.position) for row in self._execute(_POSITIONS, {})}

    def is_ready(self) -> bool:
        """Whether the database answers and has the schema that this program reads."""
        return self.has_revision(SCHEMA, REVISION)
