"""A migration is written from what alembic says that a real database lacks."""

from collections.abc import Callable

from pydantic import SecretStr
from sqlalchemy import Column, Index, MetaData, Table, Text, Uuid, text

from tandem.runtime.database import create_database_engine
from tandem.runtime.settings import DatabaseSettings
from tandem.testing.migrations import differences, migration_of


def test_a_new_table_is_made_with_its_indexes(fresh_database: Callable[[], str]) -> None:
    described = MetaData(schema="reads")
    table = Table("rating", described, Column("key", Uuid, primary_key=True), Column("word", Text, nullable=False))
    Index("rating_word", table.c.word.desc(), table.c.key)
    engine = create_database_engine(DatabaseSettings(url=SecretStr(fresh_database())), name="test", pool_size=1)
    with engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA reads"))
        written = migration_of(differences(connection, "reads", described), described, "reads", "0002", "0001")
    engine.dispose()
    assert "CREATE TABLE {S}.rating (" in written
    assert "CREATE INDEX rating_word ON {S}.rating (word DESC, key)" in written
