"""A database as queries see it: statements, what their failures mean to a caller, and what is in the read database.

SQLAlchemy keeps the connections; statements go to the driver itself, prepared, with their values in binary. What
SQLAlchemy does around a statement takes longer than most of these take PostgreSQL.

A statement about a view returns rows and the view's position together, so the position is true of exactly those rows,
also on a replica, and also when there are no rows.
"""

import asyncio
import threading
import uuid
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from functools import cache, lru_cache
from typing import Any, Generic, NamedTuple, TypeVar

import psycopg
from prometheus_client import Histogram
from sqlalchemy import Engine, PoolProxiedConnection, TextClause, text
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from tandem.feed.token import Token
from tandem.read_store.tables import ALL_NEWEST, READ, SCHEMA, change, newest, parked_of_keys
from tandem.runtime.arrays import array, bigint, text_of
from tandem.runtime.database import ServerSilent, create_database_engine, give_up
from tandem.runtime.errors import Unavailable
from tandem.runtime.migrations import has_revision
from tandem.runtime.settings import DatabaseSettings
from tandem.runtime.sqlstate import QueryAction, failure_of
from tandem.runtime.telemetry import log

BATCH_SIZE = Histogram(
    "tandem_read_batch_size",
    "Keys, pages, searches or sums that were read together",
    ["kind"],
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
)


K = TypeVar("K")
V = TypeVar("V")


class State(NamedTuple):
    """A row as it is. changed: the position of the event that made it so."""

    value: bytes
    changed: int


class Rows(NamedTuple, Generic[K, V]):
    """rows: by key, those that exist. parked: by key, since which position a row lacks events, or is not there for the
    lack of them. as_of: the view's position.
    """

    rows: dict[K, V]
    parked: dict[K, int]
    as_of: Token


class ChangedKeys(NamedTuple):
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
"""For connections whose statements find their rows in one way, whatever is asked for: they are planned once.

By itself PostgreSQL plans anew for each list of keys, since a plan for few keys may be cheaper than the one for any.
"""

AT = "p.feed_epoch, p.position, p.mark, p.generation"
"""What a statement about a view says of where the view is; `p` is its row of `projection`."""

# After all of them.
_NO_POSITION = 2**63 - 1

# The log is purged from its beginning: where it reaches back to a position, it holds all that came after.
_CHANGES = text(
    f"""
    SELECT {AT}, c.key, EXISTS (
        SELECT 1 FROM {change.fullname} AS e WHERE e.view = p.view AND e.position <= :after
    ) AS reaches_back
    FROM {newest(":view")} AS p LEFT JOIN LATERAL (
        SELECT key FROM {change.fullname} WHERE view = p.view AND position > :after ORDER BY position LIMIT :most
    ) AS c ON true
    """  # noqa: S608
)

_FILLED = text(f"SELECT count(*) AS filled FROM {ALL_NEWEST} AS p WHERE p.filled AND p.view = ANY(:views)")  # noqa: S608

_PRIMARY_POSITION = text(f"SELECT {AT}, pg_is_in_recovery() AS is_replica FROM {newest(':view')} AS p")  # noqa: S608

_POSITIONS = text(f"SELECT p.view, {AT} FROM {ALL_NEWEST} AS p")  # noqa: S608


