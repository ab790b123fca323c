"""What a feed that is read from a stream goes through: brokers that die, and one that comes back with less."""

import shutil
from collections.abc import Callable
from pathlib import Path

from tandem.testing.stack import kill, wait_until
from tests.integration.projector.conftest import Stores
from tests.integration.relay.conftest import StreamRelays
from tests.integration.relay.test_feeds import NEVER, StreamFeeds, head_of, history, read_all
from tests.support.nats import NatsServer, cluster


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
