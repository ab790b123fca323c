"""The read database: rows by key and positions, and whatever statement a query has of its own.

Each statement returns rows and the view's position together, so the position is true of exactly those rows, also on a
replica, and also when there are no rows.
"""

import uuid
from collections.abc import Sequence
from typing import Any

import psycopg
from sqlalchemy import TextClause, event, text

from query_server.store import Store
from tandem.feed.token import Token
from tandem.read_store.tables import REVISION, SCHEMA, VIEWS, projection
from tandem.runtime.errors import Unavailable
from tandem.runtime.settings import DatabaseSettings

# No row where the view's key is not there, but the position all the same.
_BY_KEY: dict[str, TextClause] = {
    name: text(
        f"SELECT p.feed_epoch, p.position, v.key, v.value FROM {projection.fullname} AS p"  # noqa: S608
        f" LEFT JOIN {table.fullname} AS v ON v.key = ANY(:keys) WHERE p.view = '{name}'"
    )
    for name, table in VIEWS.items()
}

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
        found = self.execute(view, _BY_KEY[view], {"keys": list(keys)})
        as_of = Token(found[0].feed_epoch, found[0].position)
        return {row.key: bytes(row.value) for row in found if row.key is not None}, as_of

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
