"""Databases as earlier versions left them."""

from pathlib import Path

import alembic.command
from alembic.config import Config
from sqlalchemy import text

from tandem.runtime.database import create_database_engine
from tandem.runtime.settings import DatabaseSettings


def migrate_to(revision: str, settings: DatabaseSettings, scripts: Path, schema: str) -> None:
    """Brings a new database to a revision that is not the newest."""
    engine = create_database_engine(settings, name="test", pool_size=1)
    with engine.begin() as connection:
        connection.execute(text(f'CREATE SCHEMA "{schema}"'))
        config = Config()
        config.set_main_option("script_location", str(scripts))
        config.attributes["connection"] = connection
        config.attributes["schema"] = schema
        alembic.command.upgrade(config, revision)
    engine.dispose()
