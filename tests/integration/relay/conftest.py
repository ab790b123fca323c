"""Relays in this process, on a real feed and real brokers or emulators of them; the test writes the feed."""

import asyncio
import secrets
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from nats.aio.msg import Msg
from pydantic import SecretStr

from relay.settings import Settings
from shop.events import EVENTS
from tandem.feed.archive import Archive
from tandem.feed.source import FeedSource
from tandem.relay.cloud_events import CloudEvents
from tandem.relay.jetstream import stream_of
from tandem.relay.relaying import Relay, State
from tandem.relay.settings import RelaySettings
from tandem.relay.sinks import sink_of
from tandem.runtime.settings import DatabaseSettings
from tandem.testing.stack import until
from tests.integration.projector.conftest import Stores
from tests.support.brokers import Broker, Delivered, JetStream
from tests.support.eventbridge import MotoServer, moto
from tests.support.nats import NatsServer, cluster, messages
from tests.support.stack import Databases


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[NatsServer]]:
    """Three, with JetStream among them. A test that ends one starts it again."""
    with cluster(tmp_path_factory.mktemp("nats")) as started:
        yield started


@pytest.fixture(scope="session")
def aws() -> Iterator[MotoServer]:
    """An emulator of AWS. It takes seconds to start, so it is one for all tests."""
    with moto() as server:
        yield server


@pytest.fixture
def stores(databases: Databases) -> Iterator[Stores]:
    """A feed; nobody reads the views."""
    write, read = databases.create("write"), databases.create("read")
    made = Stores(write, read)
    yield made
    made.close()
    for url in (write, read):
        databases.drop(url)


class Relays:
    """Makes relays of one feed to one broker."""

    def __init__(self, stores: Stores, broker: Broker, archive: Path | None = None) -> None:
        self._stores = stores
        self._broker = broker
        self._archive = archive
        self.prefix = f"t{secrets.token_hex(6)}"

    def new(self, name: str = "one", *, broker: dict[str, Any] | None = None, **settings: Any) -> Relay:
        """settings: of the relay's. broker: of the broker's."""
        chosen = Settings(
            feed_database=DatabaseSettings(url=SecretStr(self._stores.write_url)),
            relay=RelaySettings(**{"takeover_seconds": 0.4, "check_seconds": 0.2, "retry_seconds": 0.05, **settings}),
            **self._broker.settings(self.prefix, **(broker or {})),
        )
        source = FeedSource(
            chosen.feed_database, EVENTS, name="tandem-relay", poll_seconds=0.05, archive=Archive(self._archive)
        )
        opened = chosen.relay.personal_data == "opened"
        sink = sink_of(
            chosen.relay,
            name,
            EVENTS.message,
            nats=chosen.nats,
            kafka=chosen.kafka,
            eventbridge=chosen.eventbridge,
        )
        return Relay(source, CloudEvents(EVENTS, "/shop", opened=opened), sink, chosen.relay, name)

    @asynccontextmanager
    async def running(self, *relays: Relay) -> AsyncIterator[None]:
        for it in relays:
            await it.start()
        try:
            yield
        finally:
            for it in relays:
                await it.stop()

    @property
    def epoch(self) -> uuid.UUID:
        epoch: uuid.UUID = self._stores.run("SELECT epoch FROM tandem_write.feed_head", "write")
        return epoch

    async def reached(self, relay: Relay, position: int) -> None:
        async def there() -> bool:
            return relay.position >= position and relay.lag_seconds == 0

        await until(there, f"the broker is at {position}", seconds=60)

    async def says(self, relay: Relay, state: State, problem: str = "") -> None:
        async def so() -> bool:
            return relay.state is state and problem in relay.problem

        await until(so, f"the relay is {state.value}: {problem}", seconds=30)

    async def delivered(self) -> list[Delivered]:
        """What a consumer is sent, by position; of each aggregate in order, each event once."""
        found = await self.sent()
        last: dict[str, int] = {}
        for it in found:
            assert it.position > last.get(it.key, 0), "the events of one aggregate are in order"
            last[it.key] = it.position
        return sorted(found, key=lambda it: it.position)

    async def sent(self) -> list[Delivered]:
        """The same, as it comes."""
        return await self._broker.delivered(self.prefix, self.epoch)

    async def delete(self) -> None:
        await self._broker.delete(self.prefix, self.epoch)


class StreamRelays(Relays):
    """Of NATS JetStream."""

    def __init__(self, stores: Stores, servers: list[NatsServer], archive: Path | None = None) -> None:
        super().__init__(stores, JetStream(servers), archive)
        self.servers = servers

    @property
    def stream(self) -> str:
        return stream_of(self.prefix, self.epoch)

    async def messages(self) -> list[Msg]:
        """What a consumer gets of the stream; their sequences are the feed's positions from 1 on."""
        found = await asyncio.to_thread(asyncio.run, messages(self.servers, self.stream))
        assert [it.metadata.sequence.stream for it in found] == list(range(1, len(found) + 1))
        return found


@pytest.fixture
def relays(stores: Stores, servers: list[NatsServer]) -> Callable[..., StreamRelays]:
    """Makes Relays; of other servers where they are named."""
    return lambda others=None, archive=None: StreamRelays(stores, others or servers, archive)
