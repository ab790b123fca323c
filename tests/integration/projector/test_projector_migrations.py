from collections.abc import Callable

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from pydantic import SecretStr

from projector.app import MIGRATIONS
from tandem.read_store.tables import REVISION, SCHEMA, metadata
from tandem.runtime.database import create_database_engine, migrate, newest_revision
from tandem.runtime.settings import DatabaseSettings


def test_migrations_make_the_tables_that_are_described(fresh_database: Callable[[], str]) -> None:
    settings = DatabaseSettings(url=SecretStr(fresh_database()))
    assert migrate(settings, MIGRATIONS, SCHEMA) == REVISION
    engine = create_database_engine(settings, name="test", pool_size=1)
    with engine.connect() as connection:
        # Only this schema's tables, and not the one in which alembic keeps the revision.
        context = MigrationContext.configure(
            connection,
            opts={
                "include_schemas": True,
                "include_name": lambda name, kind, parents: kind != "schema" or name == SCHEMA,
                "version_table_schema": SCHEMA,
                "compare_type": True,
                "compare_server_default": True,
                # PostgreSQL spells the expressions of generated columns in its own way; the searches' tests use them.
                "include_object": lambda it, _name, kind, _reflected, _other: kind != "column" or it.computed is None,
            },
        )
        assert compare_metadata(context, metadata) == []
    engine.dispose()


def test_the_revision_that_readers_ask_for_is_the_newest() -> None:
    assert newest_revision(MIGRATIONS) == REVISION
