"""What is EventBridge's alone: events that are refused one by one, a place beside it, and events that are too large.

On moto's server, an emulator of AWS; it has not been run there. That some entries of a call are refused and others are
not is made here, between the sink and the emulator, which takes all that it understands.
"""

import json
import secrets
import uuid
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict

from commerce.event.v1.event_pb2 import Event
from shop.events import EVENTS
from tandem.feed.events import FeedEvent
from tandem.relay.cloud_events import CloudEvent, CloudEvents
from tandem.relay.eventbridge import MOST_BYTES, MOST_ENTRIES, EventBridgeSink
from tandem.relay.settings import EventBridgeSettings
from tandem.relay.sink import Origin, Place, PlaceTaken, SinkAway, SinkRefused
from tests.support import events
from tests.support.builders import identity
from tests.support.eventbridge import handed_on, make_bus

pytestmark = pytest.mark.usefixtures("aws")
FEED = Origin(uuid.uuid4(), 1000)
OF = CloudEvents(EVENTS, "/shop", opened=False)


@pytest.fixture
def bus(aws: object) -> str:
    name = f"t{secrets.token_hex(6)}"
    make_bus(name)
    return name


def sink(bus: str, relay: str = "one", **settings: Any) -> EventBridgeSink:
    chosen = EventBridgeSettings(**{"bus": bus, "ack_seconds": 10, **settings})
    return EventBridgeSink(chosen, Event, relay=relay, source="/shop", first_position=1, personal_data="sealed")


def feed(*given: Event, first: int = 1) -> list[CloudEvent]:
    return [
        OF.of(
            FeedEvent(EVENTS, position, str(EVENTS.kind_in(it)), it.SerializeToString(), None, None, 1, None, position)
        )
        for position, it in enumerate(given, first)
    ]


def renamed(*customers: int, first: int = 1) -> list[CloudEvent]:
    return feed(*map(events.customer_renamed, customers), first=first)


class Refusing:
    """EventBridge, but for what it is told to refuse. calls: the positions of each call's entries that it was given."""

    def __init__(self, sink: EventBridgeSink, refuses: Callable[[int, int], str]) -> None:
        """refuses: of an event's position, and how often it was seen: an error's code, or nothing."""
        sink._asked(lambda: None)
        self._bus = sink._bus
        self._refuses = refuses
        self._seen: Counter[int] = Counter()
        self.calls: list[list[int]] = []
        self.taken: list[int] = []
        sink._bus = self

    def put_events(self, **request: Any) -> dict[str, Any]:
        entries = request["Entries"]
        positions = [int(json.loads(it["Detail"])["sequence"]) for it in entries]
        assert len(entries) <= MOST_ENTRIES
        texts = [it[name] for it in entries for name in ("Source", "DetailType", "Detail")]
        assert 14 * len(entries) + sum(len(it.encode()) for it in texts) <= MOST_BYTES
        self._seen.update(positions)
        codes = [self._refuses(it, self._seen[it]) for it in positions]
        good = [it for it, code in zip(entries, codes, strict=True) if not code]
        results = iter(self._bus.put_events(Entries=good)["Entries"] if good else ())
        self.calls.append(positions)
        self.taken += [it for it, code in zip(positions, codes, strict=True) if not code]
        said = [{"ErrorCode": code, "ErrorMessage": "made here"} if code else next(results) for code in codes]
        return {"FailedEntryCount": len(entries) - len(good), "Entries": said}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)


def sequences(bus: str) -> list[int]:
    """Of all that the consumer was handed, sorted."""
    return sorted(int(it["detail"]["sequence"]) for it in handed_on(bus))


async def test_entries_that_are_refused_are_sent_again_and_none_of_their_key_goes_before_them(bus: str) -> None:
    relay = sink(bus)
    # Of three customers; the first events of two of them are refused twice, and one in the middle once.
    refused = Refusing(
        relay, lambda position, seen: "ThrottlingException" if seen <= {1: 2, 2: 2, 7: 1}.get(position, 0) else ""
    )
    given = renamed(1, 2, 3, 1, 2, 3, 1, 2, 3)
    assert await relay.place(FEED) == Place(0, 0, "")
    await relay.publish(FEED.epoch, given)
    for key in {it.key for it in given}:
        of_key = [it.position for it in given if it.key == key]
        assert [it for it in refused.taken if it in of_key] == of_key, "an event overtook another one of its key"
    assert all(len({given[it - 1].key for it in call}) == len(call) for call in refused.calls)
    assert sequences(bus) == list(range(1, 10)), "and each was sent once"
    assert await relay.place(FEED) == Place(9, 9, "one")
    await relay.close()


