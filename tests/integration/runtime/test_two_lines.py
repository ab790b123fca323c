"""A schema's two lines of migrations, in new databases, in those of before there were two, and of later releases."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from pydantic import SecretStr

from command_server.app import MIGRATIONS as WRITE_MIGRATIONS
from projector.app import MIGRATIONS as READ_MIGRATIONS
from tandem.cli.child import run_to_end
from tandem.cli.services import store_settings
from tandem.commands.partitions import ensure_partitions
from tandem.feed.table import WRITE
from tandem.read_store.tables import READ
from tandem.runtime.database import create_database_engine, transaction
from tandem.runtime.migrations import Schema, has_revision, migrate, newest_revision
from tandem.runtime.settings import DatabaseSettings
from tandem.testing.stack import environment_of
from tests.support.migrating import migrate_as_one_line
from tests.support.release import release_before, unpack

LINES = {"write": (WRITE_MIGRATIONS, WRITE), "read": (READ_MIGRATIONS, READ)}
# All that a schema's tables are: columns in their order, constraints, indexes, triggers, functions, and their settings.
CATALOG = {
    "columns": """
        SELECT c.oid::regclass::text, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
            a.attgenerated::text, a.attstattarget, pg_get_expr(d.adbin, d.adrelid), col_description(c.oid, a.attnum),
            row_number() OVER (PARTITION BY c.oid ORDER BY a.attnum)
        FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        LEFT JOIN pg_attrdef AS d ON d.adrelid = c.oid AND d.adnum = a.attnum
        WHERE c.relkind IN ('r', 'p')""",
    "tables": """
        SELECT c.oid::regclass::text, c.relkind::text, c.reloptions, pg_get_partkeydef(c.oid),
            pg_get_expr(c.relpartbound, c.oid), true
        FROM pg_class AS c WHERE c.relkind IN ('r', 'p')""",
    "constraints": """
        SELECT c.oid::regclass::text, o.conname, pg_get_constraintdef(o.oid), o.convalidated
        FROM pg_constraint AS o JOIN pg_class AS c ON c.oid = o.conrelid WHERE true""",
    "indexes": """
        SELECT c.oid::regclass::text, pg_get_indexdef(i.indexrelid), i.indisvalid
        FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indrelid WHERE true""",
    "triggers": """
        SELECT c.oid::regclass::text, pg_get_triggerdef(t.oid)
        FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid WHERE NOT t.tgisinternal""",
}


def catalog(url: str, schema: str) -> dict[str, list[object]]:
    with psycopg.connect(url) as connection:
        found: dict[str, list[object]] = {
            name: sorted(
                (
                    row
                    for row in connection.execute(
                        f"{query} AND c.relnamespace = '{schema}'::regnamespace".encode()
                    ).fetchall()
                ),
                key=repr,
            )
            for name, query in CATALOG.items()
        }
        functions = """
            SELECT pg_get_functiondef(p.oid) FROM pg_proc AS p
            WHERE p.pronamespace = CAST(%s AS regnamespace)
              AND NOT EXISTS (SELECT FROM pg_depend AS d WHERE d.objid = p.oid AND d.deptype = 'e') ORDER BY 1"""
        found["functions"] = list(connection.execute(functions, [schema]).fetchall())
        schemas = "SELECT nspname FROM pg_namespace WHERE starts_with(nspname, %s) ORDER BY 1"
        found["schemas"] = list(connection.execute(schemas, [schema]).fetchall())
    return found


def settings_of(url: str) -> DatabaseSettings:
    return DatabaseSettings(url=SecretStr(url))


def versions(url: str, schema: str) -> tuple[object, ...]:
    with psycopg.connect(url) as connection:
        tables = [f"SELECT version_num FROM {schema}.{it}" for it in ("engine_version", "alembic_version")]
        return tuple(it for table in tables for [it] in connection.execute(table.encode()).fetchall())


def run_of(tree: Path, module: str, url: str, action: str) -> None:
    """Runs an action of a service of another release, on one database for both sides."""
    section = module.partition("_")[0]
    urls = {f"TANDEM_{section.upper()}_{name}": it for name, it in store_settings(url, url)[section].items()}
    run_to_end(
        [sys.executable, "-m", module, action],
        f"{module} {action} of the release before failed",
        environment={**os.environ, **environment_of(tree), **urls},
    )


@pytest.fixture(params=LINES)
def side(request: pytest.FixtureRequest) -> str:
    it: str = request.param
    return it


@pytest.fixture
def fresh(fresh_database: Callable[[], str], side: str) -> dict[str, list[object]]:
    """The catalog of a new database."""
    scripts, schema = LINES[side]
    url = fresh_database()
    migrate(settings_of(url), scripts, schema)
    return catalog(url, schema.name)


def migrated(url: str, scripts: Path, schema: Schema) -> dict[str, list[object]]:
    assert migrate(settings_of(url), scripts, schema) == newest_revision(scripts)
    assert schema.engine is not None
    assert versions(url, schema.name) == (newest_revision(schema.engine), newest_revision(scripts))
    return catalog(url, schema.name)


@pytest.mark.parametrize("revision", ["0001", "0006", "0012", ""], ids=lambda it: it or "the last of the one line")
def test_a_database_of_the_one_line_becomes_what_a_new_one_is(
    fresh_database: Callable[[], str], side: str, fresh: dict[str, list[object]], revision: str
) -> None:
    scripts, schema = LINES[side]
    url = fresh_database()
    migrate_as_one_line(settings_of(url), scripts, schema, revision or {"write": "0016", "read": "0013"}[side])
    assert migrated(url, scripts, schema) == fresh
    assert migrated(url, scripts, schema) == fresh, "and stays so"


def test_the_release_befores_database_becomes_what_a_new_one_is_and_its_servers_go_on(
    fresh_database: Callable[[], str], tmp_path: Path
) -> None:
    commit = release_before()
    if commit is None:
        pytest.skip("the release before is not in this clone's history")
    tree = unpack(commit, tmp_path / "before")
    url, new = fresh_database(), fresh_database()
    # Both sides in one database, as CQRS lite has them.
    for module in ("command_server", "projector"):
        run_of(tree, module, url, "migrate")
    needed = {}
    with psycopg.connect(url) as connection:
        for _, it in LINES.values():
            found = connection.execute(f"SELECT version_num FROM {it.name}.alembic_version".encode()).fetchone()
            assert found is not None
            needed[it.name] = str(found[0])
    for scripts, schema in LINES.values():
        migrate(settings_of(new), scripts, schema)
        if schema == WRITE:
            # As each `migrate` of a command server does.
            with transaction(settings_of(new), "test") as connection:
                ensure_partitions(connection)
        assert migrated(url, scripts, schema) == catalog(new, schema.name)
        # What a server of the release before asks for.
        engine = create_database_engine(settings_of(url), name="test", pool_size=1)
        assert has_revision(engine, Schema(schema.name), needed[schema.name])
        engine.dispose()


def test_who_could_see_the_one_revision_can_see_both(fresh_database: Callable[[], str], side: str) -> None:
    scripts, schema = LINES[side]
    url = fresh_database()
    migrate_as_one_line(settings_of(url), scripts, schema, "0012")
    with psycopg.connect(url, autocommit=True) as owner:
        owner.execute(f"GRANT SELECT ON {schema.name}.alembic_version TO pg_monitor".encode())
        migrate(settings_of(url), scripts, schema)
        may = "SELECT has_table_privilege('pg_monitor', %s, 'SELECT')"
        assert owner.execute(may, [f"{schema.name}.engine_version"]).fetchone() == (True,)


def test_a_database_of_a_later_release_stays_as_it_is(
    fresh_database: Callable[[], str], side: str, fresh: dict[str, list[object]]
) -> None:
    scripts, schema = LINES[side]
    url = fresh_database()
    migrate(settings_of(url), scripts, schema)
    with psycopg.connect(url, autocommit=True) as connection:
        for table in ("engine_version", "alembic_version"):
            connection.execute(f"UPDATE {schema.name}.{table} SET version_num = '9998'".encode())
    assert migrate(settings_of(url), scripts, schema) == newest_revision(scripts)
    assert versions(url, schema.name) == ("9998", "9998")
    assert catalog(url, schema.name) == fresh


def test_a_database_is_not_current_before_the_engines_migrations_are_done(
    fresh_database: Callable[[], str], side: str
) -> None:
    scripts, schema = LINES[side]
    url = fresh_database()
    engine = create_database_engine(settings_of(url), name="test", pool_size=1)
    migrate_as_one_line(settings_of(url), scripts, schema, {"write": "0016", "read": "0013"}[side])
    assert not has_revision(engine, schema, newest_revision(scripts))
    migrate(settings_of(url), scripts, schema)
    assert has_revision(engine, schema, newest_revision(scripts))
    assert not has_revision(engine, schema, "9999"), "of the domain's"
    engine.dispose()
