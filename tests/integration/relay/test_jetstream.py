"""Every event of the feed is in the stream, in order, once; the stream says where to go on; and what is in the way is
said.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
from nats.js.api import StreamConfig

from commerce.event.v1.event_pb2 import Event
from shop.events import EVENTS
from tandem.feed.events import FeedEvent
from tandem.internal.v1.stored_pb2 import Envelope
from tandem.relay.cloud_events import CloudEvents
from tandem.relay.jetstream import EPOCH, FIRST, PERSONAL_DATA
from tandem.relay.relaying import State
from tandem.testing.stack import until
from tests.integration.projector.conftest import Stores
from tests.integration.relay.conftest import Relays
from tests.support import events
from tests.support.builders import identity
from tests.support.metrics import sample
from tests.support.nats import cluster, connected

RelaysOf = Callable[..., Relays]


def counted(metric: str) -> float:
    return sample(metric) or 0


async def becomes(metric: str, value: float) -> None:
    async def so() -> bool:
        return counted(metric) == value

    await until(so, f"{metric} is {value}")


def history(first: int, last: int) -> list[Event]:
    return [events.customer_registered(number) for number in range(first, last + 1)]


async def test_an_event_is_a_cloud_event_at_the_sequence_that_is_its_position(stores: Stores, relays: RelaysOf) -> None:
    envelope = Envelope(actor='é "1"', request_id="r-1", correlation_id="50 %", traceparent="00-1")
    stores.append([events.product_added(1)], envelope)
    stores.append(history(1, 2))
    its = relays()
    relay = its.new()
    async with its.running(relay):
        await its.reached(relay, 3)
    first, second, _ = await its.messages()
    headers = first.headers or {}
    stored = stores.events()[0]
    key = identity("product", 1)
    assert first.subject == f"{its.prefix}.{its.epoch.hex}.product_added.{key}"
    assert Event.FromString(first.data).product_added.product_id == key
    assert {name: value for name, value in headers.items() if name.startswith("ce-")} == {
        "ce-specversion": "1.0",
        "ce-id": f"1-{stored.mark:x}",
        "ce-source": "/shop",
        "ce-type": "commerce.event.v1.ProductAdded",
        "ce-subject": key,
        "ce-partitionkey": key,
        "ce-time": "1970-01-01T00:00:00Z",
        "ce-datacontenttype": "application/protobuf",
        "ce-dataschema": "urn:protobuf:commerce.event.v1.Event",
        "ce-sequence": "00000000000000000001",
        "ce-tandemversion": "1",
        "ce-tandemmark": str(stored.mark),
        "ce-tandemactor": "%C3%A9%20%221%22",
        "ce-tandemrequest": "r-1",
        "ce-tandemcorrelation": "50%20%25",
        "ce-traceparent": "00-1",
    }
    assert headers["Nats-Msg-Id"] == headers["ce-id"]
    # Stored in version 1, published in the newest; what is personal stays sealed.
    registered = Event.FromString(second.data).customer_registered
    assert registered.HasField("registered_at")
    assert registered.personal.sealed
    assert not registered.personal.name

    events_of = CloudEvents(EVENTS, "/shop", opened=False)
    for message, it in zip(await its.messages(), stores.events(), strict=True):
        read = events_of.feed_event(message.headers or {}, "ce-", message.data)
        assert _said(read) == _said(it)


def _said(event: FeedEvent) -> tuple[object, ...]:
    return event.position, event.mark, event.kind, event.envelope, event.sealed()


async def test_personal_data_is_opened_for_a_stream_that_may_have_it_and_gone_from_one_made_after_an_erasure(
    stores: Stores, relays: RelaysOf
) -> None:
    stores.append(history(1, 2))
    its = relays()
    async with its.running(opened := its.new(personal_data="opened")):
        await its.reached(opened, 2)
    messages = [Event.FromString(it.data).customer_registered for it in await its.messages()]
    assert [it.personal.name for it in messages] == ["Customer 1", "Customer 2"]

    # The setting is the stream's: another one is not mixed into it.
    async with its.running(sealed := its.new("two")):
        await its.says(sealed, State.REFUSED, "is for personal data opened, and the setting is sealed")
        assert not await sealed.is_ready()

    # Deleted, and filled anew by a relay that runs.
    stores.run(
        f"UPDATE tandem_write.subject_key SET key = NULL WHERE subject_id = '{identity('customer', 1)}'", "write"
    )
    async with its.running(opened := its.new("three", personal_data="opened")):
        await its.reached(opened, stores.append([events.customer_renamed(2)]))
        before = counted("tandem_relay_published_again_events_total")
        async with connected(its.servers) as client:
            await client.jetstream().delete_stream(its.stream)
        await becomes("tandem_relay_published_again_events_total", before + 3)
        await its.reached(opened, 3)
    registered = [Event.FromString(it.data).customer_registered for it in (await its.messages())[:2]]
    assert [(it.HasField("personal"), it.personal.name) for it in registered] == [(False, ""), (True, "Customer 2")]


async def test_it_goes_on_where_the_stream_is_and_one_that_stands_by_takes_over(
    stores: Stores, relays: RelaysOf
) -> None:
    its = relays()
    head = stores.append(history(1, 50))
    async with its.running(one := its.new("one", nats={"max_in_flight": 8}, batch_size=7)):
        await its.reached(one, head)
    # Another one stands by, also behind a stream that is moved on.
    async with its.running(two := its.new("two")):
        async with its.running(one := its.new("one")):
            head = stores.append(history(51, 60))
            await its.reached(one, head)
            assert (one.state, two.state) == (State.ACTIVE, State.STANDBY)
            assert await two.is_ready()
        head = stores.append(history(61, 70))
        await its.reached(two, head)
        assert two.state is State.ACTIVE
    published = [(it.headers or {})["Tandem-Relay"] for it in await its.messages()]
    assert published == ["one"] * 60 + ["two"] * 10


async def test_of_many_that_begin_at_once_none_doubles_an_event_and_one_goes_on(
    stores: Stores, relays: RelaysOf
) -> None:
    its = relays()
    all_of_them = [its.new(f"relay {number}", takeover_seconds=5) for number in range(4)]
    async with its.running(*all_of_them):
        for number in range(20):
            head = stores.append(history(10 * number + 1, 10 * number + 10))
        for it in all_of_them:
            await its.reached(it, head)
        await its.says(next(it for it in all_of_them if it.state is State.ACTIVE), State.ACTIVE)
        assert len(await its.messages()) == head


async def test_a_new_epoch_has_a_stream_of_its_own_from_the_beginning_on(stores: Stores, relays: RelaysOf) -> None:
    its = relays()
    head = stores.append(history(1, 20))
    async with its.running(relay := its.new()):
        await its.reached(relay, head)
        before, first = its.stream, [(it.headers or {})["ce-id"] for it in await its.messages()]
        # A failover that lost the last five, and others came instead.
        stores.run("DELETE FROM tandem_write.event WHERE position > 15", "write")
        stores.run("UPDATE tandem_write.feed_head SET position = 15", "write")
        stores.append(history(31, 36))
        await its.says(relay, State.REFUSED, "is not the one that was read there")
        assert its.stream == before
        assert len(await its.messages()) == 20
        stores.new_feed_epoch()
        await its.reached(relay, 21)
        assert its.stream != before
        second = [(it.headers or {})["ce-id"] for it in await its.messages()]
    # Who dedupes by id sees what both histories have once, and what replaced the lost events.
    assert second[:15] == first[:15]
    assert not set(second[15:]) & set(first)


async def test_a_stream_that_is_not_the_feeds_or_lacks_events_is_said(stores: Stores, relays: RelaysOf) -> None:
    its = relays()
    head = stores.append(history(1, 10))
    mine = {EPOCH: str(its.epoch), FIRST: "1", PERSONAL_DATA: "sealed"}
    async with connected(its.servers) as client:
        js = client.jetstream()
        # A stream that somebody else made, and which denies nothing.
        subjects = [f"{its.prefix}.{its.epoch.hex}.>"]
        config = StreamConfig(name=its.stream, subjects=subjects, metadata={**mine, EPOCH: "another one"})
        await js.add_stream(config)
        async with its.running(relay := its.new()):
            await its.says(relay, State.REFUSED, "is not of the feed")
            await js.update_stream(config.evolve(metadata=mine))
            await its.reached(relay, head)
            assert counted("tandem_relay_missing_events") == 0
            await js.delete_msg(its.stream, 4)
            await becomes("tandem_relay_missing_events", 1)
            # Those who are behind it get what is new.
            head = stores.append(history(11, 12))
            await its.reached(relay, head)
        # The relay's own denies it.
        await js.delete_stream(its.stream)
        async with its.running(relay := its.new()):
            await its.reached(relay, head)
        with pytest.raises(Exception, match="message delete not permitted"):
            await js.delete_msg(its.stream, 4)


async def test_a_stream_may_begin_later(stores: Stores, relays: RelaysOf) -> None:
    its = relays()
    stores.append(history(1, 10))
    async with its.running(relay := its.new(first_position=8)):
        await its.reached(relay, 10)
    async with connected(its.servers) as client:
        state = (await client.jetstream().stream_info(its.stream)).state
    assert (state.first_seq, state.last_seq) == (8, 10)
    assert counted("tandem_relay_missing_events") == 0


async def test_an_event_that_the_broker_would_not_take_is_said_at_the_start(
    stores: Stores, relays: RelaysOf, tmp_path: Path
) -> None:
    with cluster(tmp_path, 1, max_payload="512KB") as [alone]:
        its = relays([alone])
        async with its.running(relay := its.new(nats={"replicas": 1})):
            await its.says(relay, State.REFUSED, "takes messages of 524288 bytes, and an event may have")
            assert not await relay.is_ready()
