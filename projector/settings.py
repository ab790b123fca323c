"""The projector's settings."""

import uuid
from typing import ClassVar

from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from shop.views import VIEWS
from tandem.feed.archive import ArchiveSettings
from tandem.feed.service import FeedServiceSettings
from tandem.feed.token_signature import SignedTokenSettings
from tandem.projection.settings import AuditSettings, CacheSettings, ChangeLogSettings, FollowSettings
from tandem.read_store.announcement import HISTORY_CHANGED, Announcement
from tandem.read_store.cache import new_epoch, parse_node
from tandem.runtime.settings import DatabaseSettings, ServerSettings, ServiceSettings


class Settings(ServiceSettings):
    """All settings of the projector: TANDEM_PROJECTOR_… or the section [projector]."""

    model_config = SettingsConfigDict(env_prefix="TANDEM_PROJECTOR_")
    section: ClassVar[str] = "projector"

    feed_database: DatabaseSettings = Field(description="The write database, whose feed is read and nothing else")
    read_database: DatabaseSettings = Field(description="The read database, which holds the views")
    cache_nodes: tuple[str, ...] = Field(
        (),
        description='memcached nodes as a JSON list, ["host:port", …], or ["unix:/path"] on one machine; query servers'
        " learn them from here",
    )
    server: ServerSettings = Field(ServerSettings(port=50053), description="The gRPC server")
    tokens: SignedTokenSettings = Field(SignedTokenSettings(), description="The signature of tokens")
    follow: FollowSettings = Field(FollowSettings(), description="How the feed is followed")
    cache: CacheSettings = Field(CacheSettings(), description="The cache's nodes")
    change_log: ChangeLogSettings = Field(ChangeLogSettings(), description="The change log")
    archive: ArchiveSettings = Field(ArchiveSettings(), description="The feed's archive")
    audit: AuditSettings = Field(AuditSettings(), description="The auditor")
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
            marks=dict.fromkeys(VIEWS, 2**63),
            generations=dict.fromkeys(VIEWS, 2**63),
            problems=dict.fromkeys(VIEWS, HISTORY_CHANGED),
        )
        longest.encode()  # raises ValueError for more nodes than fit
        return nodes
