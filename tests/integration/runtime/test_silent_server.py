"""A PostgreSQL that does not answer is given up in time, and nothing of the attempt is kept."""

import gc
import socket
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import psycopg
import pytest
from pydantic import SecretStr
from sqlalchemy import Connection, Engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from tandem.runtime.database import Driver, ServerSilent, create_database_engine, driver_under, pipelined
from tandem.runtime.listener import Listener
from tandem.runtime.settings import DatabaseSettings
from tandem.testing.stack import wait_until
from tests.support.proxy import CuttingProxy


def settings_at(url: str) -> DatabaseSettings:
    return DatabaseSettings(url=SecretStr(url), connect_timeout=2, statement_timeout=0.5, lock_timeout=0.5)


@pytest.fixture
def url(fresh_database: Callable[[], str]) -> str:
    return fresh_database()


@pytest.fixture
def proxy(url: str) -> Iterator[CuttingProxy]:
    port = make_url(url).port
    assert port is not None
    proxy = CuttingProxy(("127.0.0.1", port))
    yield proxy
    proxy.close()


@pytest.fixture
def through_proxy(url: str, proxy: CuttingProxy) -> DatabaseSettings:
    return settings_at(make_url(url).set(port=proxy.port).render_as_string(hide_password=False))


@pytest.fixture
def engine(through_proxy: DatabaseSettings) -> Iterator[Engine]:
    engine = create_database_engine(through_proxy, name="test", pool_size=1)
    yield engine
    engine.dispose()


@pytest.mark.parametrize("together", [False, True], ids=["a statement", "a pipeline"])
def test_an_answer_that_does_not_come_ends_the_connection(engine: Engine, proxy: CuttingProxy, together: bool) -> None:
    def ask(connection: Connection) -> None:
        if together:
            with pipelined(connection) as driver:
                driver.execute("SELECT 1")
                driver.execute("COMMIT")
        else:
            connection.execute(text("SELECT 1"))

    with engine.connect() as connection:
        ask(connection)
        proxy.be_silent()
        with pytest.raises(DBAPIError) as raised:
            ask(connection)
    assert isinstance(raised.value.orig, ServerSilent)
    assert raised.value.connection_invalidated
    proxy.speak()
    with engine.connect() as connection:
        assert connection.execute(text("SELECT 1")).scalar_one() == 1


def test_a_wait_for_a_notification_is_none_for_an_answer(through_proxy: DatabaseSettings, url: str) -> None:
    listener = Listener(through_proxy, "news", "test")
    assert listener.wait(3) == [], "longer than any answer may take"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("NOTIFY news, 'first'")
    assert listener.wait(20) == ["first"]
    listener.close()


def test_a_listener_notices_that_nobody_is_there_and_listens_anew(
    through_proxy: DatabaseSettings, url: str, proxy: CuttingProxy
) -> None:
    listener = Listener(through_proxy, "news", "test")
    listener.wait(0.01)
    # The connection stays, and nothing comes through it any more; a new one would be answered.
    proxy.be_silent()

    def has_noticed() -> bool:
        try:
            listener.wait(0.1)
        except psycopg.OperationalError:
            return True
        return False

    wait_until(has_noticed, "the listener has noticed")
    proxy.speak()
    listener.wait(0.01)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("NOTIFY news, 'second'")
    assert listener.wait(20) == ["second"]
    listener.close()


def test_a_connection_that_is_not_made_keeps_no_descriptor() -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        settings = settings_at(f"postgresql://postgres@127.0.0.1:{nobody.getsockname()[1]}/nothing")
        engine = create_database_engine(settings, name="test", pool_size=1)
        listener = Listener(settings, "news", "test")
        process = psutil.Process()
        gc.collect()
        gc.disable()
        try:
            before = process.num_fds()
            with pytest.raises(DBAPIError):
                engine.connect()
            with pytest.raises(psycopg.OperationalError):
                listener.wait(0.1)
            assert process.num_fds() == before
        finally:
            gc.enable()
            engine.dispose()


def test_psycopg_still_says_that_a_wait_is_over_as_it_did(url: str) -> None:
    """`Driver` knows it by an exception of psycopg's own, which another version may call otherwise."""
    driver = Driver.connect(url)
    driver.longest_wait = 0.2
    with pytest.raises(ServerSilent):
        driver.execute("SELECT pg_sleep(30)")
    assert driver.closed


@pytest.mark.parametrize("refused", [{"longest_transaction": -1}, {"session": ("SET no_such_setting = 1",)}])
def test_a_connection_that_cannot_be_set_up_is_closed(url: str, refused: dict[str, Any]) -> None:
    engine = create_database_engine(settings_at(url), name="not-set-up", pool_size=1, **refused)
    with psycopg.connect(url, autocommit=True) as watching:
        if "longest_transaction" in refused and watching.info.server_version < 17_00_00:
            pytest.skip("before PostgreSQL 17 there is no such setting to refuse")
        with pytest.raises(DBAPIError) as caught:
            engine.connect()
        sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'not-set-up'"
        wait_until(lambda: watching.execute(sessions).fetchone() == (0,), "the session has ended")
    # The error was held until here, and holds what it met.
    assert caught.value
    engine.dispose()


def test_a_connection_that_is_out_when_its_engine_is_disposed_of_is_closed_when_it_comes_back(engine: Engine) -> None:
    connection = engine.connect()
    driver = connection.connection.dbapi_connection
    assert isinstance(driver, psycopg.Connection)
    engine.dispose()
    assert connection.execute(text("SELECT 1")).scalar_one() == 1, "who has one may end its work"
    connection.close()
    assert driver.closed


def test_a_connection_of_an_engine_that_was_disposed_of_before_is_closed_after_its_use(engine: Engine) -> None:
    """A readiness check runs in a thread that nobody waits for when a service stops."""
    engine.dispose()
    with engine.connect() as connection:
        driver = driver_under(connection)
        assert connection.execute(text("SELECT 1")).scalar_one() == 1
    assert driver.closed
