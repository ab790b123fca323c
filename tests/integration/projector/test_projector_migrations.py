from collections.abc import Callable

import psycopg
import pytest
from pydantic import SecretStr
from sqlalchemy import make_url
from sqlalchemy.exc import DBAPIError

from projector.app import MIGRATIONS
from shop.views import REVISION
from tandem.read_store.tables import READ, SCHEMA, metadata
from tandem.runtime.database import create_database_engine
from tandem.runtime.migrations import migrate
from tandem.runtime.settings import DatabaseSettings
from tandem.testing.migrations import differences


def test_migrations_make_the_tables_that_are_described(fresh_database: Callable[[], str]) -> None:
    settings = DatabaseSettings(url=SecretStr(fresh_database()))
    assert migrate(settings, MIGRATIONS, READ) == REVISION
    engine = create_database_engine(settings, name="test", pool_size=1)
    with engine.connect() as connection:
        assert differences(connection, SCHEMA, metadata) == []
    engine.dispose()


def test_the_owner_of_the_database_may_migrate_without_being_a_superuser(fresh_database: Callable[[], str]) -> None:
    url = make_url(fresh_database())
    role = f"owner_of_{url.database}"
    with psycopg.connect(url.render_as_string(hide_password=False), autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN")
        connection.execute(f"ALTER DATABASE {url.database} OWNER TO {role}")
        theirs = url.set(username=role).render_as_string(hide_password=False)
        assert migrate(DatabaseSettings(url=SecretStr(theirs)), MIGRATIONS, READ) == REVISION
        connection.execute(f"REASSIGN OWNED BY {role} TO postgres")
        connection.execute(f"DROP OWNED BY {role}")
        connection.execute(f"DROP ROLE {role}")


def test_an_extension_that_is_where_no_search_finds_it_is_named(fresh_database: Callable[[], str]) -> None:
    url = fresh_database()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute('CREATE SCHEMA "somebody\'s"')
        connection.execute('CREATE EXTENSION unaccent SCHEMA "somebody\'s"')
    with pytest.raises(DBAPIError, match='the extension unaccent is in the schema "somebody\'s"'):
        migrate(DatabaseSettings(url=SecretStr(url)), MIGRATIONS, READ)
