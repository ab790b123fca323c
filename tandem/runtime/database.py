"""PostgreSQL: connections that wait no longer than they must, and engines.

No wait for a server lasts longer than it may, whatever the server does. Three bound it:

    the server, while it works   statement_timeout, lock_timeout, and the time that a transaction may be idle
    this program                 `Driver`: an answer that does not come `GRACE_SECONDS` after the server's own limit
    the kernels of both ends     tcp_user_timeout, keepalives: what was sent and nobody has received
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self, TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg.pq import TransactionStatus
from psycopg.rows import namedtuple_row, tuple_row
from sqlalchemy import Connection, Engine, PoolProxiedConnection, create_engine, event, text
from sqlalchemy.engine import URL, ExceptionContext
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool

from tandem.runtime.arrays import send_arrays
from tandem.runtime.round_trips import ROUND_TRIPS, Waits
from tandem.runtime.sampled import SampledGauge
from tandem.runtime.settings import DatabaseSettings, SettingsError, parse_database_url
from tandem.runtime.sqlstate import NOT_PREPARED, failure_of
from tandem.runtime.statements import Parameters, Pipeline, Rows, Statements, parsed

_WITH_TRANSACTION_TIMEOUT = 17_00_00
# How often a wait looks up for Ctrl-C, as psycopg's own waits do.
_LOOK_SECONDS = 0.1

# Set also where it is "on" already: a session that has its own value does not follow a change of the server's.
_COMMIT_TO_DISK = """
SELECT set_config('synchronous_commit', CASE current_setting('synchronous_commit')
  WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, false)"""

# What a statement selects whose COMMIT is not to wait until it is on the disk (ADR 79): of its transaction alone, which
# must be one that is done again after a crash that loses it. Who has set remote_apply wants replicas to have it first.
WITHOUT_THE_DISK = (
    "set_config('synchronous_commit',"
    " CASE current_setting('synchronous_commit') WHEN 'remote_apply' THEN 'remote_apply' ELSE 'off' END, true)"
)

GRACE_SECONDS = 1.0
"""How much longer than the server's own limit we wait for its answer: for the way there and back."""

POOL_SIZE: SampledGauge[Engine] = SampledGauge(
    "tandem_pool_size", "Connections that a pool may have, by their application_name", ["pool"], lambda it, _: _size(it)
)
POOL_IN_USE: SampledGauge[Engine] = SampledGauge(
    "tandem_pool_in_use", "Connections of a pool that are in use", ["pool"], lambda it, _: _in_use(it)
)

T = TypeVar("T")

Answer = Callable[[], T]
"""Reads the answer to a statement that was sent already: after the pipeline, where it was sent in one."""


def database_url(settings: DatabaseSettings) -> URL:
    """The URL for SQLAlchemy, with the password from its file. Raises SettingsError when that cannot be read."""
    url = parse_database_url(settings.url.get_secret_value())
    if settings.password_file is not None:
        try:
            url = url.set(password=settings.password_file.read_text(encoding="utf-8").strip())
        except OSError as error:
            raise SettingsError(f"database password_file: {error}") from error
    return url.set(drivername="postgresql+psycopg")


class ServerSilent(psycopg.OperationalError):
    """The server did not answer for longer than it may work; the connection is closed."""


