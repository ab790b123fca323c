"""Brokers that a relay publishes to, as tests see each of them."""

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import unquote

from confluent_kafka.admin import AdminClient
from google.protobuf.json_format import ParseDict

from commerce.event.v1.event_pb2 import Event
from tandem.relay.jetstream import stream_of
from tandem.relay.kafka import topic_of
from tandem.relay.settings import EventBridgeSettings, KafkaSettings, NatsSettings
from tests.support import eventbridge, kafka, nats


@dataclass(frozen=True)
class Delivered:
    """What a consumer is sent. key: by which it is in order. attributes: of the CloudEvent, by name."""

    key: str
    attributes: Mapping[str, str]
    data: bytes

    @property
    def id(self) -> str:
        return self.attributes["id"]

    @property
    def position(self) -> int:
        return int(self.attributes["sequence"])


class Broker(Protocol):
    """What the contract of all sinks is tried with."""

    def settings(self, prefix: str, **options: Any) -> dict[str, Any]:
        """The relay's settings that name it. prefix: of all that is made there, so that tests share it."""
        ...

    async def delivered(self, prefix: str, epoch: uuid.UUID) -> list[Delivered]:
        """All that a consumer is sent of an epoch's events: of each key in its order."""
        ...

    async def delete(self, prefix: str, epoch: uuid.UUID) -> None:
        """As an operator deletes what an epoch's events are in."""
        ...


class JetStream:
    """A Broker."""

    def __init__(self, servers: Sequence[nats.NatsServer]) -> None:
        self.servers = list(servers)

    def settings(self, prefix: str, **options: Any) -> dict[str, Any]:
        urls = tuple(it.url for it in self.servers)
        return {"nats": NatsSettings(**{"servers": urls, "stream": prefix, "ack_seconds": 2, **options})}

    async def delivered(self, prefix: str, epoch: uuid.UUID) -> list[Delivered]:
        found = await asyncio.to_thread(asyncio.run, nats.messages(self.servers, stream_of(prefix, epoch)))
        return [
            Delivered(it.subject.rpartition(".")[2], _of("ce-", it.headers or {}, decode=True), it.data) for it in found
        ]

    async def delete(self, prefix: str, epoch: uuid.UUID) -> None:
        async with nats.connected(self.servers) as client:
            await client.jetstream().delete_stream(stream_of(prefix, epoch))


class KafkaBroker:
    """A Broker that speaks Kafka's protocol: an emulator of one."""

    def __init__(self, servers: str) -> None:
        self.servers = servers

    def settings(self, prefix: str, **options: Any) -> dict[str, Any]:
        defaults = {"topic": prefix, "replicas": 1, "partitions": 3, "ack_seconds": 2}
        return {"kafka": KafkaSettings(servers=tuple(self.servers.split(",")), **{**defaults, **options})}

    async def delivered(self, prefix: str, epoch: uuid.UUID) -> list[Delivered]:
        found = await asyncio.to_thread(kafka.messages, self.servers, topic_of(prefix, epoch))
        return [
            Delivered((it.key() or b"").decode(), _of("ce_", kafka.headers(it)), bytes(it.value() or b""))
            for it in found
        ]

    async def delete(self, prefix: str, epoch: uuid.UUID) -> None:
        def delete() -> None:
            asker = AdminClient({"bootstrap.servers": self.servers})
            [deleted] = asker.delete_topics([topic_of(prefix, epoch)]).values()
            deleted.result(10)

        await asyncio.to_thread(delete)


def _of(prefix: str, headers: Mapping[str, str], *, decode: bool = False) -> dict[str, str]:
    found = {name.removeprefix(prefix): it for name, it in headers.items() if name.startswith(prefix)}
    return {name: unquote(it) for name, it in found.items()} if decode else found


class EventBridge:
    """A Broker: moto's server, an emulator of AWS."""

    def settings(self, prefix: str, **options: Any) -> dict[str, Any]:
        eventbridge.make_bus(prefix)
        return {"eventbridge": EventBridgeSettings(bus=prefix, **options)}

    async def delivered(self, prefix: str, epoch: uuid.UUID) -> list[Delivered]:
        """As a consumer has them that dedupes by id and orders by sequence, which EventBridge leaves to it."""
        found = {
            it["detail"]["id"]: it["detail"]
            for it in await asyncio.to_thread(eventbridge.handed_on, prefix)
            if it["detail"]["tandemepoch"] == epoch.hex
        }
        return [
            Delivered(
                it["subject"],
                {name: value for name, value in it.items() if name not in ("data", "tandemepoch")},
                ParseDict(it["data"], Event()).SerializeToString(),
            )
            for it in sorted(found.values(), key=lambda it: it["sequence"])
        ]

    async def delete(self, prefix: str, epoch: uuid.UUID) -> None:
        def delete() -> None:
            eventbridge.empty(prefix)
            key = {"feed": {"S": f"{prefix}/{epoch.hex}"}}
            eventbridge.client("dynamodb").delete_item(TableName="tandem-relay", Key=key)

        await asyncio.to_thread(delete)
