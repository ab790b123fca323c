"""The relay's settings."""

from typing import ClassVar

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from tandem.feed.archive import ArchiveSettings
from tandem.relay.settings import NatsSettings, RelaySettings
from tandem.runtime.settings import DatabaseSettings, ServerSettings, ServiceSettings


class Settings(ServiceSettings):
    """All settings of the relay: TANDEM_RELAY_… or the section [relay]."""

    model_config = SettingsConfigDict(env_prefix="TANDEM_RELAY_")
    section: ClassVar[str] = "relay"

    feed_database: DatabaseSettings = Field(description="The write database, whose feed is read and nothing else")
    server: ServerSettings = Field(ServerSettings(port=50054), description="The gRPC server, which answers for health")
    relay: RelaySettings = Field(RelaySettings(), description="How the feed is relayed")
    nats: NatsSettings = Field(NatsSettings(), description="NATS JetStream")
    archive: ArchiveSettings = Field(ArchiveSettings(), description="The feed's archive")
