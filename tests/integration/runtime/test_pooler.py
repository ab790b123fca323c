"""Behind PgBouncer, which passes nothing on of what a connection asks for at its start."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from tandem.cli.embedded import Postgres
from tandem.runtime.database import create_database_engine
from tandem.runtime.listener import Listener
from tandem.runtime.settings import DatabaseSettings
from tests.support.pgbouncer import PgBouncer, pgbouncer_path


@pytest.fixture
def settings(postgres: Postgres, fresh_database: Callable[[], str], servers_folder: Path) -> Iterator[DatabaseSettings]:
    """Of a database behind a PgBouncer that works by session."""
    if pgbouncer_path() is None:
        pytest.skip("PgBouncer is not installed (make pgbouncer)")
    pooler = PgBouncer(postgres, "session", servers_folder / "pooler", {"ignore_startup_parameters": "options"})
    pooler.start()
    url = fresh_database().replace(postgres.address, pooler.address)
    yield DatabaseSettings(url=SecretStr(url), statement_timeout=1.5)
    pooler.stop()


def test_a_session_has_its_limits_writes_nothing_and_hears_what_is_notified(settings: DatabaseSettings) -> None:
    listener = Listener(settings, "channel", "test-listen")
    assert listener.wait(0.0) == []
    queries = create_database_engine(settings, name="test-query", pool_size=1, read_only=True, autocommit=True)
    writes = create_database_engine(settings, name="test-write", pool_size=1, by_key=True)
    try:
        with queries.connect() as connection:
            for name, value in (("statement_timeout", "1500ms"), ("lock_timeout", "2s"), ("timezone", "UTC")):
                assert connection.execute(text(f"SHOW {name}")).scalar_one() == value
            with pytest.raises(DBAPIError, match="read-only"):
                connection.execute(text("CREATE TABLE written (id int)"))
        with writes.begin() as connection:
            assert connection.execute(text("SHOW plan_cache_mode")).scalar_one() == "force_generic_plan"
            connection.execute(text("SELECT pg_notify('channel', 'heard')"))
        assert listener.wait(20.0) == ["heard"]
    finally:
        queries.dispose()
        writes.dispose()
        listener.close()