async def test_what_is_not_taken_at_all_is_the_place_of_the_next_time(bus: str) -> None:
    # It tries so long what is refused; and each call may take so long.
    relay = sink(bus, ack_seconds=3)
    fails = {"code": "InternalFailure"}
    refused = Refusing(relay, lambda position, _: fails["code"] if position == 4 else "")
    given = renamed(1, 2, 3, 4, 5, 4)
    await relay.place(FEED)
    with pytest.raises(SinkAway, match="event 4: InternalFailure"):
        await relay.publish(FEED.epoch, given)
    # 5 was taken and 6 was not sent: the place is before the first that was not taken.
    assert refused.taken == [1, 2, 3, 5]
    assert (await relay.place(FEED)).position == 3
    fails["code"] = "MalformedDetail"
    with pytest.raises(SinkRefused, match="refuses event 4: MalformedDetail: made here"):
        await relay.publish(FEED.epoch, given[3:])
    fails["code"] = ""
    await relay.place(FEED)
    await relay.publish(FEED.epoch, given[3:])
    assert [it for it in refused.taken if it in (4, 6)] == [4, 6]
    assert set(sequences(bus)) == set(range(1, 7))
    assert await relay.place(FEED) == Place(6, 6, "one")
    await relay.close()


async def test_a_relay_that_died_before_the_place_was_moved_has_its_events_sent_again_with_the_same_ids(
    bus: str,
) -> None:
    dies = sink(bus)
    given = renamed(1, 2, 3)
    await dies.place(FEED)
    write = dies._write
    claimed: list[Any] = []

    def dead(*item: Any) -> None:
        if claimed:
            raise SinkAway("it is dead")
        claimed.append(item)
        write(*item)

    dies._write = dead  # type: ignore[method-assign, assignment]
    with pytest.raises(SinkAway, match="it is dead"):
        await dies.publish(FEED.epoch, given)
    other = sink(bus, "two")
    assert await other.place(FEED) == Place(0, 0, "one")
    await other.publish(FEED.epoch, given)
    found = handed_on(bus)
    assert Counter(it["detail"]["id"] for it in found) == dict.fromkeys((it.attributes["id"] for it in given), 2)
    for it in (dies, other):
        await it.close()


async def test_of_two_relays_the_one_that_was_paused_leaves_the_place_to_the_other(bus: str) -> None:
    paused, other = sink(bus, "one"), sink(bus, "two")
    await paused.place(FEED)
    await paused.publish(FEED.epoch, renamed(1, 2))
    assert await other.place(FEED) == Place(2, 2, "one")
    await other.publish(FEED.epoch, renamed(1, 2, first=3))
    with pytest.raises(PlaceTaken):
        await paused.publish(FEED.epoch, renamed(1, first=3))
    assert await paused.place(FEED) == Place(4, 4, "two")
    # Who has learnt it from the place does not take it back at once.
    again = sink(bus, "two")
    await again.place(FEED)
    await again.publish(FEED.epoch, renamed(1, first=5))
    await paused.place(FEED)
    await paused.publish(FEED.epoch, renamed(1, first=6))
    await again.place(FEED)
    with pytest.raises(PlaceTaken, match="another relay has taken the place"):
        await again.publish(FEED.epoch, renamed(2, first=7))
    for it in (paused, other, again):
        await it.close()


async def test_calls_are_within_the_limits_and_what_is_too_large_says_where_its_data_is(bus: str) -> None:
    relay = sink(bus)
    refused = Refusing(relay, lambda *_: "")
    given = feed(
        *(events.product_added(it, description="ä" * 60_000) for it in range(1, 5)),
        events.product_added(5, description="x" * 300_000),
        *map(events.customer_renamed, range(1, 25)),
    )
    await relay.place(FEED)
    await relay.publish(FEED.epoch, given)
    assert refused.calls == [[1, 2], [3, 4, *range(5, 13)], [*range(13, 23)], [*range(23, 30)]]
    found = {int(it["detail"]["sequence"]): it for it in handed_on(bus)}
    assert found.keys() == set(range(1, 30))
    assert ParseDict(found[1]["detail"]["data"], Event()) == Event.FromString(given[0].data)
    large = found[5]["detail"]
    assert "data" not in large
    assert large["dataref"] == f"urn:tandem:event:{FEED.epoch.hex}:5"
    assert large["subject"] == identity("product", 5)
    await relay.close()


async def test_a_rule_goes_by_the_fields_of_events(aws: object) -> None:
    bus = f"t{secrets.token_hex(6)}"
    wanted = {"data": {"productAdded": {"productId": [identity("product", 1)]}}}
    make_bus(bus, {"detail-type": ["commerce.event.v1.ProductAdded"], "detail": wanted})
    relay = sink(bus)
    await relay.place(FEED)
    given = feed(events.product_added(1), events.customer_registered(1), events.product_added(2))
    await relay.publish(FEED.epoch, given)
    [found] = handed_on(bus)
    assert (found["source"], found["detail-type"]) == ("/shop", "commerce.event.v1.ProductAdded")
    assert found["detail"]["data"]["productAdded"]["productId"] == identity("product", 1)
    await relay.close()


async def test_what_a_person_has_to_do_is_said(bus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = sink("absent")
    with pytest.raises(SinkRefused, match="there is no event bus absent: make it"):
        await absent.place(FEED)
    await absent.close()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    unknown = sink(bus)
    with pytest.raises(SinkRefused, match="AWS cannot be asked: Unable to locate credentials"):
        await unknown.place(FEED)
    await unknown.close()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of-nobody-else")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    away = sink(bus)
    with pytest.raises(SinkAway, match="AWS does not answer") as error:
        await away.place(FEED)
    assert "of-nobody-else" not in str(error.value)
    await away.close()
