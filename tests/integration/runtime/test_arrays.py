"""Arrays in PostgreSQL's binary form are what psycopg's own are, and errors in a pipeline are SQLAlchemy's."""

import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import BigInteger, Column, Connection, MetaData, Table, Text
from sqlalchemy.exc import DBAPIError, IntegrityError

from shop.views import VIEWS
from tandem.feed.table import metadata as write_metadata
from tandem.read_store.tables import change
from tandem.runtime.arrays import Array, array, sql_type
from tandem.runtime.bulk import execute, inserted, updated
from tandem.runtime.database import create_database_engine, pipelined
from tandem.runtime.settings import DatabaseSettings
from tandem.runtime.sqlstate import BatchAction, failure_of

GADGET = Table(
    "gadget", MetaData(), Column("id", BigInteger, primary_key=True), Column("name", Text), Column("note", Text)
)


@pytest.fixture
def connection(fresh_database: Callable[[], str]) -> Iterator[Connection]:
    engine = create_database_engine(DatabaseSettings(url=SecretStr(fresh_database())), name="test", pool_size=2)
    with engine.connect() as opened:
        GADGET.metadata.create_all(opened)
        opened.commit()
        yield opened
    engine.dispose()


@pytest.mark.parametrize(
    ("sql_type", "values"),
    [
        ("UUID", [uuid.UUID(int=0), uuid.UUID(int=2**128 - 1), None]),
        ("BIGINT", [-(2**63), 0, 2**63 - 1, None]),
        ("INTEGER", [-(2**31), None, 2**31 - 1]),
        ("SMALLINT", [-(2**15), 2**15 - 1]),
        ("BOOLEAN", [True, False, None]),
        ("TEXT", ["", 'NULL, "quoted" {braces} \\', "näme 🍵", None]),
        ("BYTEA", [b"", b"\0\xff\\x", None]),
        ("DATE", [date(2026, 1, 31), date(1, 1, 1), date(9999, 12, 31), None]),
        ("TIMESTAMP WITH TIME ZONE", [datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, 999999, UTC)]),
    ],
)
def test_values_come_back_as_they_were(connection: Connection, sql_type: str, values: list[Any]) -> None:
    for sent in (values, [], [None, None]):
        given = array(sql_type, sent)
        assert isinstance(given, Array)
        with pipelined(connection) as driver:
            row = driver.execute(f"SELECT CAST(%s AS {sql_type}[])", [given])
        assert next(row) == (sent,)


@pytest.mark.parametrize("table", [change, *VIEWS.values(), *write_metadata.sorted_tables], ids=str)
def test_every_column_of_ours_has_a_type_that_is_known(table: Table) -> None:
    # Search words and documents are PostgreSQL's own to make.
    unknown = {str(it.type) for it in table.columns if not isinstance(array(sql_type(it), []), Array)}
    assert unknown <= {"TSVECTOR"}


def test_what_is_no_value_of_the_type_is_left_to_the_driver(connection: Connection) -> None:
    identity = "6f0f5c0e-8a0b-4b5e-9f0a-7d1f6f1a2b3c"
    with pipelined(connection) as driver:
        row = driver.execute("SELECT CAST(%s AS uuid[])", [array("UUID", [identity])])
    assert next(row) == ([uuid.UUID(identity)],)
    assert not isinstance(array("UUID", [bytes(15), bytes(17)]), Array), "of the length of two ids together"
    with pytest.raises(DBAPIError), pipelined(connection) as driver:
        driver.execute("SELECT CAST(%s AS smallint[])", [array("SMALLINT", [2**15])])


def test_an_update_of_some_columns_leaves_the_others(connection: Connection) -> None:
    execute(connection, inserted(GADGET, [(1, "one", "kept"), (2, "two", "kept")]))
    execute(connection, updated(GADGET, [(2, "zwei")], names=("id", "name")))
    rows = connection.execute(GADGET.select().order_by(GADGET.c.id)).all()
    assert list(map(tuple, rows)) == [(1, "one", "kept"), (2, "zwei", "kept")]


def test_the_first_error_of_a_pipeline_is_told_without_values_and_nothing_is_done(connection: Connection) -> None:
    with pytest.raises(IntegrityError) as caught, pipelined(connection):  # noqa: PT012 - a batch is what is asked
        execute(connection, inserted(GADGET, [(1, "Ada", "")]))
        execute(connection, inserted(GADGET, [(1, "Ada", "")]))
        execute(connection, inserted(GADGET, [(2, "Bob", "")]))
    assert "(1)" not in str(caught.value)
    assert failure_of(caught.value).batch is BatchAction.COLLIDED
    connection.rollback()
    assert connection.execute(GADGET.select()).all() == []


def test_a_session_that_was_ended_in_a_pipeline_may_pass(connection: Connection) -> None:
    with pytest.raises(DBAPIError) as caught, pipelined(connection) as driver:
        driver.execute("SELECT pg_terminate_backend(pg_backend_pid())")
    assert failure_of(caught.value).batch is BatchAction.AGAIN
    connection.rollback()
    with pipelined(connection) as driver:
        assert next(driver.execute("SELECT 1")) == (1,), "on a new connection"


def test_a_client_that_stops_after_a_pipeline_does_not_keep_its_locks(
    fresh_database: Callable[[], str],
) -> None:
    """As a command server that is paused between the locks of a batch and its writes."""
    settings = DatabaseSettings(url=SecretStr(fresh_database()))
    paused = create_database_engine(settings, name="paused", pool_size=1, longest_transaction=0.5)
    other = create_database_engine(settings, name="other", pool_size=1)
    with other.begin() as connection:
        GADGET.metadata.create_all(connection)
        execute(connection, inserted(GADGET, [(1, "one", "")]))
    with paused.connect() as holder:
        with pipelined(holder) as driver:
            driver.execute("SELECT id FROM gadget FOR UPDATE")
        with other.begin() as connection:
            execute(connection, updated(GADGET, [(1, "another", "")]))
        with pytest.raises(DBAPIError) as caught, pipelined(holder) as driver:
            driver.execute("SELECT 1")
        assert failure_of(caught.value).batch is BatchAction.AGAIN
    paused.dispose()
    other.dispose()
