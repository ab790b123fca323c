"""A database as queries see it: statements, and what their failures mean to a caller."""

import asyncio
from collections.abc import Sequence
from typing import Any

import psycopg.errors
from sqlalchemy import Engine, TextClause
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from tandem.runtime.database import create_database_engine, has_revision, may_pass
from tandem.runtime.errors import Unavailable
from tandem.runtime.settings import DatabaseSettings
from tandem.runtime.telemetry import log


class Store:
    """Runs statements, for threads. `start` and `stop` make it a Component. The database refuses to write."""

    def __init__(self, settings: DatabaseSettings, what: str, *, name: str, connections: int) -> None:
        """what: the database's name in errors and logs; name: in pg_stat_activity."""
        self._what = what
        engine = create_database_engine(settings, name=name, pool_size=connections, read_only=True)
        # One statement is one snapshot: a transaction around it would cost two round trips.
        self._engine: Engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._away = False

    async def start(self) -> None:
        """Nothing connects before the first use."""

    async def stop(self) -> None:
        await asyncio.to_thread(self._engine.dispose)

    def has_revision(self, schema: str, revision: str) -> bool:
        """Whether the database answers and the schema is at this revision or a later one."""
        return has_revision(self._engine, schema, revision)

    def _execute(self, statement: TextClause, arguments: dict[str, object]) -> Sequence[Any]:
        """Raises Unavailable."""
        try:
            rows = self._execute_twice(statement, arguments)
        except (DBAPIError, PoolTimeout) as error:
            if isinstance(error, DBAPIError) and not may_pass(error) and not _is_not_set_up(error):
                raise
            if isinstance(error, DBAPIError) and isinstance(error.orig, psycopg.errors.QueryCanceled):
                raise Unavailable(f"the {self._what} took too long", reason="STORE_UNAVAILABLE") from error
            self._log_change(away=True, error=str(error)[:500])
            raise Unavailable(f"the {self._what} is away", reason="STORE_UNAVAILABLE") from error
        self._log_change(away=False)
        return rows

    def _log_change(self, *, away: bool, **details: str) -> None:
        """Once, not for every batch that fails meanwhile."""
        if away != self._away:
            self._away = away
            log.warning(f"the {self._what} is away" if away else f"the {self._what} is back", **details)

    def _execute_twice(self, statement: TextClause, arguments: dict[str, object]) -> Sequence[Any]:
        try:
            return self._execute_once(statement, arguments)
        except DBAPIError as error:
            if not error.connection_invalidated:
                raise
            # A pooled connection from before a restart of the database: its first use is how one learns of it.
            return self._execute_once(statement, arguments)

    def _execute_once(self, statement: TextClause, arguments: dict[str, object]) -> Sequence[Any]:
        with self._engine.connect() as connection:
            return connection.execute(statement, arguments).all()


def _is_not_set_up(error: DBAPIError) -> bool:
    """Services start in any order: this one may be there before the database's first migration."""
    return isinstance(error.orig, psycopg.errors.UndefinedTable | psycopg.errors.InvalidSchemaName)
