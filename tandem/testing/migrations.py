"""A migration of a view's table, written from what the contract says and what the migrations before have made.

`python -m tandem.testing.migrations MODULE NAME` writes it: MODULE has the views' tables, and the folder MIGRATIONS.
"""

import argparse
import importlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from pydantic import SecretStr
from sqlalchemy import Column, Connection, Index, MetaData, Table
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex, CreateTable

from tandem.cli.embedded import Postgres
from tandem.read_store.tables import READ, metadata
from tandem.runtime.database import create_database_engine
from tandem.runtime.migrations import Schema, migrate, newest_revision
from tandem.runtime.settings import DatabaseSettings
from tandem.testing.ports import free_port

_FILE = '''"""{title}"""

from alembic import op

revision = "{revision}"
down_revision = "{before}"

S = "{schema}"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("SET LOCAL statement_timeout = '60s'")
{upgrade}

def downgrade() -> None:
{downgrade}'''


class NotPlain(Exception):
    """What differs is no new table: its migration is written by hand. The message says what differs."""


def differences(connection: Connection, schema: str, metadata: MetaData) -> list[Any]:
    """What the schema lacks of the described tables, and has beside them, as alembic has it."""
    context = MigrationContext.configure(
        connection,
        opts={
            "include_schemas": True,
            "include_name": lambda name, kind, _parents: kind != "schema" or name == schema,
            "version_table_schema": schema,
            "compare_type": True,
            "compare_server_default": True,
            # PostgreSQL spells the expressions of generated columns in its own way. The migrations have
            # tables of their own.
            "include_object": lambda it, name, kind, _reflected, _other: (
                it.computed is None
                if kind == "column"
                else (kind, name) not in {("table", "backfill"), ("table", "engine_version")}
            ),
        },
    )
    return list(compare_metadata(context, metadata))


def write_migration(scripts: Path, schema: Schema, metadata: MetaData, name: str) -> Path | None:
    """Writes the next migration, which makes the tables that are described and that no migration makes.

    name: of the file, behind its number. None where nothing is missing. The migrations before are run on a PostgreSQL
    of its own, which takes some seconds. Raises NotPlain where something else is missing than whole tables.
    """
    with _new_database() as settings:
        before = migrate(settings, scripts, schema)
        engine = create_database_engine(settings, name="tandem-new-migration", pool_size=1)
        with engine.connect() as connection:
            found = differences(connection, schema.name, metadata)
        engine.dispose()
    if not found:
        return None
    revision = f"{int(before) + 1:04}"
    path = scripts / "versions" / f"{revision}_{name}.py"
    path.write_text(migration_of(found, metadata, schema.name, revision, before))
    assert newest_revision(scripts) == revision
    return path


def migration_of(found: Sequence[Any], metadata: MetaData, schema: str, revision: str, before: str) -> str:
    """The text of a migration. found: `differences` from what is described in metadata. Raises NotPlain."""
    # Alembic's own tables are copies, without indexes.
    tables = [metadata.tables[it[1].fullname] for it in found if it[0] == "add_table"]
    # The index of a new table comes with it.
    others = [
        it
        for it in found
        if it[0] != "add_table" and not (it[0] == "add_index" and metadata.tables[it[1].table.fullname] in tables)
    ]
    if others:
        raise NotPlain("\n".join(map(_in_words, others)))
    return _FILE.format(
        title=f"The {'table' if len(tables) == 1 else 'tables'} {', '.join(it.name for it in tables)}.",
        revision=revision,
        before=before,
        schema=schema,
        upgrade="".join(_made(it, schema) for it in tables),
        downgrade="".join(f'    op.execute(f"DROP TABLE {{S}}.{it.name}")\n' for it in reversed(tables)),
    )


@contextmanager
def _new_database() -> Iterator[DatabaseSettings]:
    with tempfile.TemporaryDirectory(prefix="tandem-migration-") as folder:
        # PostgreSQL's user must pass through it.
        Path(folder).chmod(0o711)
        postgres = Postgres(Path(folder) / "data", free_port(), settings={"fsync": "off"})
        postgres.start()
        try:
            yield DatabaseSettings(url=SecretStr(postgres.url("postgres")))
        finally:
            postgres.stop()


def _made(table: Table, schema: str) -> str:
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    statements: list[Any] = [
        CreateTable(table),
        *(CreateIndex(it) for it in sorted(table.indexes, key=lambda it: str(it.name))),
    ]
    text = ""
    for statement in statements:
        sql = str(statement.compile(dialect=dialect)).strip().replace("\t", "    ").replace(" \n", "\n")
        lines = [it.rstrip().replace(f"{schema}.", "{S}.") for it in sql.splitlines() if it.strip()]
        if len(lines) == 1:
            text += f'    op.execute(f"{lines[0]}")\n'
        else:
            text += '    op.execute(f"""\n' + "\n".join(f"        {it}" for it in lines) + '""")\n'
    return text


def _in_words(difference: Any) -> str:
    """One of alembic's; a column that changes is a list of what changes."""
    kind, *rest = difference[0] if isinstance(difference, list) else difference
    names = [_name(it) for it in rest if isinstance(it, Table | Column | Index | str)]
    return f"{kind.replace('_', ' ')}: {' '.join(names)}"


def _name(of: Any) -> str:
    match of:
        case Index(name=name, table=table) | Column(name=name, table=table) if table is not None:
            return f"{table.name}.{name}"
        case Table(name=name) | Column(name=name):
            return str(name)
    return str(of)


def main() -> int:
    parser = argparse.ArgumentParser(description="Writes the migration of views that have no table yet.")
    parser.add_argument("module", help="has the views' tables, and their migrations' folder as MIGRATIONS: my.views")
    parser.add_argument("name", help="of the migration's file, behind its number")
    given = parser.parse_args()
    try:
        path = write_migration(importlib.import_module(given.module).MIGRATIONS, READ, metadata, given.name)
    except NotPlain as error:
        print(f"This migration is to be written by hand (docs/migrations.md), since it makes no new table:\n{error}")
        return 1
    print(f"wrote {path}" if path else "The migrations make all tables that are described: nothing to write.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
