"""Databases as they were while the engine's migrations and the shop's were one line."""

from pathlib import Path

from tandem.runtime.database import transaction
from tandem.runtime.migrations import Schema, migrate
from tandem.runtime.settings import DatabaseSettings


def migrate_as_one_line(settings: DatabaseSettings, scripts: Path, schema: Schema, revision: str) -> None:
    """Brings an empty database to a revision of the one line, with what both lines had there, and one version table."""
    assert schema.engine is not None
    alone = Schema(schema.name)
    for line in (schema.engine, scripts):
        last = max(it.name[:4] for it in (line / "versions").glob("[0-9]*.py") if it.name[:4] <= revision)
        with transaction(settings, "test") as connection:
            connection.exec_driver_sql(f"DROP TABLE IF EXISTS {schema.name}.alembic_version")
        migrate(settings, line, alone, last)
    with transaction(settings, "test") as connection:
        connection.exec_driver_sql(f"UPDATE {schema.name}.alembic_version SET version_num = '{revision}'")