class Driver(psycopg.Connection[Any]):
    """psycopg's connection, which gives a server up that does not answer.

    longest_wait: in seconds, for each answer; None waits for ever.
    """

    longest_wait: float | None = None

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.waits = Waits()
        self._statements = Statements(self)

    def send(
        self, query: str, parameters: Parameters = (), *, named: bool = False, prepare: bool = True
    ) -> "Rows | psycopg.Cursor[Any]":
        """A statement's rows, in binary form: outside of a pipeline at once, in one after it.

        In a pipeline it is sent with the pipeline's end, or by `flush`. Where its parameters are arrays and what else
        `arrays` makes ready, it is much faster than a cursor. query: as psycopg has it, or with PostgreSQL's own
        numbers. named: rows are named tuples. prepare: False for one that is hardly ever sent again.
        """
        try:
            return self._send(query, parameters, named=named, prepare=prepare)
        except psycopg.Error as error:
            if failure_of(error) is not NOT_PREPARED or not self._is_between_statements():
                raise
        # Nothing of it was done, and it is prepared anew.
        return self._send(query, parameters, named=named, prepare=prepare)

    def _send(self, query: str, parameters: Parameters, *, named: bool, prepare: bool) -> "Rows | psycopg.Cursor[Any]":
        rows = self._statements.send(query, parameters, named=named) if prepare else None
        if rows is not None:
            return rows
        it = parsed(query)
        cursor = psycopg.RawCursor(self, row_factory=namedtuple_row if named else tuple_row)
        return cursor.execute(it.text, it.values(parameters), prepare=prepare, binary=True)

    def flush(self) -> None:
        """Has the server begin with what was sent in a pipeline."""
        self.pgconn.flush()

    def pipeline(self) -> Any:
        """As psycopg's, for `with` at once."""
        with self.lock:
            if self._pipeline is None and not self.closed:
                # psycopg takes the one that is there; its end takes it away.
                self._pipeline = Pipeline(self)
        return super().pipeline()

    def _deallocate(self, name: bytes | None) -> PQGen[None]:
        """Of psycopg's own statements, or of all that the connection has: after a rollback it wants none of before."""
        if name is None:
            self._statements.forget()
        yield from super()._deallocate(name)

    def _is_answered(self, step: Any) -> bool:
        """Whether a step of psycopg's waits for an answer. It goes by their names."""
        name = step.__name__
        if name == "_execute_gen":
            # A pipeline collects statements.
            return not self.pgconn.pipeline_status
        if name in {"_commit_gen", "_rollback_gen"}:
            # What was said by a statement already is not said again.
            return self.pgconn.transaction_status != TransactionStatus.IDLE
        return bool(name != "_enter_gen")

    @classmethod
    def connect(cls, conninfo: str = "", **arguments: Any) -> Self:
        """As psycopg's. What it made for an attempt that failed, a socket too, ends with it.

        psycopg's error holds its own traceback, and that the socket, until the garbage collector comes by.
        """
        try:
            return super().connect(conninfo, **arguments)
        except psycopg.Error as error:
            raise error.with_traceback(None) from None

    def wait(self, gen: PQGen[T], interval: float = _LOOK_SECONDS, timeout: float | None = None) -> T:
        """Raises ServerSilent. timeout: of who waits for what need not come, a notification."""
        self.waits.number += self._is_answered(gen)
        try:
            return self._wait(gen, interval, timeout)
        except psycopg.Error as error:
            if failure_of(error) is NOT_PREPARED:
                self._prepare_anew()
            raise

    def _wait(self, gen: PQGen[T], interval: float, timeout: float | None = None) -> T:
        if timeout is not None or self.longest_wait is None:
            return super().wait(gen, interval, timeout)
        try:
            return super().wait(gen, interval, self.longest_wait)
        except psycopg.errors._WaitTimeout:
            self.close()
            raise ServerSilent(f"the server has not answered for {self.longest_wait:g} s") from None

    def _prepare_anew(self) -> None:
        """Whatever is prepared, ours and psycopg's, when it is sent again. In a transaction a rollback sees to it."""
        self._statements.forget()
        if self._is_between_statements():
            self._prepared.clear()
            self._prepared._to_flush.clear()
            self._wait(self._deallocate(None), _LOOK_SECONDS)

    def _is_between_statements(self) -> bool:
        """In no transaction, and in no pipeline, where an error may be that of a statement before."""
        return self._pipeline is None and self.pgconn.transaction_status == TransactionStatus.IDLE


