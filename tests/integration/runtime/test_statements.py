"""Statements that go past psycopg's cursors, through what its next release may change."""

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from pydantic import SecretStr
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from tandem.runtime.arrays import array, bigint, text_of, uuid_of
from tandem.runtime.database import create_database_engine, driver_under, pipelined
from tandem.runtime.settings import DatabaseSettings
from tandem.runtime.statements import is_answered

SUM = "SELECT CAST(%(more)s AS bigint) + n, CAST(%(more)s AS bigint) FROM unnest(CAST(%(numbers)s AS bigint[])) AS n"


@pytest.fixture
def connection(fresh_database: Callable[[], str]) -> Iterator[Connection]:
    settings = DatabaseSettings(url=SecretStr(fresh_database()))
    engine = create_database_engine(settings, name="test", pool_size=1, autocommit=True)
    with engine.connect() as opened:
        yield opened
    engine.dispose()


def prepared(connection: Connection) -> int:
    found = driver_under(connection).execute("SELECT count(*) FROM pg_prepared_statements WHERE name LIKE 'tandem_%%'")
    [(count,)] = found
    return int(count)


def test_a_statement_is_prepared_once_whatever_its_values(connection: Connection) -> None:
    for number in range(3):
        with pipelined(connection) as driver:
            first = driver.send(SUM, {"numbers": array("BIGINT", [1, 2]), "more": bigint(number)})
            driver.flush()
            second = driver.send("SELECT CAST(%s AS text[])", [array("TEXT", ["é", None])])
            last = driver.send(SUM, {"more": bigint(9), "numbers": array("BIGINT", [])})
        assert list(first) == [(1 + number, number), (2 + number, number)]
        assert list(second) == [(["é", None],)]
        assert list(last) == []
    # The one that was sent twice in the first pipeline was not known to be there yet.
    assert prepared(connection) == 3


def test_what_is_not_ready_goes_by_a_cursor_in_the_same_order(connection: Connection) -> None:
    with pipelined(connection) as driver:
        driver.send("CREATE TEMPORARY TABLE number (n bigint)")
        driver.send("INSERT INTO number SELECT unnest(CAST(%s AS bigint[]))", [array("BIGINT", [1])])
        driver.send("INSERT INTO number SELECT unnest(CAST(%s AS bigint[]))", [[2]])
        rows = driver.send("SELECT n FROM number ORDER BY n")
    assert list(rows) == [(1,), (2,)]
    assert list(driver.send("SELECT n + CAST(%s AS bigint) FROM number ORDER BY n", [bigint(1)])) == [(2,), (3,)]


def test_what_came_behind_a_failure_is_prepared_when_it_is_sent_again(connection: Connection) -> None:
    def ask() -> list[tuple[int, int]]:
        with pipelined(connection) as driver:
            rows = driver.send(SUM, {"numbers": array("BIGINT", [1]), "more": bigint(1)})
        return list(rows)

    with pytest.raises(DBAPIError), pipelined(connection) as driver:  # noqa: PT012 - a batch is what fails
        driver.send("SELECT 1 / 0")
        driver.send(SUM, {"numbers": array("BIGINT", [1]), "more": bigint(1)})
    connection.rollback()
    assert prepared(connection) == 1, "the one that failed when it was executed"
    assert ask() == ask() == [(2, 1)]


def test_a_rollback_with_which_psycopg_takes_all_back_leaves_none_that_is_not_there(connection: Connection) -> None:
    driver_under(connection).execute("SELECT 1", prepare=True)
    with pipelined(connection) as driver:
        driver.send("SELECT 1")
    with pytest.raises(DBAPIError), pipelined(connection) as driver:  # noqa: PT012 - a batch is what fails
        driver.send("BEGIN")
        driver.send("SELECT 1 / 0")
    connection.rollback()
    assert prepared(connection) == 0
    with pipelined(connection) as driver:
        rows = driver.send("SELECT 1")
    assert list(rows) == [(1,)]


def test_a_plan_that_does_not_fit_its_table_any_more_is_made_anew(connection: Connection) -> None:
    with pipelined(connection) as driver:
        driver.send("CREATE TABLE thing (n integer)")
        driver.send("INSERT INTO thing VALUES (1)")
    read = "SELECT n FROM thing"
    with pipelined(connection) as driver:
        driver.send(read)
        driver.send("ALTER TABLE thing ALTER n TYPE bigint")
    with pytest.raises(DBAPIError, match="cached plan"), pipelined(connection) as driver:
        driver.send(read)
    with pipelined(connection) as driver:
        rows = driver.send(read)
    assert list(rows) == [(1,)]


