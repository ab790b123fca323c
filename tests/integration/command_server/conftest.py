"""A migrated write database for each test, and an executor on it."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from google.protobuf.message import Message
from pydantic import SecretStr
from sqlalchemy import Engine, text

from command_server.command import Receipt
from command_server.executor import Executor, create_lanes_engine
from command_server.settings import ExecutorSettings
from shop.events import EVENTS
from tandem.feed.reader import read_events
from tandem.runtime.database import create_database_engine
from tandem.runtime.settings import DatabaseSettings
from tests.support.builders import command
from tests.support.stack import Databases


@dataclass(frozen=True)
class WriteDatabase:
    """`engine` is the test's own, beside those of the executors under test."""

    settings: DatabaseSettings
    engine: Engine

    def events(self) -> list[tuple[int, str, bytes]]:
        """(position, kind, event), with the personal data opened: sealing is another one each time."""
        with self.engine.connect() as connection:
            found = read_events(connection, EVENTS, 0, 100_000)
        return [(it.position, it.kind, it.event.SerializeToString(deterministic=True)) for it in found]


@contextmanager
def write_database(databases: Databases) -> Iterator[WriteDatabase]:
    url = databases.create("write")
    settings = DatabaseSettings(url=SecretStr(url))
    engine = create_database_engine(settings, name="test", pool_size=5)
    try:
        yield WriteDatabase(settings, engine)
    finally:
        engine.dispose()
        databases.drop(url)


@pytest.fixture
def database(databases: Databases) -> Iterator[WriteDatabase]:
    with write_database(databases) as made:
        yield made


class Commands:
    """Executors on a database, and a way to send commands through them."""

    def __init__(self, settings: DatabaseSettings) -> None:
        self._settings = settings
        self._started: list[Executor] = []

    async def executor(self, settings: DatabaseSettings | None = None, **changes: Any) -> Executor:
        # One lane: commands that are submitted together are decided in their order.
        chosen = ExecutorSettings(**{"lanes": 1, **changes})
        executor = Executor(create_lanes_engine(settings or self._settings, chosen.lanes), chosen)
        await executor.start()
        self._started.append(executor)
        return executor

    async def stop(self) -> None:
        for executor in self._started:
            await executor.stop()


@pytest.fixture
async def commands_on(database: WriteDatabase) -> AsyncIterator[Commands]:
    commands = Commands(database.settings)
    yield commands
    await commands.stop()


async def submit(executor: Executor, request: Message, *, seconds: float = 20) -> Receipt:
    return await executor.submit(command(request), time.monotonic() + seconds)


async def submit_all(executor: Executor, requests: Sequence[Message]) -> list[Receipt | BaseException]:
    """All at once, in order: they form batches."""
    return await asyncio.gather(*(submit(executor, it) for it in requests), return_exceptions=True)


async def until_blocked(database: WriteDatabase, *, sessions: int = 1) -> None:
    """Until that many other sessions wait for a lock that the test holds."""
    deadline = time.monotonic() + 10
    query = text(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    while time.monotonic() < deadline:
        with database.engine.connect() as connection:
            if connection.execute(query).scalar_one() >= sessions:
                return
        await asyncio.sleep(0.01)
    raise AssertionError("nothing waits for the lock")
