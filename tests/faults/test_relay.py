"""A relay loses and doubles nothing: through kill -9, the death of brokers, brokers that stand still or come back with
less than they had.
"""

import asyncio
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from nats.js.errors import NotFoundError
from sqlalchemy import select

from tandem.cli.services import Service
from tandem.feed.table import event
from tandem.testing.ports import free_port
from tandem.testing.stack import kill, pause, resume, wait_until
from tests.integration.projector.conftest import Stores
from tests.support import events
from tests.support.forking import ForkedService
from tests.support.nats import NatsServer, cluster, connected, messages
from tests.support.stack import Databases

# What a relay may come to have in memory while brokers are away: what it has read, some times over.
_MOST_GROWTH = 48 * 2**20


@pytest.fixture
def stores(databases: Databases) -> Iterator[Stores]:
    write, read = databases.create("write"), databases.create("read")
    made = Stores(write, read)
    yield made
    made.close()
    for url in (write, read):
        databases.drop(url)


@contextmanager
def relays(
    stores: Stores, servers: list[NatsServer], folder: Path, count: int, replicas: int = 3
) -> Iterator[Sequence[Service]]:
    """So many processes, which serve."""
    names = ", ".join(f'"{it.url}"' for it in servers)
    started = [
        ForkedService(
            "relay",
            module="relay",
            port=free_port(),
            metrics_port=free_port(),
            log=folder / f"relay-{number}.log",
            settings={
                "FEED_DATABASE__URL": stores.write_url,
                "NATS__SERVERS": f"[{names}]",
                "NATS__REPLICAS": str(replicas),
                "NATS__ACK_SECONDS": "1",
                "RELAY__TAKEOVER_SECONDS": "0.5",
                "RELAY__CHECK_SECONDS": "0.3",
                "RELAY__RETRY_SECONDS": "0.1",
            },
        )
        for number in range(count)
    ]
    for it in started:
        it.launch()
    for it in started:
        it.wait_until_serving()
    try:
        yield started
    finally:
        codes = [(it.stop(), it.log_tail(60)) for it in started]
    bad = [log for code, log in codes if code != 0]
    assert not bad, "\n".join(bad)


class Load(threading.Thread):
    """Appends events, so many at once, until it is stopped."""

    def __init__(self, stores: Stores) -> None:
        super().__init__(daemon=True)
        self._stores = stores
        self._stopping = threading.Event()
        self.head = 0

    def run(self) -> None:
        while not self._stopping.wait(0.005):
            first = self.head + 1
            self.head = self._stores.append([events.product_added(it) for it in range(first, first + 5)])

    def more(self, count: int) -> None:
        wanted = self.head + count
        wait_until(lambda: self.head >= wanted, "events are stored")

    def stop(self) -> int:
        self._stopping.set()
        self.join()
        return self.head


def position(relay: Service) -> float:
    return relay.metric("tandem_relay_position")


def by_activity(one: Service, other: Service) -> Sequence[Service]:
    """The one that publishes, and the other one; none while it is not one of them."""
    active = [it for it in (one, other) if it.metric("tandem_relay_state", state="ACTIVE") == 1]
    return [*active, other if active == [one] else one] if len(active) == 1 else []


def stream_of(stores: Stores) -> str:
    epoch = stores.run("SELECT epoch FROM tandem_write.feed_head", "write")
    return f"tandem-{epoch.hex}"


def check(stores: Stores, servers: list[NatsServer]) -> None:
    """The stream is the feed: the same events at the same positions, each once."""
    found = asyncio.run(messages(servers, stream_of(stores)))
    with stores.write.connect() as connection:
        stored = connection.execute(select(event.c.position, event.c.mark).order_by(event.c.position)).all()
    assert [it.metadata.sequence.stream for it in found] == [it.position for it in stored]
    assert [(it.headers or {})["ce-id"] for it in found] == [f"{it.position}-{it.mark:x}" for it in stored]


def leader_of(stores: Stores, servers: list[NatsServer]) -> NatsServer:
    async def ask() -> str:
        async with connected(servers) as client:
            info = await client.jetstream().stream_info(stream_of(stores))
            assert info.cluster is not None
            return info.cluster.leader or ""

    name = wait_until(lambda: asyncio.run(ask()), "the stream has a leader")
    return servers[int(name.removeprefix("node"))]


def test_a_relay_misses_and_doubles_nothing_whatever_dies(stores: Stores, tmp_path: Path) -> None:
    with cluster(tmp_path) as servers, relays(stores, servers, tmp_path, 2) as [one, other]:
        load = Load(stores)
        load.start()
        load.more(200)

        # The relay that publishes is killed, and with it the server that leads the stream.
        active, standby = wait_until(lambda: by_activity(one, other), "one of them publishes")
        leader = leader_of(stores, servers)
        kill(active)
        kill(leader)
        before = load.head
        wait_until(lambda: position(standby) > before, "the other one goes on, with two servers", 40)
        active.launch()
        leader.launch()
        active.wait_until_serving()
        leader.wait_until_serving()

        # All of them stand still, for longer than an answer may take.
        memory = psutil.Process(standby.pid).memory_info().rss
        for server in servers:
            pause(server)
        wait_until(lambda: standby.metric("tandem_relay_state", state="AWAY") == 1, "it says that the broker is away")
        load.more(1000)
        assert standby.metric("tandem_relay_lag_seconds") > 0
        assert not standby.serves()
        assert psutil.Process(standby.pid).memory_info().rss < memory + _MOST_GROWTH
        for server in servers:
            resume(server)
        head = load.stop()
        wait_until(lambda: {position(one), position(other)} == {head}, "all is published", 60)
        wait_until(lambda: one.serves() and other.serves(), "they serve again")
        check(stores, servers)


def test_what_a_broker_has_lost_is_published_again(stores: Stores, tmp_path: Path) -> None:
    with cluster(tmp_path, 1) as [server], relays(stores, [server], tmp_path, 1, replicas=1) as [relay]:
        stores.append([events.product_added(it) for it in range(1, 11)])
        wait_until(lambda: position(relay) == 10, "ten are published")
        server.stop()
        kept = tmp_path / "kept"
        shutil.copytree(tmp_path / "node0", kept)
        server.start()
        stores.append([events.product_added(it) for it in range(11, 31)])
        wait_until(lambda: position(relay) == 30, "thirty are published")

        # It comes back with the disk of before.
        server.stop()
        shutil.rmtree(tmp_path / "node0")
        kept.rename(tmp_path / "node0")
        server.start()
        head = stores.append([events.product_added(it) for it in range(31, 33)])

        def all_there() -> bool:
            try:
                return len(asyncio.run(messages([server], stream_of(stores)))) == head
            except (NotFoundError, TimeoutError):
                return False

        wait_until(all_there, "all are there again", 40)
        check(stores, [server])
