"""Emulators of Kafka, and what consumers find in them. Neither is Apache Kafka."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import confluent_kafka
import noida_db
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Message, TopicPartition

from tandem.cli.child import HOST, Child
from tandem.testing.ports import free_port
from tandem.testing.stack import kill


class NoidaServer(Child):
    """noida-db, an emulator of one broker. It has transactions, and fences; it keeps what it has in `folder`."""

    def __init__(self, folder: Path) -> None:
        super().__init__("noida-db", free_port(), folder / "noida.log")
        self._folder = folder / "noida"

    def launch(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        program = Path(noida_db.__file__).with_name("noida-db")
        options = ["--only", "kafka", "--kafka-port", str(self.port), "--data-dir", str(self._folder)]
        self._spawn([str(program), "start", "--host", HOST, *options], folder=self._folder)

    def end(self) -> None:
        """At once: nobody needs what it has."""
        if self.exit_code() is None:
            kill(self)


@contextmanager
def noida(folder: Path) -> Iterator[NoidaServer]:
    server = NoidaServer(folder)
    try:
        server.start()
        yield server
    finally:
        server.end()


def messages(servers: str, topic: str) -> list[Message]:
    """All that a consumer of what is committed is sent now, of each partition in its order."""
    consumer = Consumer(
        {
            "bootstrap.servers": servers,
            "group.id": "test",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
            "fetch.wait.max.ms": 20,
        }
    )
    try:
        partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
        consumer.assign([TopicPartition(topic, it, OFFSET_BEGINNING) for it in partitions])
        found: list[Message] = []
        ended: set[int | None] = set()
        while len(ended) < len(partitions):
            message = consumer.poll(10)
            assert message is not None, "the consumer is sent nothing"
            if (error := message.error()) is None:
                found.append(message)
            else:
                assert error.code() == KafkaError._PARTITION_EOF, error
                ended.add(message.partition())
        return found
    finally:
        consumer.close()


def headers(message: Message) -> dict[str, str]:
    """By name."""
    found = dict(message.headers() or ())
    return {name: value.decode() if isinstance(value, bytes) else value or "" for name, value in found.items()}


class MockCluster:
    """librdkafka's mock cluster, an emulator of three brokers in this process, in memory; other processes reach it too.

    It answers as a cluster would, with errors when it is told to, and follows where coordinators are. Its transactions
    are answers alone: what is not committed is there for every consumer, and nobody is fenced.
    """

    def __init__(self) -> None:
        # The wheel's own, which Python's binding says nothing of.
        [library] = Path(confluent_kafka.__file__).parents[1].glob("confluent_kafka.libs/librdkafka-*")
        self._kafka = kafka = ctypes.CDLL(str(library))
        for name in ("rd_kafka_conf_new", "rd_kafka_new", "rd_kafka_mock_cluster_new"):
            getattr(kafka, name).restype = ctypes.c_void_p
        kafka.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
        self._client = ctypes.c_void_p(kafka.rd_kafka_new(0, ctypes.c_void_p(kafka.rd_kafka_conf_new()), None, 0))
        self._cluster = ctypes.c_void_p(kafka.rd_kafka_mock_cluster_new(self._client, 3))
        self.servers: str = kafka.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()

    def create(self, topic: str, partitions: int) -> None:
        """It takes no request for that."""
        assert not self._kafka.rd_kafka_mock_topic_create(self._cluster, topic.encode(), partitions, 3)

    def answer_with(self, request: int, *errors: int) -> None:
        """The next ones of a kind, by its number in Kafka's protocol, are answered so."""
        codes = (ctypes.c_int * len(errors))(*errors)
        self._kafka.rd_kafka_mock_push_request_errors_array(self._cluster, ctypes.c_int16(request), len(errors), codes)

    def answer_well(self, *requests: int) -> None:
        """Again, whatever was not answered otherwise yet. requests: kinds."""
        for it in requests:
            self._kafka.rd_kafka_mock_clear_request_errors(self._cluster, ctypes.c_int16(it))

    def down(self, broker: int) -> None:
        """It takes no connection, and ends those that it has. broker: from 1 on."""
        assert not self._kafka.rd_kafka_mock_broker_set_down(self._cluster, broker)

    def up(self, broker: int) -> None:
        assert not self._kafka.rd_kafka_mock_broker_set_up(self._cluster, broker)

    def coordinate(self, transaction: str, broker: int) -> None:
        """Has a broker coordinate the transactions of an id."""
        cluster, key = self._cluster, transaction.encode()
        assert not self._kafka.rd_kafka_mock_coordinator_set(cluster, b"transaction", key, broker)

    def close(self) -> None:
        self._kafka.rd_kafka_mock_cluster_destroy(self._cluster)
        self._kafka.rd_kafka_destroy(self._client)
