import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from structlog.testing import capture_logs

from tandem.runtime.database import create_database_engine
from tandem.runtime.migrations import Schema, current_revision, has_revision, migrate, newest_revision
from tandem.runtime.settings import DatabaseSettings

SCHEMA = "tandem_test"
ALONE = Schema(SCHEMA)
FIRST = f"""
from alembic import op

revision = "0001"
down_revision = None


def upgrade():
    op.execute("CREATE TABLE {SCHEMA}.thing (id int PRIMARY KEY)")
    op.execute("SELECT pg_sleep(0.3)")
"""
SECOND = f"""
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade():
    op.execute("ALTER TABLE {SCHEMA}.thing ADD COLUMN name text")
    op.execute("{{statement}}")
"""


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    folder = tmp_path / "migrations"
    (folder / "versions").mkdir(parents=True)
    (folder / "versions" / "0001_thing.py").write_text(FIRST)
    return folder


def add_second(scripts: Path, statement: str = "SELECT 1") -> None:
    (scripts / "versions" / "0002_name.py").write_text(SECOND.format(statement=statement))


@pytest.fixture
def settings(fresh_database: Callable[[], str]) -> DatabaseSettings:
    # Shorter than the first migration takes, so that who waits for it would give up if these bounded the wait.
    return DatabaseSettings(url=SecretStr(fresh_database()), lock_timeout=0.1)


def revision(settings: DatabaseSettings) -> str | None:
    engine = create_database_engine(settings, name="test", pool_size=1)
    try:
        with engine.connect() as connection:
            return current_revision(connection, SCHEMA)
    finally:
        engine.dispose()


def test_several_that_migrate_at_once_wait_for_one_another(settings: DatabaseSettings, scripts: Path) -> None:
    together = threading.Barrier(3)

    def run() -> str:
        together.wait(timeout=20)
        return migrate(settings, scripts, ALONE)

    with ThreadPoolExecutor(3) as pool:
        assert [it.result() for it in [pool.submit(run) for _ in range(3)]] == ["0001"] * 3
    assert revision(settings) == "0001"


def test_a_migration_may_be_repeated_and_goes_on_from_where_the_database_is(
    settings: DatabaseSettings, scripts: Path
) -> None:
    assert migrate(settings, scripts, ALONE) == "0001"
    assert migrate(settings, scripts, ALONE) == "0001"
    add_second(scripts)
    assert newest_revision(scripts) == "0002"
    assert revision(settings) == "0001"
    assert migrate(settings, scripts, ALONE) == "0002"
    assert revision(settings) == "0002"


def test_a_migration_that_fails_changes_nothing(settings: DatabaseSettings, scripts: Path) -> None:
    migrate(settings, scripts, ALONE)
    add_second(scripts, "SELECT 1 / 0")
    with pytest.raises(DBAPIError, match="division by zero"):
        migrate(settings, scripts, ALONE)
    assert revision(settings) == "0001"
    engine = create_database_engine(settings, name="test", pool_size=1)
    with engine.connect() as connection:
        assert connection.execute(text(f"SELECT * FROM {SCHEMA}.thing")).keys() == ["id"]
    engine.dispose()


def test_a_statement_of_a_migration_is_bounded_again_after_the_wait(settings: DatabaseSettings, scripts: Path) -> None:
    add_second(scripts, "SELECT pg_sleep(30)")
    with pytest.raises(DBAPIError, match="statement timeout"):
        migrate(settings.model_copy(update={"statement_timeout": 1.0}), scripts, ALONE)


def test_a_database_without_migrations_has_no_revision(settings: DatabaseSettings) -> None:
    assert revision(settings) is None


def test_a_schema_is_current_at_the_needed_revision_and_at_later_ones(
    settings: DatabaseSettings, scripts: Path
) -> None:
    engine = create_database_engine(settings, name="test", pool_size=1)
    with capture_logs() as logs:
        assert not has_revision(engine, ALONE, "0001")
        assert not has_revision(engine, ALONE, "0001")
    warning = {"event": "not migrated: run `migrate`", "log_level": "warning"}
    assert logs == [warning | {"schema": SCHEMA, "revisions": [None], "needed": ["0001"]}], "once"
    migrate(settings, scripts, ALONE)
    with capture_logs() as logs:
        assert has_revision(engine, ALONE, "0001")
    assert logs == []
    assert has_revision(engine, ALONE, "0000"), "the version before goes on"
    assert not has_revision(engine, ALONE, "0002")
    engine.dispose()


def test_no_schema_is_current_where_the_database_is_away() -> None:
    away = DatabaseSettings(url=SecretStr("postgresql://tandem@127.0.0.1:1/nowhere"))
    engine = create_database_engine(away, name="test", pool_size=1)
    assert not has_revision(engine, ALONE, "0001")
