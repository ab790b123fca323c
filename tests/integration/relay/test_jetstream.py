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
from tandem.testing.ports import free_port
from tandem.testing.stack import until
from tests.integration.projector.conftest import Stores
from tests.integration.relay.conftest import StreamRelays
from tests.support import events
from tests.support.builders import identity
from tests.support.metrics import sample
from tests.support.nats import cluster, connected

RelaysOf = Callable[..., StreamRelays]


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


async def test_an_event_that_the_broker_would_not_take_is_said_at_the_start(
    stores: Stores, relays: RelaysOf, tmp_path: Path
) -> None:
    with cluster(tmp_path, 1, max_payload="512KB") as [alone]:
        its = relays([alone])
        async with its.running(relay := its.new(broker={"replicas": 1})):
            await its.says(relay, State.REFUSED, "takes messages of 524288 bytes, and an event may have")
            assert not await relay.is_ready()


async def test_a_relay_that_finds_no_broker_when_it_starts_says_so(relays: Callable[..., StreamRelays]) -> None:
    its = relays()
    relay = its.new(broker={"servers": (f"nats://127.0.0.1:{free_port()}",)})
    async with its.running(relay):
        await its.says(relay, State.AWAY, "NATS is away")
        assert not await relay.is_ready()
