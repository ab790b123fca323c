"""The projector's settings."""

import uuid
from typing import ClassVar

from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from shop.views import VIEWS
from tandem.read_store.announcement import Announcement
from tandem.read_store.cache import new_epoch, parse_node
from tandem.runtime.settings import Block, DatabaseSettings, ServerSettings, ServiceSettings


class FollowSettings(Block):
    """How the feed is followed."""

    batch_size: int = Field(1000, ge=1, le=10_000, description="Events in one transaction at most")
    poll_seconds: float = Field(0.1, gt=0, le=10, description="How soon a lost notification is made up for")
    heartbeat_seconds: float = Field(
        1.0, gt=0, le=2, description="Time between announcements when nothing happens; readers wait 3 s for one"
    )
    hung_seconds: float = Field(
        15.0, ge=3, le=600, description="How long a projector that hangs keeps its views from a standby"
    )
    standby_seconds: float = Field(0.5, gt=0, le=60, description="How often a standby asks for views that are free")
    retry_seconds: float = Field(5.0, gt=0, le=600, description="How often a view that cannot go on is tried again")


class CacheSettings(Block):
    """The cache's nodes, as the projector reaches them."""

    timeout: float = Field(0.25, gt=0, le=10, description="Seconds to wait for a node before it is fenced off")
    probe_seconds: float = Field(1.0, gt=0, le=60, description="How often a fenced node is asked whether it is back")
    entry_seconds: int = Field(
        86_400, ge=60, le=2_592_000, description="How long an entry lives; a reader that misses it brings it back"
    )


class ChangeLogSettings(Block):
    """The log of which keys changed when."""

    keep_hours: float = Field(24.0, gt=0, description="How long it is kept")
    purge_batch: int = Field(5000, ge=1, le=100_000, description="Old rows deleted in one statement")
    purge_every_seconds: float = Field(60.0, gt=0, description="Time between purges")


class FeedServiceSettings(Block):
    """FeedService: other services that follow the events."""

    max_subscribers: int = Field(1000, ge=1, le=100_000, description="Streams at once; past it RESOURCE_EXHAUSTED")
    ring_events: int = Field(
        10_000, ge=1, le=1_000_000, description="Latest events kept in memory while somebody follows them"
    )
    ring_bytes: int = Field(16 * 1024 * 1024, ge=1024, description="Bytes that they may take; the oldest go first")
    catch_up_threads: int = Field(
        2, ge=1, le=64, description="Subscribers that are behind and read the database at once; a connection each"
    )


class Settings(ServiceSettings):
    """All settings of the projector: TANDEM_PROJECTOR_… or the section [projector]."""

    model_config = SettingsConfigDict(env_prefix="TANDEM_PROJECTOR_")
    section: ClassVar[str] = "projector"

    feed_database: DatabaseSettings = Field(description="The write database, whose feed is read and nothing else")
    read_database: DatabaseSettings = Field(description="The read database, which holds the views")
    cache_nodes: tuple[str, ...] = Field(
        (), description='memcached nodes as a JSON list, ["host:port", …]; query servers learn them from here'
    )
    server: ServerSettings = Field(ServerSettings(port=50053), description="The gRPC server")
    follow: FollowSettings = Field(FollowSettings(), description="How the feed is followed")
    cache: CacheSettings = Field(CacheSettings(), description="The cache's nodes")
    change_log: ChangeLogSettings = Field(ChangeLogSettings(), description="The change log")
    feed_service: FeedServiceSettings = Field(FeedServiceSettings(), description="FeedService")

    @field_validator("cache_nodes")
    @classmethod
    def _nodes_are_addresses(cls, nodes: tuple[str, ...]) -> tuple[str, ...]:
        for node in nodes:
            parse_node(node)
        if len(set(nodes)) != len(nodes):
            raise ValueError("names a node twice")
        longest = Announcement(
            feed_epoch=uuid.UUID(int=0),
            positions=dict.fromkeys(VIEWS, 2**63),
            cache_epochs=dict.fromkeys(VIEWS, dict.fromkeys(nodes, new_epoch())),
        )
        longest.encode()  # raises ValueError for more nodes than fit
        return nodes
