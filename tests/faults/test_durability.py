"""G1: an acknowledged command is on disk, also where the server's own setting would let it wait."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tandem.cli.embedded import Postgres
from tandem.testing.ports import free_port
from tandem.testing.stack import kill
from tests.integration.command_server.conftest import Commands, submit, write_database
from tests.support.builders import register_customer
from tests.support.stack import Databases


@pytest.fixture
def careless() -> Iterator[Postgres]:
    """A PostgreSQL that acknowledges first and writes seconds later."""
    with tempfile.TemporaryDirectory(prefix="tandem-test-") as folder:
        settings = {"synchronous_commit": "off", "wal_writer_delay": "10s"}
        server = Postgres(Path(folder) / "data", free_port(), settings=settings)
        server.start()
        yield server
        server.stop()


async def test_an_acknowledged_command_survives_a_crash_of_a_database_that_would_write_it_later(
    careless: Postgres,
) -> None:
    with write_database(Databases(careless)) as database:
        commands = Commands(database.settings)
        await submit(await commands.executor(), register_customer())
        kill(careless)
        careless.start()
        await commands.stop()
        # The sessions of before the crash are gone.
        database.engine.dispose()
        assert [kind for _, kind, _ in database.events()] == ["customer_registered"]
