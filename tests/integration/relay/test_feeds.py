"""A feed is the same wherever it is read, in the table or in the relay's stream: order, gaps, epochs, histories."""

import asyncio
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import pytest
from nats.js.api import StreamConfig
from nats.js.errors import ServerError
from pydantic import SecretStr

from commerce.event.v1.event_pb2 import Event
from shop.events import EVENTS
from tandem.commands.maintenance import begin_epoch
from tandem.feed.events import FeedEvent
from tandem.feed.reader import BrokenOff, EventsMissing, HistoryChanged, OtherEpoch
from tandem.feed.source import Feed, FeedSource
from tandem.internal.v1.stored_pb2 import Envelope
from tandem.relay.jetstream import EPOCH, FIRST, PERSONAL_DATA
from tandem.relay.relaying import Relay
from tandem.relay.settings import NatsSettings
from tandem.relay.stream_feed import StreamFeed
from tandem.runtime.settings import DatabaseSettings
from tandem.testing.stack import wait_until
from tests.integration.projector.conftest import Stores
from tests.integration.relay.conftest import StreamRelays
from tests.support import events
from tests.support.nats import connected

T = TypeVar("T")

NEVER = threading.Event()


class Running:
    """A relay on a thread of its own, until it is stopped."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(relay.start(), self._loop).result()

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._relay.stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class TableFeeds:
    """Feeds of the table."""

    def __init__(self, stores: Stores) -> None:
        self.stores = stores

    def new(self) -> Feed:
        database = DatabaseSettings(url=SecretStr(self.stores.write_url))
        return FeedSource(database, EVENTS, name="test", poll_seconds=0.2)

    def begin(self, first: int = 1) -> None:
        """With the events that there are, from a position on."""
        self.stores.run(f"DELETE FROM tandem_write.event WHERE position < {first}", "write")

    def begin_without(self, position: int) -> None:
        """With all events that there are but one."""
        self.stores.run(f"DELETE FROM tandem_write.event WHERE position = {position}", "write")

    def stop(self) -> None:
        """Nothing runs."""


class StreamFeeds(TableFeeds):
    """Feeds of the stream that a relay fills."""

    def __init__(self, stores: Stores, relays: StreamRelays) -> None:
        super().__init__(stores)
        self._relays = relays
        self._running: Running | None = None

    def new(self, at: str = "") -> Feed:
        """at: the URL where it is read, instead of at the servers themselves."""
        servers = (at,) if at else tuple(it.url for it in self._relays.servers)
        settings = NatsSettings(servers=servers, stream=self._relays.prefix, ack_seconds=2)
        return StreamFeed(settings, EVENTS, name="test", poll_seconds=0.2)

    def begin(self, first: int = 1) -> None:
        self.stop()
        replicas = min(3, len(self._relays.servers))
        self._running = Running(self._relays.new(first_position=first, broker={"replicas": replicas}))

    def begin_without(self, position: int) -> None:
        """Deleted from a stream that denies nothing."""

        async def make() -> None:
            async with connected(self._relays.servers) as client:
                subjects = [f"{self._relays.prefix}.{self._relays.epoch.hex}.>"]
                metadata = {EPOCH: str(self._relays.epoch), FIRST: "1", PERSONAL_DATA: "sealed"}
                config = StreamConfig(name=self._relays.stream, subjects=subjects, metadata=metadata)
                await client.jetstream().add_stream(config)

        async def delete() -> bool:
            async with connected(self._relays.servers) as client:
                try:
                    return await client.jetstream().delete_msg(self._relays.stream, position)
                except ServerError:
                    # What it has not written yet it cannot read.
                    return False

        asyncio.run(make())
        self.begin()
        feed = self.new()
        read_all(feed)
        feed.close()
        wait_until(lambda: asyncio.run(delete()), "it is deleted")

    def stop(self) -> None:
        if self._running is not None:
            self._running.stop()
            self._running = None


@pytest.fixture(params=["table", "stream"])
def feeds(request: pytest.FixtureRequest, stores: Stores, relays: Callable[..., StreamRelays]) -> Iterator[TableFeeds]:
    made = TableFeeds(stores) if request.param == "table" else StreamFeeds(stores, relays())
    yield made
    made.stop()


@pytest.fixture
def feed(feeds: TableFeeds) -> Iterator[Feed]:
    made = feeds.new()
    yield made
    made.close()


def history(first: int, last: int) -> list[Event]:
    return [events.customer_registered(number) for number in range(first, last + 1)]


def answered(ask: Callable[[], T | None], what: str) -> T:
    """What is answered once it is not None."""
    found = wait_until(ask, what)
    assert found is not None
    return found


def head_of(feed: Feed, position: int, epoch: uuid.UUID | None = None) -> uuid.UUID:
    """The epoch, once the feed is that far."""

    def there() -> uuid.UUID | None:
        head = feed.head()
        far = head is not None and head.position == position and epoch in {None, head.epoch}
        return head.epoch if head is not None and far else None

    return answered(there, f"the feed is at {position}: {feed.problem}")


def read_all(feed: Feed, *, after: int = 0, mark: int = 0, size: int = 100, most: int = 0) -> list[FeedEvent]:
    """What follows a position, up to the head or so many. Each part with the mark before it."""
    found: list[FeedEvent] = []
    head = answered(feed.head, "there is a feed")
    while after < (most or answered(feed.head, "it is there").position):
        part = answered(partial(feed.events, after, size, head.epoch, mark), f"it can be read: {feed.problem}")
        assert [it.position for it in part.events] == list(range(after + 1, after + 1 + len(part.events)))
        assert len(part.events) <= size
        found += part.events
        if part.events:
            assert part.head >= part.events[-1].position
            after, mark = part.events[-1].position, part.events[-1].mark
        else:
            feed.wait(NEVER)
    return found


def as_stored(found: Sequence[FeedEvent]) -> list[tuple[Any, ...]]:
    return [(it.position, it.mark, it.kind, it.envelope, it.sealed()) for it in found]


def test_all_events_come_in_order_and_once_as_they_were_stored(stores: Stores, feeds: TableFeeds, feed: Feed) -> None:
    stores.append(history(1, 10), Envelope(request_id="r", actor="a b", correlation_id="c"))
    stores.append([events.product_added(it) for it in range(1, 11)])
    feeds.begin()
    head_of(feed, 20)
    found = read_all(feed, size=7)
    assert as_stored(found) == as_stored(stores.events())
    # From the beginning again, as a rebuild does, while the end is followed.
    at, mark = found[-1].position, found[-1].mark
    for number in range(11, 14):
        head = stores.append(history(number, number))
        assert len(read_all(feed, most=5, size=5)) == 5
        [last] = read_all(feed, after=at, mark=mark, most=head)
        at, mark = last.position, last.mark
    assert [it.position for it in read_all(feed, after=3, mark=found[2].mark, size=2, most=9)] == [4, 5, 6, 7, 8, 9]
    epoch = head_of(feed, at)
    scanned = answered(lambda: feed.scan(5, 20, 100, epoch, kinds=["product_added"]), "it is looked through")
    assert [it.position for it in scanned.events] == list(range(11, 21))
    assert scanned.until == 20


def test_whoever_waits_learns_of_the_next_event(stores: Stores, feeds: TableFeeds, feed: Feed) -> None:
    stores.append(history(1, 3))
    feeds.begin()
    epoch = head_of(feed, 3)
    last = read_all(feed)[-1]
    assert answered(lambda: feed.events(3, 10, epoch, last.mark), "there is nothing").events == []
    threading.Timer(0.05, lambda: stores.append(history(4, 4))).start()

    def next_one() -> list[FeedEvent]:
        feed.wait(NEVER)
        part = feed.events(3, 10, epoch, last.mark)
        return part.events if part is not None else []

    assert [it.position for it in wait_until(next_one, "the next event")] == [4]


def test_another_history_is_found_out(stores: Stores, feeds: TableFeeds, feed: Feed) -> None:
    stores.append(history(1, 20))
    feeds.begin()
    epoch = head_of(feed, 20)
    found = read_all(feed)
    assert feed.events(12, 0, epoch, found[11].mark) is not None
    for limit in (0, 5):
        with pytest.raises(HistoryChanged):
            feed.events(12, limit, epoch, found[11].mark + 1)

    # A failover that lost the last five, and a new epoch.
    stores.run("DELETE FROM tandem_write.event WHERE position > 15", "write")
    stores.run("UPDATE tandem_write.feed_head SET position = 15", "write")
    with stores.write.begin() as connection:
        later = begin_epoch(connection)
    stores.append(history(31, 32))
    head_of(feed, 17, later)
    with pytest.raises(OtherEpoch):
        feed.events(20, 5, epoch, found[19].mark)
    assert feed.ended_epochs() == frozenset((epoch,))
    # What both histories have goes on, what was lost does not.
    part = answered(lambda: feed.events(15, 5, later, found[14].mark), "it goes on")
    assert [it.position for it in part.events] == [16, 17]
    for position in (16, 20):
        with pytest.raises(HistoryChanged):
            feed.events(position, 0, later, found[position - 1].mark)


def test_what_is_missing_is_not_passed_over(stores: Stores, feeds: TableFeeds, feed: Feed) -> None:
    stores.append(history(1, 20))
    feeds.begin_without(10)
    epoch = head_of(feed, 20)
    found = missing(feed, epoch, 4)
    assert (found.after, found.oldest, found.dropped) == (9, 11, False)
    part = answered(lambda: feed.events(10, 100, epoch, 0), "who is behind it reads on")
    assert [it.position for it in part.events] == list(range(11, 21))


def test_a_feed_whose_beginning_is_gone_says_where_it_begins(stores: Stores, feeds: TableFeeds, feed: Feed) -> None:
    stores.append(history(1, 10))
    feeds.begin(first=6)
    epoch = head_of(feed, 10)
    found = missing(feed, epoch, 0)
    assert (found.oldest, found.dropped) == (6, True)
    part = answered(lambda: feed.events(5, 100, epoch, 0), "the rest is read")
    assert [it.position for it in part.events] == [6, 7, 8, 9, 10]


def missing(feed: Feed, epoch: uuid.UUID, after: int) -> EventsMissing:
    """What it says of events that are not there."""

    def read() -> BrokenOff | None:
        try:
            feed.events(after, 100, epoch, 0)
        except EventsMissing as error:
            return error
        return None

    found = answered(read, "it says that events are missing")
    assert isinstance(found, EventsMissing)
    return found