class Pool(QueuePool):
    """SQLAlchemy's, which keeps no connection once it was disposed of: each is closed as soon as its use is over.

    Some are in use then, and some are begun after it, by a check in a thread that nobody waits for. SQLAlchemy's own
    takes both in, the later ones into a pool anew, and nobody closes them: the server has the session until the
    collector comes.
    """

    _disposed = False

    def dispose(self) -> None:
        self._disposed = True
        super().dispose()

    def recreate(self) -> Self:
        # For the engine, when it has disposed of this one.
        return self

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        super()._do_return_conn(record)
        # Looked at afterwards: of two threads, one of which disposes of the pool, one or the other finds the record.
        if self._disposed:
            super().dispose()


def connection_arguments(
    settings: DatabaseSettings, name: str, *, read_only: bool = False, by_key: bool = False
) -> dict[str, object]:
    """Arguments for every connection: the session's zone and limits, and what makes both kernels notice a dead peer.

    A client that stops in the middle of a transaction (paused, cut off) must not keep its locks: the server ends such a
    transaction after the time that a statement may take. Both ends probe a silent connection after 5 s, and give up
    what the other has not received for as long as we wait for an answer.
    """
    received_within = int(longest_wait(settings) * 1000)
    options = _session_settings(settings, read_only=read_only, by_key=by_key)
    return {
        "options": " ".join(f"-c {key}={value}" for key, value in options.items()),
        "connect_timeout": settings.connect_timeout,
        "application_name": name,
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
        "tcp_user_timeout": received_within,
    }


def set_session(
    driver: psycopg.Connection[Any], settings: DatabaseSettings, *, read_only: bool = False, by_key: bool = False
) -> None:
    """Sets once more what `connection_arguments` asks for at a connection's start. One round trip.

    PgBouncer passes none of it on, where it has been told to take such a connection at all: nothing would be limited,
    and queries could write.
    """
    options = _session_settings(settings, read_only=read_only, by_key=by_key)
    pairs = [it for pair in options.items() for it in pair]
    driver.execute(f"SELECT {', '.join(['set_config(%s, %s, false)'] * len(options))}".encode(), pairs)


def _session_settings(settings: DatabaseSettings, *, read_only: bool, by_key: bool) -> dict[str, str]:
    options = {
        # In another zone the first day of year 1 would be in no year that Python has.
        "timezone": "UTC",
        "statement_timeout": f"{int(settings.statement_timeout * 1000)}ms",
        "lock_timeout": f"{int(settings.lock_timeout * 1000)}ms",
        "idle_in_transaction_session_timeout": f"{int(settings.statement_timeout * 1000)}ms",
        "tcp_keepalives_idle": "5",
        "tcp_keepalives_interval": "2",
        "tcp_keepalives_count": "3",
        "tcp_user_timeout": str(int(longest_wait(settings) * 1000)),
    }
    if read_only:
        options["default_transaction_read_only"] = "on"
    if by_key:
        # The rows that are asked for come as arrays, whose lengths PostgreSQL would plan for anew each time.
        options |= {"plan_cache_mode": "force_generic_plan", "enable_hashjoin": "off", "enable_mergejoin": "off"}
        options["enable_seqscan"] = "off"
    return options


def longest_wait(settings: DatabaseSettings) -> float:
    """How many seconds an answer may take: what a statement may, and the way there and back."""
    return settings.statement_timeout + GRACE_SECONDS


