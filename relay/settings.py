"""The relay's settings."""

from typing import ClassVar, Self

from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

from tandem.feed.archive import ArchiveSettings
from tandem.relay.settings import EventBridgeSettings, KafkaSettings, NatsSettings, RelaySettings, one_of
from tandem.runtime.settings import DatabaseSettings, ServerSettings, ServiceSettings


class Settings(ServiceSettings):
    """All settings of the relay: TANDEM_RELAY_… or the section [relay]."""

    model_config = SettingsConfigDict(env_prefix="TANDEM_RELAY_")
    section: ClassVar[str] = "relay"

    feed_database: DatabaseSettings = Field(description="The write database, whose feed is read and nothing else")
    server: ServerSettings = Field(ServerSettings(port=50054), description="The gRPC server, which answers for health")
    relay: RelaySettings = Field(RelaySettings(), description="How the feed is relayed")
    nats: NatsSettings | None = Field(None, description="Publish to NATS JetStream")
    kafka: KafkaSettings | None = Field(
        None, description="Publish to brokers of Kafka's protocol; tested on emulators, and not yet run on Apache Kafka"
    )
    eventbridge: EventBridgeSettings | None = Field(
        None, description="Publish to Amazon EventBridge; tested on an emulator, and not yet run on AWS"
    )
    archive: ArchiveSettings = Field(ArchiveSettings(), description="The feed's archive")

    @model_validator(mode="after")
    def _publishes_to_one(self) -> Self:
        one_of(nats=self.nats, kafka=self.kafka, eventbridge=self.eventbridge)
        return self
