"""A write database that takes no writes for a while: no connection of that time outlives it.

A session keeps the default that it began with. So is one to a server that was demoted, behind an address that leads to
another server by now.
"""

import pytest
from sqlalchemy import text

from command_server.app import MIGRATIONS
from tandem.feed.table import WRITE
from tandem.runtime.database import create_database_engine
from tandem.runtime.errors import Unavailable
from tandem.runtime.migrations import has_revision, newest_revision
from tests.integration.command_server.conftest import Commands, Receipt, WriteDatabase, submit, submit_all
from tests.support.builders import register_customer


def set_read_only(database: WriteDatabase, on: str) -> None:
    """For the sessions that begin from now on."""
    with database.engine.begin() as connection:
        name = connection.execute(text("SELECT current_database()")).scalar_one()
        connection.execute(text(f'ALTER DATABASE "{name}" SET default_transaction_read_only = {on}'))


async def test_commands_are_stored_as_soon_as_a_server_takes_writes_again(
    database: WriteDatabase, commands_on: Commands
) -> None:
    set_read_only(database, "on")
    executor = await commands_on.executor(threads=2, retry_seconds=0.2)
    with pytest.raises(Unavailable) as raised:
        await submit(executor, register_customer())
    assert raised.value.reason == "STORE_UNAVAILABLE", "nothing was done, for sure"
    set_read_only(database, "off")
    outcomes = await submit_all(executor, [register_customer(it) for it in range(2, 22)])
    assert [type(it) for it in outcomes] == [Receipt] * 20


def test_a_server_is_not_ready_while_its_database_takes_no_writes(database: WriteDatabase) -> None:
    revision = newest_revision(MIGRATIONS)
    engine = create_database_engine(database.settings, name="test", pool_size=1)
    try:
        assert has_revision(engine, WRITE, revision, writing=True)
        engine.dispose()
        set_read_only(database, "on")
        assert not has_revision(engine, WRITE, revision, writing=True)
        assert has_revision(engine, WRITE, revision), "for who reads it is ready"
        engine.dispose()
        assert not has_revision(engine, WRITE, revision, writing=True)
        set_read_only(database, "off")
        assert has_revision(engine, WRITE, revision, writing=True), "on another connection"
    finally:
        engine.dispose()