def create_database_engine(
    settings: DatabaseSettings,
    *,
    name: str,
    pool_size: int,
    read_only: bool = False,
    by_key: bool = False,
    autocommit: bool = False,
    durable: bool = False,
    longest_transaction: float | None = None,
    patient: bool = False,
    session: Sequence[str] = (),
    idles: bool = False,
) -> Engine:
    """An engine of at most `pool_size` connections, which waits `connect_timeout` seconds for a free one.

    Nothing connects before the first use. `name` is what pg_stat_activity shows. Its errors hold no values: neither
    a statement's parameters nor the rows that PostgreSQL quotes. read_only: the server refuses what would write.

    by_key: its statements find their rows by index, one by one, and are planned once. A session keeps the plans that it
    made, those of foreign keys too, and on a new database it makes them while the tables are empty: PostgreSQL would
    read every row that comes into them, for each row that refers to one, until it has looked at the tables again by
    itself.

    autocommit: each statement is a transaction, and a snapshot, of its own. SQLAlchemy's option for this is set and
    taken back around each use of a connection, which costs as much as a small statement.

    durable: what is committed is on disk, here and at synchronous standbys, whatever synchronous_commit the server, the
    database or the role has; remote_apply, which promises more, stays.

    longest_transaction: in seconds, after which the server ends a session in the middle of one, from PostgreSQL 17 on.
    For those that use `pipelined`: a pipeline ends with a Flush, on which PostgreSQL forgets its time-out for idle
    sessions, and a client that is paused then would keep its locks.

    patient: waits for an answer however long it takes, for statements that set limits of their own. All others raise
    ServerSilent when the server has not answered a second after its own limit.

    session: statements for every connection before its first use.

    idles: for connections that are used now and then, and not through `read_pooled`: before each use the server is
    asked whether it still has the session, and a new one is begun where it has not.
    """
    engine = create_engine(
        database_url(settings),
        connect_args=connection_arguments(settings, name, read_only=read_only, by_key=by_key),
        poolclass=Pool,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=settings.connect_timeout,
        pool_pre_ping=idles,
        hide_parameters=True,
    )

    @event.listens_for(engine, "do_connect")
    def connect(_dialect: object, _record: object, positional: list[Any], named: dict[str, Any]) -> Driver:
        driver = Driver.connect(*positional, **named)
        driver.longest_wait = None if patient else longest_wait(settings)
        ROUND_TRIPS.watch(driver, driver.waits, name)
        return driver

    @event.listens_for(engine, "connect")
    def set_up(driver: Driver, _record: object) -> None:
        # What raises ends the connection: SQLAlchemy closes it.
        send_arrays(driver)
        set_session(driver, settings, read_only=read_only, by_key=by_key)
        if longest_transaction is not None and driver.info.server_version >= _WITH_TRANSACTION_TIMEOUT:
            driver.execute(f"SET transaction_timeout = {int(longest_transaction * 1000)}")
        if durable:
            driver.execute(_COMMIT_TO_DISK)
        for statement in session:
            driver.execute(statement)
        driver.commit()
        driver.autocommit = autocommit

    event.listen(engine, "handle_error", _handle_error)
    POOL_SIZE.watch(engine, name)
    POOL_IN_USE.watch(engine, name)
    return engine


def _size(engine: Engine) -> int:
    assert isinstance(engine.pool, QueuePool)
    return engine.pool.size()


def _in_use(engine: Engine) -> int:
    assert isinstance(engine.pool, QueuePool)
    return engine.pool.checkedout()


@contextmanager
def transaction(settings: DatabaseSettings, name: str) -> Iterator[Connection]:
    """One durable transaction, on a connection that is made for it. name: as for `create_database_engine`.

    For what a person waits for: its statements may set limits of their own, and take as long as those allow.
    """
    engine = create_database_engine(settings, name=name, pool_size=1, durable=True, patient=True)
    try:
        with engine.begin() as connection:
            yield connection
    finally:
        engine.dispose()


def read_pooled(engine: Engine, query: Callable[[Connection], T]) -> T:
    """What a query reads, on a connection of the pool; on a new one where that turns out to have ended: a server, or
    somebody between, ends sessions that are idle, and nobody sees it before their next use. Raises SQLAlchemyError.
    """
    try:
        with engine.connect() as connection:
            return query(connection)
    except DBAPIError as error:
        if not error.connection_invalidated or isinstance(error.orig, ServerSilent):
            # Who was silent on one connection is not asked again on the next: the caller has waited enough.
            raise
    # SQLAlchemy has given up all connections from before as well.
    with engine.connect() as connection:
        return query(connection)


