"""What a feed that is read from a stream goes through: brokers that die or lose something, and lines that break."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from tandem.testing.stack import kill, wait_until
from tests.integration.projector.conftest import Stores
from tests.integration.relay.conftest import StreamRelays
from tests.integration.relay.test_feeds import NEVER, StreamFeeds, head_of, history, read_all
from tests.support.nats import NatsServer, cluster
from tests.support.proxy import CuttingProxy


def test_it_goes_on_when_a_server_dies_and_its_consumer_with_it(
    stores: Stores, relays: Callable[..., StreamRelays], servers: list[NatsServer]
) -> None:
    feeds = StreamFeeds(stores, relays())
    stores.append(history(1, 10))
    feeds.begin()
    feed = feeds.new()
    head_of(feed, 10)
    found = read_all(feed)
    for server in servers[:2]:
        # One of them had the consumer or the connection.
        kill(server)
        head = stores.append(history(len(found) + 1, len(found) + 10))
        found += read_all(feed, after=len(found), mark=found[-1].mark, most=head)
        server.start()
    feed.close()
    feeds.stop()
    assert [(it.position, it.mark) for it in found] == [(it.position, it.mark) for it in stores.events()]


def test_a_line_that_breaks_again_and_again_is_read_on_without_a_gap(
    stores: Stores, relays: Callable[..., StreamRelays], tmp_path: Path
) -> None:
    with cluster(tmp_path, 1) as [server]:
        feeds = StreamFeeds(stores, relays([server]))
        stores.append(history(1, 10))
        feeds.begin()
        line = CuttingProxy(("127.0.0.1", server.port))
        feed = feeds.new(f"nats://127.0.0.1:{line.port}")
        epoch = head_of(feed, 10)
        found = read_all(feed)

        # The server is not told: what it sends next goes to a connection that is gone.
        for number in range(11, 41):
            stores.append(history(number, number))
            if number % 5 == 0:
                line.cut_clients()
            feed.wait(NEVER)
            part = feed.events(len(found), 100, epoch, found[-1].mark)
            found += part.events if part is not None else []
        found += read_all(feed, after=len(found), mark=found[-1].mark, most=40)
        feed.close()
        feeds.stop()
        line.close()
    assert [(it.position, it.mark) for it in found] == [(it.position, it.mark) for it in stores.events()]


def test_a_broker_that_was_away_for_long_is_read_on(
    stores: Stores, relays: Callable[..., StreamRelays], tmp_path: Path
) -> None:
    with cluster(tmp_path, 1) as [server]:
        feeds = StreamFeeds(stores, relays([server]))
        stores.append(history(1, 10))
        feeds.begin()
        follower, asker = feeds.new(), feeds.new()
        epoch = head_of(follower, 10)
        found = read_all(follower)
        assert asker.head() is not None
        kill(server)
        stores.append(history(11, 15))

        def follow() -> int:
            """As a projector does."""
            follower.wait(NEVER)
            part = follower.events(len(found), 100, epoch, found[-1].mark)
            found.extend(part.events if part is not None else [])
            return len(found)

        # Longer than one attempt to connect.
        away_until = time.monotonic() + 3
        wait_until(lambda: follow() and time.monotonic() > away_until, "it is away")
        assert len(found) == 10
        assert "NATS is away" in follower.problem
        server.start()
        wait_until(lambda: follow() == 15, "who follows reads on", 15)
        # Who does nothing but ask, and never waits.
        wait_until(lambda: (head := asker.head()) is not None and head.position == 15, "who asks has an answer", 15)
        for it in (follower, asker):
            it.close()
        feeds.stop()


def test_a_stream_that_lost_its_end_is_waited_for(
    stores: Stores, relays: Callable[..., StreamRelays], tmp_path: Path
) -> None:
    with cluster(tmp_path, 1) as [server]:
        feeds = StreamFeeds(stores, relays([server]))
        stores.append(history(1, 10))
        feeds.begin()
        feed = feeds.new()
        epoch = head_of(feed, 10)
        server.stop()
        shutil.copytree(tmp_path / "node0", tmp_path / "kept")
        server.start()
        stores.append(history(11, 30))
        head_of(feed, 30)
        found = read_all(feed)

        # It comes back with the disk of before, and no relay runs yet.
        feeds.stop()
        server.stop()
        shutil.rmtree(tmp_path / "node0")
        (tmp_path / "kept").rename(tmp_path / "node0")
        server.start()
        stores.append(history(31, 40))

        def is_waited_for() -> bool:
            feed.wait(NEVER)
            part = feed.events(30, 100, epoch, found[-1].mark)
            assert part is None or not part.events
            return "it is being filled" in feed.problem

        wait_until(is_waited_for, "it says that the stream is behind", 30)
        feeds.begin()
        found += read_all(feed, after=30, mark=found[-1].mark, most=40)
        feed.close()
        feeds.stop()
    assert [(it.position, it.mark) for it in found] == [(it.position, it.mark) for it in stores.events()]
