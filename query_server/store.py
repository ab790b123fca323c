"""A database as queries see it: statements, and what their failures mean to a caller.

SQLAlchemy keeps the connections; statements go to the driver itself, prepared, with their values in binary. What
SQLAlchemy does around a statement takes longer than most of these take PostgreSQL.
"""

import asyncio
from collections.abc import Sequence
from contextlib import closing
from functools import lru_cache
from typing import Any

import psycopg.errors
from psycopg.rows import namedtuple_row
from sqlalchemy import Engine, TextClause
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
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
        self._engine: Engine = create_database_engine(
            settings, name=name, pool_size=connections, read_only=True, autocommit=True
        )
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
        except (DBAPIError, psycopg.Error, PoolTimeout) as error:
            cause = error.orig if isinstance(error, DBAPIError) else error
            if isinstance(cause, psycopg.Error) and not may_pass(error) and not _is_not_set_up(cause):
                raise
            if isinstance(cause, psycopg.errors.QueryCanceled):
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
        except _ConnectionLost:
            # A pooled connection from before a restart of the database: its first use is how one learns of it.
            return self._execute_once(statement, arguments)

    def _execute_once(self, statement: TextClause, arguments: dict[str, object]) -> Sequence[Any]:
        prepare = statement.get_execution_options().get("prepare", True)
        with closing(self._engine.raw_connection()) as connection:
            driver: Any = connection.driver_connection
            try:
                with driver.cursor(binary=True, row_factory=namedtuple_row) as cursor:
                    rows: Sequence[Any] = cursor.execute(_sql(statement), arguments, prepare=prepare).fetchall()
            except psycopg.Error as error:
                if driver.closed:
                    connection.invalidate(error)
                    raise _ConnectionLost(str(error)) from error
                raise
        return rows


class _ConnectionLost(psycopg.OperationalError):
    """The connection broke, at the latest when it was used."""


@lru_cache(maxsize=1024)
def _sql(statement: TextClause) -> str:
    """As the driver takes it. Statements are made once, and kept.

    Without indentation: a text of more than 4,096 characters is taken to pieces anew each time.
    """
    written = str(statement.compile(dialect=PGDialect_psycopg()))  # type: ignore[no-untyped-call]
    return "\n".join(line.strip() for line in written.splitlines())


def _is_not_set_up(error: psycopg.Error) -> bool:
    """Services start in any order: this one may be there before the database's first migration."""
    return isinstance(error, psycopg.errors.UndefinedTable | psycopg.errors.InvalidSchemaName)
