"""What is Kafka's own: headers, the order of a topic, what a relay refuses there, and what it does about errors.

On emulators, noida-db and librdkafka's mock cluster: neither is Apache Kafka.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic

from shop.events import EVENTS
from tandem.relay.cloud_events import CloudEvent, CloudEvents
from tandem.relay.kafka import KafkaSink, headers_of, places_of, topic_of
from tandem.relay.relaying import State
from tandem.relay.sink import Origin, PlaceTaken, SinkAway
from tests.integration.projector.conftest import Stores
from tests.integration.relay.conftest import Relays
from tests.integration.relay.test_sinks import history
from tests.support import events
from tests.support.brokers import KafkaBroker
from tests.support.builders import identity
from tests.support.kafka import MockCluster, messages, noida

# Of Kafka's protocol.
PRODUCE, LIST_OFFSETS, METADATA, FIND_COORDINATOR = 0, 2, 3, 10
INIT_PRODUCER_ID, ADD_PARTITIONS, END_TRANSACTION = 22, 24, 26
REQUESTS = (PRODUCE, LIST_OFFSETS, METADATA, FIND_COORDINATOR, INIT_PRODUCER_ID, ADD_PARTITIONS, END_TRANSACTION)


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaBroker]:
    with noida(tmp_path_factory.mktemp("kafka")) as server:
        yield KafkaBroker(server.address)


@pytest.fixture
def its(stores: Stores, emulator: KafkaBroker) -> Relays:
    return Relays(stores, emulator)


Sinks = Callable[[str], AbstractAsyncContextManager[KafkaSink]]


@pytest.fixture
def sinks(its: Relays, emulator: KafkaBroker) -> Sinks:
    """Makes one of a relay's name."""

    @asynccontextmanager
    async def made(relay: str) -> AsyncIterator[KafkaSink]:
        settings = emulator.settings(its.prefix)["kafka"]
        sink = KafkaSink(settings, relay=relay, first_position=1, personal_data="sealed")
        try:
            yield sink
        finally:
            await sink.close()

    return made


def cloud_events(stores: Stores) -> list[CloudEvent]:
    """All of the feed."""
    of = CloudEvents(EVENTS, "/shop", opened=False).of
    return [of(it) for it in stores.events()]


@pytest.fixture(scope="module")
def mock() -> Iterator[MockCluster]:
    cluster = MockCluster()
    yield cluster
    cluster.close()


@pytest.fixture
def mocked(stores: Stores, mock: MockCluster) -> Relays:
    """With topics, which the mock cluster takes no request to make."""
    mock.answer_well(*REQUESTS)
    made = Relays(stores, KafkaBroker(mock.servers))
    mock.create(topic_of(made.prefix, made.epoch), 3)
    mock.create(places_of(made.prefix, made.epoch), 1)
    return made


def test_headers_are_those_of_the_binding(stores: Stores) -> None:
    stores.append([events.product_added(1)])
    [stored] = stores.events()
    headers = dict(headers_of(CloudEvents(EVENTS, "/é shop", opened=False).of(stored)))
    assert headers["content-type"] == b"application/protobuf"
    assert "ce_datacontenttype" not in headers
    # UTF-8 as it is, with nothing escaped.
    assert headers["ce_source"] == "/é shop".encode()
    assert headers["ce_id"] == f"1-{stored.mark:x}".encode()


async def test_partitions_that_were_added_are_refused_since_an_aggregate_would_be_in_two(
    stores: Stores, its: Relays, emulator: KafkaBroker
) -> None:
    stores.append(history(1, 3))
    async with its.running(relay := its.new()):
        await its.reached(relay, 3)
        await _done(emulator, lambda it: it.create_partitions([NewPartitions(topic_of(its.prefix, its.epoch), 5)]))
        await its.says(relay, State.REFUSED, "has 5 partitions and was filled with 3")


async def test_a_topic_that_lost_its_end_is_refused_and_filled_anew_once_it_is_deleted(
    stores: Stores, its: Relays, emulator: KafkaBroker
) -> None:
    stores.append(history(1, 30))
    topic = topic_of(its.prefix, its.epoch)
    async with its.running(relay := its.new()):
        await its.reached(relay, 30)
    # Another one has its name, with less in it.
    await its.delete()
    await _done(emulator, lambda it: it.create_topics([NewTopic(topic, 3, 1)]))
    producer = Producer({"bootstrap.servers": emulator.servers})
    producer.produce(topic, b"", b"")
    await asyncio.to_thread(producer.flush, 10)
    async with its.running(relay := its.new("two")):
        await its.says(relay, State.REFUSED, "has lost events")
        await its.delete()
        await its.reached(relay, 30)
    assert [it.position for it in await its.delivered()] == list(range(1, 31))