class Store:
    """Runs statements, for any thread. `start` and `stop` make it a Component. The database refuses to write."""

    def __init__(
        self,
        settings: DatabaseSettings,
        *,
        connections: int,
        session: Sequence[str] = (),
        what: str = "read database",
        name: str = "tandem-query",
    ) -> None:
        """session: statements for every connection before its first use.

        what: the database's name in errors and logs; name: in pg_stat_activity.
        """
        self._what = what
        # One more than statements use: what asks for the schema's revision takes it from the pool itself.
        self._engine: Engine = create_database_engine(
            settings, name=name, pool_size=connections + 1, read_only=True, autocommit=True, session=session
        )
        # Who finds all in use waits for one of these, and not for the pool, which gets none back.
        self._unused = threading.Semaphore(connections)
        self._patience = settings.connect_timeout
        self._away = False
        self._are_filled = False
        # Of the pool's, those that were used once and are free: to hand one back and take it anew costs 15 µs, a tenth
        # of what a page of a list costs this process.
        self._free: deque[PoolProxiedConnection] = deque()
        self._is_closed = False

    async def start(self) -> None:
        """Nothing connects before the first use."""

    async def stop(self) -> None:
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """A statement that is under way, in a thread that nobody waits for, closes its connection when it is over."""
        self._is_closed = True
        self._give_up_connections()
        self._engine.dispose()

    def has_revision(self, revision: str) -> bool:
        """Whether the database answers and its schema is at this revision of the domain's or a later one."""
        answers = has_revision(self._engine, READ, revision)
        if answers:
            # The next query may come much later.
            self._log_change(away=False)
        return answers

    def are_filled(self, views: Collection[str]) -> bool:
        """Whether each of the views has been at the feed's end once. That is so for ever."""
        if not self._are_filled:
            try:
                [row] = self.execute(_FILLED, {"views": array("TEXT", views)})
            except Unavailable:
                return False
            self._are_filled = row.filled == len(set(views))
        return self._are_filled

    def rows(self, view: str, keys: Sequence[str]) -> Rows[str, bytes]:
        """The rows of `view` that exist among `keys`. Raises Unavailable. Keys are ids in 32 hexadecimal digits."""
        found = self._by_key(view, array("UUID", keys))
        rows = {row.key.hex: bytes(row.value) for row in found if row.key is not None}
        return Rows(rows, {key.hex: since for key, since in _parked(found[0])}, position_of(found[0]))

    def states(self, view: str, keys: Sequence[uuid.UUID]) -> Rows[uuid.UUID, State]:
        """As `rows`, with the position of each row's last change."""
        found = self._by_key(view, array("UUID", keys))
        states = {row.key: State(bytes(row.value), row.changed) for row in found if row.key is not None}
        return Rows(states, dict(_parked(found[0])), position_of(found[0]))

    def _by_key(self, view: str, keys: object) -> Sequence[Any]:
        """Once more, with what is parked, where rows of the view are: to look adds 6 µs to the statement."""
        found = self.execute_on(view, _rows_by_key(view, with_parked=False), {"keys": keys})
        return self.execute_on(view, _rows_by_key(view, with_parked=True), {"keys": keys}) if found[0].parked else found

    def changed_keys(self, view: str, after: int | None, most: int) -> ChangedKeys:
        """The keys that changed after a position, from at most `most` entries of the log; None: the position alone.

        Raises Unavailable.
        """
        position = _NO_POSITION if after is None else after
        arguments: dict[str, object] = {"view": text_of(view), "after": bigint(position), "most": bigint(most)}
        found = self.execute_on(view, _CHANGES, arguments)
        as_of = position_of(found[0])
        keys = [row.key for row in found if row.key is not None]
        reaches_back = found[0].reaches_back or as_of.position == position
        return ChangedKeys(set(keys), as_of, complete=reaches_back and len(keys) < most)

    def positions(self) -> dict[str, Token]:
        """Every view's position. Raises Unavailable."""
        return {row.view: position_of(row) for row in self.execute(_POSITIONS, {})}

    def primary_position(self, view: str) -> Token | None:
        """The view's position where it is written; None where this is a replica. Raises Unavailable."""
        [row] = self.execute_on(view, _PRIMARY_POSITION, {"view": view})
        return None if row.is_replica else position_of(row)

    def execute_on(self, view: str, statement: TextClause, arguments: dict[str, object]) -> Sequence[Any]:
        """The rows of a statement that begins with the position of `view`: at least one. Raises Unavailable."""
        found = self.execute(statement, arguments)
        if not found:
            raise Unavailable(f"no projector has begun the view {view} yet", reason="STORE_UNAVAILABLE")
        return found

    def execute(self, statement: TextClause, arguments: dict[str, object]) -> Sequence[Any]:
        """Raises Unavailable."""
        try:
            rows = self._execute_twice(statement, arguments)
        except (DBAPIError, psycopg.Error, PoolTimeout) as error:
            action = failure_of(error).query
            if action is QueryAction.BUG:
                raise
            if action is QueryAction.SLOW:
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
        except _ConnectionBroke:
            # A pooled connection from before a restart of the database: its first use shows it.
            return self._execute_once(statement, arguments)

    def _execute_once(self, statement: TextClause, arguments: dict[str, object]) -> Sequence[Any]:
        if not self._unused.acquire(timeout=self._patience):
            raise PoolTimeout(f"all connections have been in use for {self._patience} s")
        try:
            return self._execute_on_unused(statement, arguments)
        finally:
            self._unused.release()

    def _execute_on_unused(self, statement: TextClause, arguments: dict[str, object]) -> Sequence[Any]:
        prepare = statement.get_execution_options().get("prepare", True)
        sql, names = _written(statement)
        try:
            connection = self._free.pop()
        except IndexError:
            connection = self._engine.raw_connection()
        driver: Any = connection.driver_connection
        try:
            values = [arguments[name] for name in names]
            rows: Sequence[Any] = list(driver.send(sql, values, named=True, prepare=prepare))
        except psycopg.Error as error:
            if driver.closed or failure_of(error).drop:
                give_up(self._engine, connection, error)
                self._give_up_connections()
                if not isinstance(error, ServerSilent):
                    # Who was silent on one connection is not asked again on the next: the caller has waited enough.
                    raise _ConnectionBroke(str(error)) from error
            raise
        finally:
            if driver.closed:
                connection.close()
            else:
                self._free.append(connection)
                # Looked at afterwards: of two threads, one of which closes all, one or the other finds the connection.
                if self._is_closed:
                    self._give_up_connections()
        return rows

    def _give_up_connections(self) -> None:
        """Closes those that nobody uses: what ended one may have ended all."""
        while True:
            try:
                connection = self._free.pop()
            except IndexError:
                return
            connection.invalidate()
            connection.close()


