"""What a migration does in steps: each is committed by itself, and a run that failed is gone on with."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from pydantic import SecretStr
from sqlalchemy.exc import DBAPIError

from tandem.runtime.migrations import Schema, migrate
from tandem.runtime.settings import DatabaseSettings

WORK = Schema("work")
FIRST = """
from alembic import op

revision = "0001"
down_revision = None


def upgrade():
    op.execute("CREATE TABLE work.thing (id int PRIMARY KEY, doubled int)")
    op.execute("INSERT INTO work.thing SELECT generate_series(1, 100)")
"""
SECOND = """
from alembic import op
from sqlalchemy import text

from tandem.runtime.backfill import backfill, create_index, finish, validate_constraint

revision = "0002"
down_revision = "0001"


def double(connection, after):
    first = int(after or 0)
    if first >= connection.execute(text("SELECT max(id) FROM work.thing")).scalar_one():
        return None
    connection.execute(
        text("UPDATE work.thing SET doubled = id * 2 WHERE id > :first AND id <= :first + 10"), {"first": first}
    )
    return str(first + 10)


def upgrade():
    op.execute("CREATE TABLE IF NOT EXISTS work.other (id int)")
"""


@pytest.fixture
def url(fresh_database: Callable[[], str]) -> str:
    return fresh_database()


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    folder = tmp_path / "migrations"
    (folder / "versions").mkdir(parents=True)
    (folder / "versions" / "0001_thing.py").write_text(FIRST)
    return folder


@pytest.fixture
def work(url: str, scripts: Path) -> Iterator[psycopg.Connection]:
    migrate(settings_of(url), scripts, WORK)
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


def settings_of(url: str) -> DatabaseSettings:
    return DatabaseSettings(url=SecretStr(url), statement_timeout=1.0, lock_timeout=0.2)


def add(scripts: Path, *statements: str) -> None:
    (scripts / "versions" / "0002_work.py").write_text(SECOND + "".join(f"    {it}\n" for it in statements))


def test_steps_that_were_done_stay_and_the_next_run_goes_on_behind_them(
    url: str, scripts: Path, work: psycopg.Connection
) -> None:
    add(scripts, 'backfill("0002 doubled", double)', 'op.execute("CREATE TABLE work.behind (id int)")')
    # In the seventh step.
    work.execute("ALTER TABLE work.thing ADD CONSTRAINT not_this CHECK (id <> 65 OR doubled IS NULL)")
    with pytest.raises(DBAPIError, match="not_this"):
        migrate(settings_of(url), scripts, WORK)
    assert work.execute("SELECT count(doubled) FROM work.thing WHERE id <= 60").fetchone() == (60,)
    assert work.execute("SELECT name, after, finished_at FROM work.backfill").fetchall() == [
        ("0002 doubled", "60", None)
    ]
    assert work.execute("SELECT version_num FROM work.alembic_version").fetchone() == ("0001",)
    assert work.execute("SELECT to_regclass('work.behind')").fetchone() == (None,)
    work.execute("ALTER TABLE work.thing DROP CONSTRAINT not_this")
    done = work.execute("SELECT id, xmin FROM work.thing WHERE id <= 60 ORDER BY id").fetchall()
    assert migrate(settings_of(url), scripts, WORK) == "0002"
    assert work.execute("SELECT id, xmin FROM work.thing WHERE id <= 60 ORDER BY id").fetchall() == done
    assert work.execute("SELECT count(*) FROM work.thing WHERE doubled IS DISTINCT FROM id * 2").fetchone() == (0,)
    assert work.execute("SELECT finished_at IS NOT NULL FROM work.backfill").fetchone() == (True,)


def test_what_has_come_since_is_done_behind_a_lock(url: str, scripts: Path, work: psycopg.Connection) -> None:
    add(
        scripts,
        'backfill("0002 doubled", double)',
        # As another would before the lock is taken.
        'op.execute("INSERT INTO work.thing VALUES (101), (102)")',
        'finish("0002 doubled", double)',
        'op.execute("ALTER TABLE work.thing ADD CONSTRAINT known CHECK (doubled IS NOT NULL) NOT VALID")',
        'validate_constraint("work.thing", "known")',
    )
    assert migrate(settings_of(url), scripts, WORK) == "0002"
    assert work.execute("SELECT doubled FROM work.thing WHERE id > 100 ORDER BY id").fetchall() == [(202,), (204,)]
    assert work.execute("SELECT convalidated FROM pg_constraint WHERE conname = 'known'").fetchone() == (True,)


def test_an_index_is_made_beside_who_writes_and_by_several_that_migrate_at_once(
    url: str, scripts: Path, work: psycopg.Connection
) -> None:
    add(scripts, 'create_index("thing_doubled", "work.thing (doubled)")')
    # One that was interrupted: it is there and not valid.
    work.execute("INSERT INTO work.thing VALUES (101, 7), (102, 7)")
    with pytest.raises(psycopg.errors.UniqueViolation):
        work.execute("CREATE UNIQUE INDEX CONCURRENTLY thing_doubled ON work.thing (doubled)")
    with psycopg.connect(url) as writer, ThreadPoolExecutor(2) as several:
        # Its transaction is under way longer than any lock or statement may take.
        writer.execute("UPDATE work.thing SET doubled = 8 WHERE id = 101")
        running = [several.submit(migrate, settings_of(url), scripts, WORK) for _ in range(2)]
        for it in running:
            with pytest.raises(TimeoutError):
                it.result(timeout=1.5)
        writer.execute("UPDATE work.thing SET doubled = 9 WHERE id = 102")
        writer.commit()
        assert [it.result(timeout=20) for it in running] == ["0002", "0002"]
    valid = "SELECT indisvalid, indisunique FROM pg_index WHERE indexrelid = 'work.thing_doubled'::regclass"
    assert work.execute(valid).fetchone() == (True, False)
