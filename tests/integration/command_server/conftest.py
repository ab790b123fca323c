"""A migrated write database for each test, and an executor on it."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from google.protobuf.message import Message
from pydantic import SecretStr
from sqlalchemy import Engine, text

from command_server.app import DOMAIN
from shop.events import EVENTS
from tandem.commands.acknowledged import Acknowledged
from tandem.commands.executor import Executor, create_executor_engine
from tandem.commands.ledger import Ledger
from tandem.commands.settings import ExecutorSettings
from tandem.feed.events import FeedEvent
from tandem.feed.token import decode_token
from tandem.reactions.reaction import Reaction
from tandem.runtime.call import LocalCall, Metadata, Method
from tandem.runtime.database import create_database_engine
from tandem.runtime.settings import DatabaseSettings
from tests.integration.command_server.reacting import MakeReacting, Reacting, of_shop, wall_clock
from tests.support.builders import NOW, add_product, register_customer
from tests.support.stack import Databases


@dataclass(frozen=True)
class WriteDatabase:
    """`engine` is the test's own, beside those of the executors under test."""

    settings: DatabaseSettings
    engine: Engine

    def events(self) -> list[tuple[int, str, bytes]]:
        """(position, kind, event), with the personal data opened: sealing is another one each time."""
        found = self.feed()
        return [(it.position, it.kind, it.event.SerializeToString(deterministic=True)) for it in found]

    def feed(self) -> list[FeedEvent]:
        with self.engine.connect() as connection:
            # Tests of migrations leave positions out, which nobody who follows the feed passes over.
            rows = connection.execute(
                text(
                    "SELECT position, kind, payload, (SELECT key FROM tandem_write.subject_key AS k"
                    " WHERE k.subject_id = e.subject_id), envelope, version, (SELECT payload FROM"
                    " tandem_write.event_supplement AS s WHERE s.position = e.position), mark"
                    " FROM tandem_write.event AS e ORDER BY position"
                )
            )
            return [FeedEvent(EVENTS, *row) for row in rows]


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

    async def executor(
        self,
        settings: DatabaseSettings | None = None,
        clock: Callable[[], datetime] = lambda: NOW,
        acknowledged: Acknowledged | None = None,
        ledger: Ledger | None = None,
        **changes: Any,
    ) -> Executor:
        # One thread: commands that are submitted together are decided in their order.
        chosen = ExecutorSettings(**{"threads": 1, **changes})
        engine = create_executor_engine(settings or self._settings, chosen)
        known = acknowledged or Acknowledged(kept_seconds=600)
        executor = Executor(engine, DOMAIN, chosen, known, ledger or Ledger(None), clock=clock)
        await executor.start()
        self._started.append(executor)
        return executor

    async def stop_one(self, executor: Executor) -> None:
        self._started.remove(executor)
        await executor.stop()

    async def stop(self) -> None:
        for executor in self._started:
            await executor.stop()


@pytest.fixture
async def commands_on(database: WriteDatabase) -> AsyncIterator[Commands]:
    commands = Commands(database.settings)
    yield commands
    await commands.stop()


class Receipt(NamedTuple):
    """What a response says of a command."""

    subject_id: str
    position: int
    version: int
    epoch: UUID
    mark: int
    replayed: bool


def call_of(request: Message, *, seconds: float = 20, metadata: Metadata = ()) -> LocalCall:
    """A command's call, as a transport would make it."""
    # The caller's message, which it may send again and change, is not the server's.
    received = type(request).FromString(request.SerializeToString())
    return LocalCall(Method(type(request).__name__, type(request)), received, seconds=seconds, metadata=metadata)


async def submit(executor: Executor, request: Message, *, seconds: float = 20, metadata: Metadata = ()) -> Receipt:
    call = call_of(request, seconds=seconds, metadata=metadata)
    executor.put_all([call])
    response = await asyncio.wrap_future(call.future)
    subject_id = getattr(response, DOMAIN.kinds[type(request)].aggregate.id_field)
    proof = response.receipt
    token = decode_token(proof.consistency_token)
    return Receipt(subject_id, proof.position, proof.version, token.epoch, token.mark, proof.replayed)


async def submit_all(executor: Executor, requests: Sequence[Message]) -> list[Receipt | BaseException]:
    """All at once, in order: they form batches."""
    return await asyncio.gather(*(submit(executor, it) for it in requests), return_exceptions=True)


async def until_blocked(database: WriteDatabase, *, sessions: int = 1) -> None:
    """Until that many other sessions wait for a lock that the test holds."""
    deadline = time.monotonic() + 20
    query = text(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    while time.monotonic() < deadline:
        with database.engine.connect() as connection:
            if connection.execute(query).scalar_one() >= sessions:
                return
        await asyncio.sleep(0.01)
    raise AssertionError("nothing waits for the lock")


@pytest.fixture
async def reacting(database: WriteDatabase) -> AsyncIterator[MakeReacting]:
    made: list[Reacting] = []

    def make(executor: Any, some: Sequence[Reaction] | None = None, **settings: Any) -> Reacting:
        chosen = of_shop(database.settings) if some is None else some
        made.append(Reacting(settings.pop("database", database.settings), executor, chosen, **settings))
        return made[-1]

    yield make
    for it in made:
        await it.component.stop()


async def running_executor(commands_on: Commands) -> Executor:
    executor = await commands_on.executor(clock=wall_clock)
    await submit(executor, register_customer())
    await submit(executor, add_product(1, stock=100))
    return executor
