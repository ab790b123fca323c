"""Kafka's protocol: a topic for each epoch of the feed, to which events and the relay's place go in one transaction.

    topic  tandem-0190b3…          the epoch's 32 hexadecimal digits; a message's key is the id of the aggregate, so the
                                   events of one aggregate are in one partition, in the order of the feed
    topic  tandem-0190b3…-places   compacted, one partition; its last message says how far the other one is filled

A consumer that reads what is committed (`isolation.level=read_committed`) sees of a transaction all or nothing, and a
relay that reads the place so knows exactly which events they see. All relays of a feed have one `transactional.id` for
each epoch: whoever begins to publish ends what an older one left open, and the broker takes nothing more from that one.
It reads the place again after that, so nobody publishes behind a place that is not the last one. Who reads what is
committed is not shown what follows the first open transaction: so an epoch has a topic of places to itself, in which
nobody but these relays has one open.

Tested on emulators, librdkafka's mock cluster and noida-db, and not yet run on Apache Kafka.
"""

import asyncio
import json
import logging
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TypeVar

from confluent_kafka import (
    OFFSET_BEGINNING,
    OFFSET_END,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, NewTopic

from tandem.feed.table import MAX_EVENT_BYTES
from tandem.relay.cloud_events import CloudEvent
from tandem.relay.settings import KafkaSettings
from tandem.relay.sink import Origin, Place, PlaceTaken, SinkAway, SinkRefused
from tandem.runtime.telemetry import log

PREFIX = "ce_"
"""Of the headers with a CloudEvent's attributes; `datacontenttype` is `content-type`, as the binding has it."""

# An event as large as they come, which upcasting may let grow by little, with its headers: what a broker's topics take
# unless told otherwise, and more than librdkafka puts into one batch.
_LARGEST_BATCH = 1_048_588
assert MAX_EVENT_BYTES + 64 * 1024 < _LARGEST_BATCH
_EVENTS = {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}
# Small, so that a relay that starts anew has little to read.
_PLACES = {
    "cleanup.policy": "compact",
    "segment.bytes": "1048576",
    "segment.ms": "600000",
    "min.cleanable.dirty.ratio": "0.01",
}
_SHORT_SECONDS = 0.05
# Another one has begun since, or the coordinator has ended what took too long.
_FENCED = frozenset(
    (
        KafkaError._FENCED,
        KafkaError.PRODUCER_FENCED,
        KafkaError.INVALID_PRODUCER_EPOCH,
        KafkaError.INVALID_PRODUCER_ID_MAPPING,
    )
)
_FOR_A_PERSON = frozenset(
    (
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.RECORD_LIST_TOO_LARGE,
        KafkaError.INVALID_REPLICATION_FACTOR,
        KafkaError.INVALID_TRANSACTION_TIMEOUT,
        KafkaError.POLICY_VIOLATION,
        KafkaError.INVALID_CONFIG,
        KafkaError._AUTHENTICATION,
        KafkaError._INVALID_ARG,
        KafkaError._UNSUPPORTED_FEATURE,
    )
)

T = TypeVar("T")


def topic_of(prefix: str, epoch: uuid.UUID) -> str:
    return f"{prefix}-{epoch.hex}"


def places_of(prefix: str, epoch: uuid.UUID) -> str:
    """The topic with the places of an epoch's relays."""
    return f"{topic_of(prefix, epoch)}-places"


def group_of(prefix: str) -> str:
    """All relays' group of consumers."""
    return f"{prefix}-relay"


def headers_of(event: CloudEvent) -> list[tuple[str, str | bytes | None]]:
    """As CloudEvents' binding to Kafka has them, in binary mode: texts in UTF-8, as they are."""
    attributes = dict(event.attributes)
    content_type = attributes.pop("datacontenttype")
    return [("content-type", content_type.encode()), *((PREFIX + it, attributes[it].encode()) for it in attributes)]


@dataclass(frozen=True)
class _Filled:
    """How far a topic is filled, as the message in the topic of places says.

    position, mark: of the last event. relay: which one published it. personal_data: sealed or opened. ends: of each of
    the topic's partitions, the offset behind its last event.
    """

    position: int
    mark: int
    relay: str
    personal_data: str
    ends: tuple[int, ...]


class KafkaSink:
    """A Sink. It has a thread of its own, on which all of Kafka's client is called."""

    def __init__(self, settings: KafkaSettings, *, relay: str, first_position: int, personal_data: str) -> None:
        """relay: the name of this one, another one than all others' have. personal_data: sealed or opened.

        Raises SettingsError where a file of the settings cannot be used.
        """
        self._settings = settings
        self._relay = relay
        self._first = first_position
        self._personal_data = personal_data
        self._common = settings.client() | {
            "client.id": relay,
            "error_cb": self._note,
            "logger": _silent(),
            # Producers heed it too, though librdkafka calls it a consumer's: what was deleted is made by _create alone.
            "allow.auto.create.topics": False,
        }
        self._thread = ThreadPoolExecutor(1, "relay-kafka")
        # By what they read: what is committed, or all that is there.
        self._consumers: dict[str, Consumer] = {}
        # By epoch, what was read of its topic of places, and up to which offset.
        self._filled: dict[uuid.UUID, _Filled] = {}
        self._read_until: dict[uuid.UUID, int] = {}
        # What publishes to an epoch's topic, how many partitions that has, where they were seen to end, and up to which
        # position it is filled.
        self._producer: Producer | None = None
        self._epoch: uuid.UUID | None = None
        self._partitions = 0
        self._ends: Sequence[int] = ()
        self._at = 0
        self._fenced = False
        self._problem = ""

    async def place(self, feed: Origin) -> Place:
        return await self._on_thread(lambda: self._find_place(feed.epoch))

    async def publish(self, epoch: uuid.UUID, events: Sequence[CloudEvent]) -> None:
        await self._on_thread(lambda: self._publish(epoch, events))

    async def close(self) -> None:
        await self._on_thread(self._drop_clients)
        await asyncio.to_thread(self._thread.shutdown)

    async def _on_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._asked, work)

    def _asked(self, work: Callable[[], T]) -> T:
        """What is done. Raises SinkAway, SinkRefused and PlaceTaken; then all is asked for anew, by new clients."""
        try:
            return work()
        except KafkaException as error:
            self._drop_clients()
            its: KafkaError = error.args[0]
            if its.code() in _FENCED:
                self._fenced = True
                raise PlaceTaken(f"another relay publishes: {its.str()}") from error
            said = its.str() if not self._problem else f"{its.str()} ({self._problem})"
            if its.code() in _FOR_A_PERSON:
                raise SinkRefused(f"Kafka refuses: {said}") from error
            raise SinkAway(f"Kafka does not answer: {said}") from error
        except (SinkAway, SinkRefused, PlaceTaken):
            self._drop_clients()
            raise

    def _note(self, error: KafkaError) -> None:
        self._problem = error.str()

    # Where events go on.

    def _find_place(self, epoch: uuid.UUID) -> Place:
        filled = self._find_filled(epoch)
        relay = filled.relay if filled is not None else ""
        if self._fenced:
            # Whoever has taken over has perhaps published nothing yet.
            self._fenced = False
            relay = "another relay"
        if filled is None:
            return Place(self._first - 1, 0, relay)
        return Place(filled.position, filled.mark, relay)

    def _find_filled(self, epoch: uuid.UUID) -> _Filled | None:
        """None where the topic is to be filled from its beginning. Makes the topics where they are not there."""
        topic = topic_of(self._settings.topic, epoch)
        partitions = self._partitions_of(topic)
        if partitions == 0:
            partitions = self._create(topic, self._settings.partitions, _EVENTS)
        filled = self._read_place(epoch)
        if filled is None:
            return None
        then = filled.ends
        now = self._offsets(topic, min(partitions, len(then)), OFFSET_END)
        if len(now) == len(then) and all(map(int.__ge__, now, then)):
            if partitions > len(then):
                raise SinkRefused(
                    f"the topic {topic} has {partitions} partitions and was filled with {len(then)}: the events of one"
                    " aggregate would be in two of them. Delete the topic, and the relay fills it anew"
                )
            if filled.personal_data != self._personal_data:
                raise SinkRefused(
                    f"the topic {topic} is for personal data {filled.personal_data}, and the setting is"
                    f" {self._personal_data}: delete the topic, and the relay fills it anew, or set it back"
                )
            return filled
        # Where the topic was deleted, it is a new one, with nothing but what nobody committed.
        if any(self._offsets(topic, partitions, OFFSET_BEGINNING)) or self._has_events(topic, partitions):
            raise SinkRefused(
                f"the topic {topic} has lost events: delete it, and the relay fills it anew, with the same ids"
            )
        return None

    def _partitions_of(self, topic: str) -> int:
        """0 where there is no such topic."""
        found = self._reader().list_topics(topic, timeout=self._settings.ack_seconds).topics[topic]
        if found.error is None:
            return len(found.partitions)
        if found.error.code() in {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC}:
            return 0
        raise KafkaException(found.error)

    def _create(self, topic: str, partitions: int, config: dict[str, str]) -> int:
        """How many partitions it has, once it is there."""
        replicas = self._settings.replicas
        config = {**config, "max.message.bytes": str(_LARGEST_BATCH), "min.insync.replicas": str(min(2, replicas))}
        deadline = time.monotonic() + self._settings.ack_seconds
        try:
            asker = AdminClient(self._common)
            [made] = asker.create_topics([NewTopic(topic, partitions, replicas, config=config)]).values()
            made.result(self._settings.ack_seconds)
        except TimeoutError as error:
            raise SinkAway(f"Kafka does not make the topic {topic}") from error
        except KafkaException as error:
            # Another relay made it meanwhile.
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise
        else:
            log.info("a topic was made", topic=topic, partitions=partitions, replicas=replicas)
        while time.monotonic() < deadline:
            try:
                if found := self._partitions_of(topic):
                    return found
            except KafkaException as error:
                if error.args[0].code() != KafkaError.LEADER_NOT_AVAILABLE:
                    raise
            time.sleep(_SHORT_SECONDS)
        raise SinkAway(f"the topic {topic} was made, and no broker leads it")

    def _read_place(self, epoch: uuid.UUID) -> _Filled | None:
        """The last one that was committed. Makes the topic of places where it is not there."""
        places = places_of(self._settings.topic, epoch)
        if self._partitions_of(places) == 0:
            self._create(places, 1, _PLACES)
            self._forget_places()

        def note(message: Message) -> bool:
            if (value := message.value()) is not None:
                self._filled[epoch] = _Filled(**json.loads(value))
            else:
                self._filled.pop(epoch, None)
            return True

        since = self._read_until.get(epoch, OFFSET_BEGINNING)
        [self._read_until[epoch]] = self._read([TopicPartition(places, 0, since)], note)
        return self._filled.get(epoch)

    def _forget_places(self) -> None:
        self._filled.clear()
        self._read_until.clear()

    def _has_events(self, topic: str, partitions: int) -> bool:
        """Whether a consumer finds any committed event there."""
        found = []

        def note(message: Message) -> bool:
            found.append(message)
            return False

        self._read([TopicPartition(topic, it, OFFSET_BEGINNING) for it in range(partitions)], note)
        return bool(found)

    def _read(self, parts: list[TopicPartition], take: Callable[[Message], bool]) -> list[int]:
        """Hands over what is committed behind the offsets, until it is told to stop or there is no more.

        Returns the offsets up to which it has read.
        """
        reader = self._reader()
        ends: dict[int, int] = {}
        reader.assign(parts)
        deadline = time.monotonic() + self._settings.ack_seconds
        try:
            while len(ends) < len(parts):
                message = reader.poll(max(0.0, deadline - time.monotonic()))
                if message is None:
                    raise SinkAway(f"Kafka does not send what is in {parts[0].topic}")
                error = message.error()
                if error is None:
                    deadline = time.monotonic() + self._settings.ack_seconds
                    if not take(message):
                        break
                elif error.code() == KafkaError._PARTITION_EOF:
                    ends[_known(message.partition())] = _known(message.offset())
                elif not error.retriable():
                    raise KafkaException(error)
        finally:
            reader.unassign()
        return [ends.get(it.partition, it.offset) for it in parts]

    def _offsets(self, topic: str, partitions: int, which: int) -> list[int]:
        """Of each partition, whatever is committed. which: OFFSET_BEGINNING or OFFSET_END."""
        asked = [TopicPartition(topic, it, which) for it in range(partitions)]
        answers = self._reader("read_uncommitted").offsets_for_times(asked, self._settings.ack_seconds)
        for it in answers:
            if it.error is not None:
                raise KafkaException(it.error)
        offsets = [it.offset for it in answers]
        if min(offsets) < 0:
            raise SinkAway(f"no broker leads every partition of {topic}")
        return offsets

    def _reader(self, level: str = "read_committed") -> Consumer:
        if (consumer := self._consumers.get(level)) is None:
            consumer = self._consumers[level] = Consumer(
                self._common
                | {
                    # It is asked for. Nobody joins it, and nothing is ever committed to it.
                    "group.id": group_of(self._settings.topic),
                    "enable.auto.commit": False,
                    "enable.partition.eof": True,
                    "isolation.level": level,
                    "auto.offset.reset": "earliest",
                    "fetch.wait.max.ms": 20,
                }
            )
        return consumer

    # To publish.

    def _publish(self, epoch: uuid.UUID, events: Sequence[CloudEvent]) -> None:
        topic = topic_of(self._settings.topic, epoch)
        if self._producer is None or self._epoch != epoch:
            self._begin(epoch, topic)
        assert self._producer is not None
        if self._at != events[0].position - 1:
            raise PlaceTaken(f"the topic {topic} is filled up to event {self._at}")
        try:
            self._transact(self._producer, epoch, topic, events)
        except KafkaException as error:
            if error.args[0].code() == KafkaError._STATE:
                # Something in the transaction has failed, and it cannot be committed: to try says what it was.
                self._producer.commit_transaction(self._settings.ack_seconds)
            raise
        self._at = events[-1].position
        self._problem = ""

    def _transact(self, producer: Producer, epoch: uuid.UUID, topic: str, events: Sequence[CloudEvent]) -> None:
        first, last, seconds = events[0], events[-1], self._settings.ack_seconds
        # Before anything is written, since that would fill the place of what was lost.
        self._ends_of(topic)
        producer.begin_transaction()
        for it in events:
            producer.produce(topic, it.data, it.key.encode(), headers=headers_of(it))
        if producer.flush(seconds):
            raise SinkAway(f"Kafka has not taken events {first.position} to {last.position} within {seconds:g} s")
        filled = _Filled(last.position, last.mark, self._relay, self._personal_data, self._ends_of(topic))
        producer.produce(places_of(self._settings.topic, epoch), json.dumps(asdict(filled)), epoch.hex, partition=0)
        producer.commit_transaction(seconds)

    def _ends_of(self, topic: str) -> tuple[int, ...]:
        """Where its partitions end. Raises PlaceTaken where one has ended later before; its place says what to do."""
        ends = tuple(self._offsets(topic, self._partitions, OFFSET_END))
        if any(map(int.__lt__, ends, self._ends)):
            raise PlaceTaken(f"the topic {topic} has lost events")
        self._ends = ends
        return ends

    def _begin(self, epoch: uuid.UUID, topic: str) -> None:
        """From now on the broker takes nothing from a relay that published to the topic before."""
        self._drop_producer()
        producer = Producer(
            self._common
            | {
                "transactional.id": topic,
                "transaction.timeout.ms": int(self._settings.transaction_seconds * 1000),
                "message.timeout.ms": int(self._settings.ack_seconds * 1000),
                # As Kafka's own clients choose a partition.
                "partitioner": "murmur2_random",
            }
        )
        producer.init_transactions(self._settings.ack_seconds)
        self._producer, self._epoch = producer, epoch
        filled = self._find_filled(epoch)
        self._partitions = self._partitions_of(topic)
        if filled is None:
            if self._has_events(topic, self._partitions):
                raise SinkRefused(
                    f"the topic {topic} has events, and {places_of(self._settings.topic, epoch)} does not say how far"
                    " it is filled: delete the topic, and the relay fills it anew"
                )
            if self._partitions != self._settings.partitions:
                raise SinkRefused(
                    f"the topic {topic} is empty and has {self._partitions} partitions, and KAFKA__PARTITIONS is"
                    f" {self._settings.partitions}: delete the topic, and the relay makes it, or set as many"
                )
            if epoch in self._filled:
                self._take_back_place(producer, epoch)
        self._ends = filled.ends if filled is not None else ()
        self._at = filled.position if filled is not None else self._first - 1

    def _take_back_place(self, producer: Producer, epoch: uuid.UUID) -> None:
        """Of a topic that was deleted. The new one soon has its offsets, perhaps with events that nobody commits."""
        producer.begin_transaction()
        producer.produce(places_of(self._settings.topic, epoch), None, epoch.hex, partition=0)
        producer.commit_transaction(self._settings.ack_seconds)

    def _drop_producer(self) -> None:
        """What it has open is ended when the next one begins, or the transaction's time is over."""
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.purge()

    def _drop_clients(self) -> None:
        """What they know of the cluster, which may be long over, goes with them, and what was read."""
        self._drop_producer()
        while self._consumers:
            self._consumers.popitem()[1].close()
        self._forget_places()


def _known(number: int | None) -> int:
    """Of a message that the broker has."""
    assert number is not None
    return number


def _silent() -> logging.Logger:
    """librdkafka's own lines go nowhere: what is wrong comes as an error."""
    logger = logging.Logger("librdkafka")
    logger.addHandler(logging.NullHandler())
    return logger