@cache
def _rows_by_key(view: str, *, with_parked: bool) -> TextClause:
    position = newest(f"'{view}'")
    looked_up = f" CROSS JOIN LATERAL {parked_of_keys(view, ':keys')} AS k" if with_parked else ""
    parked = "k.keys, k.since" if with_parked else "NULL::uuid[] AS keys, NULL::bigint[] AS since"
    # No row where the view's key is not there, but the position all the same.
    return text(
        f"SELECT {AT}, p.parked, {parked}, v.key, v.value, v.position AS changed FROM {position} AS p"  # noqa: S608
        f"{looked_up}"
        f" LEFT JOIN {SCHEMA}.{view} AS v ON v.key = ANY(:keys)"
    )


def _parked(row: Any) -> Iterable[tuple[uuid.UUID, int]]:
    return zip(row.keys, row.since, strict=True) if row.keys else ()


def position_of(row: Any) -> Token:
    """Of a row of a statement about a view."""
    return Token(row.feed_epoch, row.position, row.mark, row.generation)


class _ConnectionBroke(psycopg.OperationalError):
    """The connection broke, at the latest when it was used."""


class _Written(NamedTuple):
    """A statement as PostgreSQL takes it: $1 stands for the value of the first of names, and so on."""

    sql: str
    names: Sequence[str]


# The driver would take a statement with names to pieces, and one of more than 4,096 characters each time anew.
_NUMBERED = PGDialect(paramstyle="numeric_dollar")  # type: ignore[no-untyped-call]


@lru_cache(maxsize=1024)
def _written(statement: TextClause) -> _Written:
    """Statements are made once, and kept."""
    compiled = statement.compile(dialect=_NUMBERED)
    return _Written(compiled.string, compiled.positiontup or ())
