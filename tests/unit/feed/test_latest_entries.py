"""The latest events in memory: bounded, without a gap, and blank where a person was erased."""

import random
import uuid

import pytest

from commerce.feed.v1.feed_service_pb2 import SubscribeResponse
from shop.events import EVENTS
from tandem.feed.live import Entry, EntryReader, LatestEntries
from tests.support import events
from tests.support.builders import identity

EPOCH = uuid.uuid4()
PLENTY = 10**9
READER = EntryReader(EVENTS, SubscribeResponse.DESCRIPTOR, erased_kind="customer_erased")


def entries(first: int, last: int, size: int = 10) -> list[Entry]:
    return [Entry(position, "kind", item=b"x" * size) for position in range(first, last + 1)]


def held(latest: LatestEntries) -> list[int]:
    return [entry.position for entry in latest.after(latest.first - 1, PLENTY)]


def test_a_ring_that_knows_nothing_covers_nothing() -> None:
    latest = LatestEntries(READER, 10, PLENTY)
    assert not any(latest.covers(position) for position in (0, 1, 100))


def test_a_ring_begins_at_the_head_and_covers_what_comes_after_it() -> None:
    latest = LatestEntries(READER, 10, PLENTY)
    latest.advance(EPOCH, 100, ())
    assert (latest.covers(99), latest.covers(100), latest.covers(101)) == (False, True, True)
    latest.advance(EPOCH, 100, entries(101, 103))
    assert held(latest) == [101, 102, 103]
    assert [entry.position for entry in latest.after(101, PLENTY)] == [102, 103]
    assert [entry.position for entry in latest.after(100, 2)] == [101, 102]
    assert list(latest.after(103, PLENTY)) == list(latest.after(110, PLENTY)) == []


@pytest.mark.parametrize("seed", range(5))
def test_however_events_come_the_ring_holds_the_latest_without_a_gap(seed: int) -> None:
    chance = random.Random(seed)
    capacity = chance.randint(1, 20)
    latest = LatestEntries(READER, capacity, PLENTY)
    latest.advance(EPOCH, 0, ())
    last = 0
    for _ in range(50):
        new = chance.randint(0, 30)
        latest.advance(EPOCH, last, entries(last + 1, last + new))
        last += new
        assert held(latest) == list(range(max(1, last - capacity + 1), last + 1))
        assert len(latest) == min(last, capacity)
        assert latest.covers(last - len(latest))
        assert not latest.covers(last - len(latest) - 1)


def test_bytes_are_bounded_too_the_oldest_going_first() -> None:
    latest = LatestEntries(READER, 1000, 100_000)
    latest.advance(EPOCH, 0, entries(1, 500, size=1000))
    assert held(latest)[-1] == 500
    assert 50 < len(latest) < 100
    latest.advance(EPOCH, 500, entries(501, 501, size=200_000))
    assert held(latest) == []
    assert latest.covers(501)
    assert not latest.covers(500), "the large one is not here"
    latest.advance(EPOCH, 501, entries(502, 503))
    assert held(latest) == [502, 503]


@pytest.mark.parametrize(("epoch", "after"), [(uuid.uuid4(), 3), (EPOCH, 7), (EPOCH, 2)])
def test_what_does_not_fit_begins_anew(epoch: uuid.UUID, after: int) -> None:
    latest = LatestEntries(READER, 10, PLENTY)
    latest.advance(EPOCH, 0, entries(1, 3))
    latest.advance(epoch, after, entries(after + 1, after + 2))
    assert latest.epoch == epoch
    assert held(latest) == [after + 1, after + 2]
    assert not latest.covers(after - 1)


def test_of_an_erased_person_nothing_stays() -> None:
    history = [
        events.customer_registered(1),
        events.customer_registered(2),
        events.order_placed(1, customer=1),
        events.price_changed(),
        events.customer_erased(1),
    ]
    latest = LatestEntries(READER, 10, PLENTY)
    latest.advance(EPOCH, 0, [READER.entry_of(it) for it in events.feed_events(history[:4])])
    assert b"Customer 1" in b"".join(entry.item for entry in latest.after(0, PLENTY))
    latest.advance(EPOCH, 4, [READER.entry_of(it) for it in events.feed_events(history[4:], first=5)])
    kept = list(latest.after(0, PLENTY))
    assert [entry.position for entry in kept] == [1, 2, 3, 4, 5]
    assert b"Customer 1" not in b"".join(entry.item for entry in kept)
    assert b"Customer 2" in kept[1].item
    assert [entry.personal_of for entry in kept] == ["", identity("customer", 2), "", "", ""]
    assert kept[0].ids == {identity("customer", 1)}