async def test_nothing_is_published_behind_events_that_are_lost(
    stores: Stores, its: Relays, sinks: Sinks, emulator: KafkaBroker
) -> None:
    topic = topic_of(its.prefix, its.epoch)
    stores.append(history(1, 12))
    async with sinks("one") as one, sinks("two") as two:
        await one.publish(its.epoch, cloud_events(stores))
        found = await asyncio.to_thread(messages, emulator.servers, topic)
        partitions = {(it.key() or b"").decode(): it.partition() for it in found}
        here, *_ = partitions
        elsewhere = next(it for it in partitions if partitions[it] != partitions[here])
        # A broker takes nothing from a producer that has written there, but does not know it in another partition.
        numbers = {identity("customer", number): number for number in range(1, 13)}
        stores.append([events.customer_renamed(numbers[here]), events.customer_renamed(numbers[elsewhere])])
        *_, first, second = cloud_events(stores)
        await two.publish(its.epoch, [first])
        await its.delete()
        await _done(emulator, lambda it: it.create_topics([NewTopic(topic, 3, 1)]))
        with pytest.raises(PlaceTaken, match="has lost events"):
            await two.publish(its.epoch, [second])
        assert (await two.place(Origin(its.epoch, 14))).position == 0


async def test_what_was_given_up_does_not_make_a_new_topic_look_like_the_one_before(
    stores: Stores, its: Relays, sinks: Sinks, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores.append(history(1, 3))
    found = cloud_events(stores)
    async with sinks("one") as one, sinks("two") as two, sinks("three") as three:
        await one.publish(its.epoch, found)
        await its.delete()
        with monkeypatch.context() as patch:
            patch.setattr("tandem.relay.kafka.Producer", _Failing)
            assert (await two.place(Origin(its.epoch, 3))).position == 0
            with pytest.raises(SinkAway):
                await two.publish(its.epoch, found)
        assert (await three.place(Origin(its.epoch, 3))).position == 0
        await three.publish(its.epoch, found)
    assert [it.position for it in await its.delivered()] == [1, 2, 3]


class _Failing(Producer):
    """Has written the events of a transaction, and does not come to their place."""

    def produce(self, topic: str, value: str | bytes | None = None, *arguments: Any, **options: Any) -> None:
        if topic.endswith("-places") and value is not None:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
        super().produce(topic, value, *arguments, **options)


async def test_no_client_of_a_relay_has_the_broker_make_a_topic_with_its_own_defaults(
    stores: Stores, its: Relays, sinks: Sinks, emulator: KafkaBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores.append(history(1, 1))
    clients: list[Producer | Consumer] = []

    def kept(kind: type[Producer | Consumer]) -> Callable[[dict[str, Any]], Producer | Consumer]:
        def make(config: dict[str, Any]) -> Producer | Consumer:
            clients.append(kind(config))
            return clients[-1]

        return make

    for kind in (Producer, Consumer):
        monkeypatch.setattr(f"tandem.relay.kafka.{kind.__name__}", kept(kind))
    topic = topic_of(its.prefix, its.epoch)
    async with sinks("one") as one:
        await one.publish(its.epoch, cloud_events(stores))
        assert {type(it) for it in clients} == {Producer, Consumer}
        await its.delete()
        for it in clients:
            # As they do by themselves now and then.
            await asyncio.to_thread(it.list_topics, topic, 10)
        there = await asyncio.to_thread(AdminClient({"bootstrap.servers": emulator.servers}).list_topics, timeout=10)
        assert topic not in there.topics


async def test_an_empty_topic_that_somebody_else_made_with_other_partitions_is_refused(
    stores: Stores, its: Relays, emulator: KafkaBroker
) -> None:
    stores.append(history(1, 3))
    await _done(emulator, lambda it: it.create_topics([NewTopic(topic_of(its.prefix, its.epoch), 1, 1)]))
    async with its.running(relay := its.new()):
        await its.says(relay, State.REFUSED, "has 1 partitions, and KAFKA__PARTITIONS is 3")
        await its.delete()
        await its.reached(relay, 3)
    assert [it.position for it in await its.delivered()] == [1, 2, 3]


async def test_events_without_a_place_are_refused_since_they_would_be_doubled(
    stores: Stores, its: Relays, emulator: KafkaBroker
) -> None:
    stores.append(history(1, 3))
    async with its.running(relay := its.new()):
        await its.reached(relay, 3)
    await _done(emulator, lambda it: it.delete_topics([places_of(its.prefix, its.epoch)]))
    async with its.running(relay := its.new("two")):
        await its.says(relay, State.REFUSED, "does not say how far it is filled")
        await its.delete()
        await its.reached(relay, 3)
    assert [it.position for it in await its.delivered()] == [1, 2, 3]


async def test_what_another_epoch_has_open_hides_no_place(
    stores: Stores, its: Relays, sinks: Sinks, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores.append(history(1, 3))
    first, *others = cloud_events(stores)
    async with sinks("one") as one:
        await one.publish(its.epoch, [first])
        monkeypatch.setattr("tandem.relay.kafka.Producer", _Hanging)
        async with sinks("other") as other:
            await other.publish(uuid.uuid4(), [first])
            await one.publish(its.epoch, others)
            async with sinks("two") as two:
                assert (await two.place(Origin(its.epoch, 3))).position == 3


class _Hanging(Producer):
    """Has written all of its transaction, and does not end it."""

    def commit_transaction(self, *_: Any) -> None:
        assert self.flush(10) == 0


async def _done(emulator: KafkaBroker, ask: Callable[[AdminClient], dict[str, Any]]) -> None:
    """What an operator asks the broker for."""

    def wait() -> None:
        asker = AdminClient({"bootstrap.servers": emulator.servers})
        [answer] = ask(asker).values()
        answer.result(10)

    await asyncio.to_thread(wait)


async def first_ones(its: Relays) -> Sequence[int]:
    """The positions of what a consumer gets that dedupes by id, in the order of each aggregate.

    The mock cluster has transactions by name alone: what was not committed is there too.
    """
    found = await its.sent()
    kept = list({it.id: it for it in reversed(found)}.values())[::-1]
    for key in {it.key for it in kept}:
        positions = [it.position for it in kept if it.key == key]
        assert positions == sorted(positions)
    return sorted(it.position for it in kept)


async def test_errors_that_pass_lose_nothing_and_keep_the_order(
    stores: Stores, mock: MockCluster, mocked: Relays
) -> None:
    transaction = topic_of(mocked.prefix, mocked.epoch)
    async with mocked.running(relay := mocked.new(batch_size=5)):
        head = stores.append(history(1, 12))
        await mocked.reached(relay, head)
        for request, *errors in (
            (PRODUCE, KafkaError.NOT_LEADER_FOR_PARTITION),
            (PRODUCE, KafkaError.REQUEST_TIMED_OUT, KafkaError.REQUEST_TIMED_OUT),
            (METADATA, KafkaError.LEADER_NOT_AVAILABLE),
            (LIST_OFFSETS, KafkaError.NOT_LEADER_FOR_PARTITION),
            (ADD_PARTITIONS, KafkaError.NOT_COORDINATOR),
            (ADD_PARTITIONS, KafkaError.CONCURRENT_TRANSACTIONS),
            (END_TRANSACTION, KafkaError.COORDINATOR_LOAD_IN_PROGRESS),
            (END_TRANSACTION, KafkaError.REQUEST_TIMED_OUT),
            (END_TRANSACTION, KafkaError.INVALID_PRODUCER_EPOCH),
            (INIT_PRODUCER_ID, KafkaError.COORDINATOR_LOAD_IN_PROGRESS),
            (FIND_COORDINATOR, KafkaError.COORDINATOR_NOT_AVAILABLE),
        ):
            mock.answer_with(request, *errors)
            head = stores.append([events.customer_renamed(number) for number in range(1, 13)])
            await mocked.reached(relay, head)
        # Another broker coordinates.
        for broker in (1, 2, 3):
            mock.coordinate(transaction, broker)
            head = stores.append([events.customer_renamed(number) for number in range(1, 13)])
            await mocked.reached(relay, head)
        # The one that coordinates is gone for a while.
        mock.down(broker)
        head = stores.append([events.customer_renamed(number) for number in range(1, 13)])
        await mocked.says(relay, State.AWAY)
        assert not await relay.is_ready()
        mock.up(broker)
        await mocked.reached(relay, head)
    assert await first_ones(mocked) == list(range(1, head + 1))


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((PRODUCE, KafkaError.MSG_SIZE_TOO_LARGE), "Message size too large"),
        ((PRODUCE, KafkaError.TOPIC_AUTHORIZATION_FAILED), "Topic authorization failed"),
        (
            (INIT_PRODUCER_ID, KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED),
            "Transactional Id authorization failed",
        ),
    ],
    ids=["size", "topic", "transactional id"],
)
async def test_what_a_person_has_to_mend_is_said(
    stores: Stores, mock: MockCluster, mocked: Relays, answer: tuple[int, int], said: str
) -> None:
    head = stores.append(history(1, 2))
    async with mocked.running(relay := mocked.new()):
        await mocked.reached(relay, head)
    request, error = answer
    mock.answer_with(request, *[error] * 3)
    head = stores.append(history(3, 4))
    async with mocked.running(relay := mocked.new("two")):
        await mocked.says(relay, State.REFUSED, said)
        # It is tried again, and goes on by itself when it is mended.
        await mocked.reached(relay, head)
    assert await first_ones(mocked) == [1, 2, 3, 4]