@contextmanager
def driver_of(connection: Connection) -> Iterator[Driver]:
    """The driver's own connection, in the transaction of `connection`; its errors are SQLAlchemy's all the same.

    For statements that run all the time: SQLAlchemy's work on one costs as much as a small one takes.
    """
    driver = driver_under(connection)
    if driver.pgconn.pipeline_status:
        # `pipelined` around us does all the rest.
        yield driver
        return
    if not connection.in_transaction():
        connection.begin()
    try:
        yield driver
    except psycopg.Error as error:
        _omit_values(error)
        # A fatal error ends the session, also when the driver has not read the end of it yet.
        broken = bool(driver.closed) or error.diag.severity_nonlocalized == "FATAL" or failure_of(error).drop
        if broken:
            give_up(connection.engine, connection.connection, error)
            connection.invalidate(error)
        raise DBAPIError.instance(
            None, None, error, psycopg.Error, hide_parameters=True, connection_invalidated=broken
        ) from error


def give_up(engine: Engine, connection: PoolProxiedConnection, error: BaseException) -> None:
    """Closes a connection that broke, and those of its pool that were made before as soon as each is to be used: what
    ended one may have ended all. So SQLAlchemy does where a statement of its own fails.
    """
    engine.pool._invalidate(connection, error)


def driver_under(connection: Connection) -> Driver:
    """The driver's own connection, with its own errors: for an engine in autocommit mode."""
    driver = connection.connection.dbapi_connection
    assert isinstance(driver, Driver), "an engine of create_database_engine"
    return driver


@contextmanager
def pipelined(connection: Connection) -> Iterator[Driver]:
    """As `driver_of`, and statements do not wait for each other's answers: together they are one round trip.

    PostgreSQL works on what was executed or flushed while Python prepares the next. Rows are fetched afterwards, when
    all are there; to fetch them inside waits for them. An error is raised at the next statement or at the end.
    """
    with driver_of(connection) as driver, driver.pipeline():
        yield driver


def _handle_error(context: ExceptionContext) -> None:
    cause = context.original_exception
    # SQLAlchemy drops the connection then, and those of the pool that were made before: they may be to the same server.
    context.is_disconnect |= failure_of(cause).drop
    if isinstance(cause, psycopg.Error) and _omit_values(cause) and context.sqlalchemy_exception is not None:
        context.sqlalchemy_exception.args = (f"({type(cause).__module__}.{type(cause).__name__}) {cause}",)


def _omit_values(error: psycopg.Error) -> bool:
    """PostgreSQL adds to some errors the row that failed, whole: errors are logged, and rows hold personal data."""
    if not error.diag.message_detail:
        return False
    error.args = (error.diag.message_primary,)
    return True


def first_line(error: Exception) -> str:
    """What an error says, without the statement and its values, which SQLAlchemy puts on the lines after."""
    return str(error).partition("\n")[0][:500] or type(error).__name__


def listen_url(settings: DatabaseSettings) -> str:
    """The URL for a plain psycopg connection, as LISTEN needs one of its own."""
    return database_url(settings).set(drivername="postgresql").render_as_string(hide_password=False)


def execute_without_limits(connection: Connection, statement: str) -> None:
    """Of time: it takes as long as the table is large. Others wait for none of the locks that it takes."""
    limits = ("statement_timeout", "lock_timeout")
    before = {limit: connection.execute(text(f"SHOW {limit}")).scalar_one() for limit in limits}
    for limit in limits:
        connection.execute(text(f"SET {limit} = 0"))
    connection.execute(text(statement))
    for limit, value in before.items():
        connection.execute(text("SELECT set_config(:limit, :value, false)"), {"limit": limit, "value": value})