def test_what_fails_at_a_pipelines_end_leaves_the_connection_whole_and_what_was_done_before_is_known(
    connection: Connection,
) -> None:
    with pipelined(connection) as driver:
        driver.send("CREATE TABLE once (n integer UNIQUE DEFERRABLE INITIALLY DEFERRED)")

    def is_stored(*statements: str, prepare: bool) -> bool:
        committed: list[Any] = []
        with pytest.raises(DBAPIError) as failed, pipelined(connection) as driver:  # noqa: PT012 - a batch is what fails
            for it in ("BEGIN", "INSERT INTO once VALUES ((SELECT count(*) FROM once))", *statements):
                sent = driver.send(it, prepare=prepare)
                if it == "COMMIT":
                    committed.append(sent)
        assert not failed.value.connection_invalidated
        connection.rollback()
        return any(map(is_answered, committed))

    for prepare in (True, False):
        assert is_stored("COMMIT", "INSERT INTO once VALUES (0)", prepare=prepare), "that fails with the Sync"
        assert not is_stored("SELECT 1 / 0", "COMMIT", prepare=prepare)
    with pipelined(connection) as driver:
        rows = driver.send("SELECT n FROM once ORDER BY n")
    assert list(rows) == [(0,), (1,)]


def test_outside_of_a_pipeline_it_is_answered_at_once(connection: Connection) -> None:
    driver = driver_under(connection)
    for number in range(3):
        numbers = array("BIGINT", [1, 2])
        assert list(driver.send(SUM, {"numbers": numbers, "more": bigint(number)})) == [
            (1 + number, number),
            (2 + number, number),
        ]
    assert prepared(connection) == 1
    key = uuid.uuid4()
    [row] = driver.send("SELECT $1 AS key, $2 AS name, 1", [uuid_of(key), text_of("é")], named=True)
    assert (row.key, row.name, row[2]) == (key, "é", 1)
    [row] = driver.send("SELECT $1::uuid AS key, $2 AS name", [key, "é"], named=True)
    assert (row.key, row.name) == (key, "é")
    assert prepared(connection) == 2, "psycopg writes what is not ready"


def test_outside_of_a_pipeline_a_plan_that_does_not_fit_its_table_is_made_anew_at_once(connection: Connection) -> None:
    """Both ways: with what is ready, and by psycopg's cursors."""
    driver = driver_under(connection)
    driver.send("CREATE TABLE thing (n integer)")
    read = "SELECT * FROM thing WHERE n > %s"
    for kind in ("bigint", "numeric", "integer"):
        assert list(driver.send(read, [bigint(1)])) == list(driver.send(read, [1])) == []
        driver.send(f"ALTER TABLE thing ALTER n TYPE {kind}")
        assert list(driver.send(read, [bigint(1)])) == list(driver.send(read, [1])) == []
    found = driver.execute("SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE 'SELECT *%'")
    assert list(found) == [(2,)], "of each way, the one that fits"


@pytest.mark.parametrize("value", [1, bigint(1)], ids=["by a cursor", "ready"])
def test_within_a_transaction_that_is_for_who_has_begun_it(connection: Connection, value: Any) -> None:
    driver = driver_under(connection)
    driver.send("CREATE TABLE thing (n integer)")
    read = ("SELECT * FROM thing WHERE n > %s", [value])
    driver.send(*read)
    driver.send("ALTER TABLE thing ALTER n TYPE bigint")
    driver.autocommit = False
    with pytest.raises(psycopg.errors.FeatureNotSupported):
        driver.send(*read)
    driver.rollback()
    assert list(driver.send(*read)) == []


def test_within_a_pipeline_nothing_is_sent_again_for_what_failed_before_it(connection: Connection) -> None:
    driver = driver_under(connection)
    driver.send("CREATE TABLE thing (n integer)")
    driver.send("SELECT * FROM thing")
    driver.send("ALTER TABLE thing ALTER n TYPE bigint")
    with pytest.raises(DBAPIError, match="cached plan"), pipelined(connection) as driver:  # noqa: PT012 - a batch is what fails
        driver.send("SELECT * FROM thing")
        # Psycopg's, which may receive what came before.
        driver.send("INSERT INTO thing VALUES (1)", prepare=False)
        driver.send("SELECT pg_sleep(0.1)", prepare=False)
        driver.send("INSERT INTO thing VALUES (2)", prepare=False)
    assert list(driver.send("SELECT * FROM thing")) == []


def test_what_was_answered_is_not_kept(connection: Connection) -> None:
    driver = driver_under(connection)
    assert len(list(driver.send("SELECT generate_series(1, $1)", [bigint(1000)]))) == 1000
    [statement] = driver._statements._prepared.values()
    assert statement._transformer.pgresult is None


def test_a_transaction_is_begun_where_psycopg_begins_one(connection: Connection) -> None:
    driver = driver_under(connection)
    driver.autocommit = False
    driver.send("CREATE TABLE thing (n integer)")
    with pipelined(connection):
        driver.send("INSERT INTO thing VALUES (1)")
    driver.rollback()
    with pipelined(connection):
        driver.send("CREATE TABLE thing (n integer)")
    driver.rollback()
    assert list(driver.send("SELECT to_regclass('thing')")) == [(None,)]
