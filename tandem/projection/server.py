"""A projector of a domain: its settings, what it is made of, and what its program does other than serve."""

import sys
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

from google.protobuf.descriptor import ServiceDescriptor
from pydantic import Field, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from tandem.feed.archive import Archive, ArchiveSettings
from tandem.feed.lookup import NewLookups, TableLookups
from tandem.feed.service import FeedService, FeedServiceSettings
from tandem.feed.source import Feed
from tandem.feed.token_signature import SignedTokenSettings, sign_tokens
from tandem.feed.verification import AuditService
from tandem.projection.audit import Auditor
from tandem.projection.cache_writer import CacheWriter
from tandem.projection.explaining import Explaining
from tandem.projection.following import Following, table_feed
from tandem.projection.indexing import Indexer
from tandem.projection.repair import Repairs
from tandem.projection.service import ProjectionService
from tandem.projection.settings import AuditSettings, CacheSettings, ChangeLogSettings, FollowSettings
from tandem.projection.views import Views
from tandem.read_store.announcement import HISTORY_CHANGED, Announcement
from tandem.read_store.cache import CacheEpochs, new_epoch
from tandem.read_store.node import NodeError, parse_node
from tandem.read_store.nodes import node_client
from tandem.read_store.search_index import SearchEngineSettings, SearchIndex
from tandem.read_store.tables import READ
from tandem.relay.settings import NatsSettings
from tandem.runtime.actions import Action, Done
from tandem.runtime.blockers import blockers, end_session
from tandem.runtime.migrations import migrate
from tandem.runtime.program import main
from tandem.runtime.server import Application
from tandem.runtime.settings import DatabaseSettings, ServerSettings, ServiceSettings
from tandem.services.v1.audit_service_pb2 import DESCRIPTOR as AUDIT
from tandem.services.v1.projection_service_pb2 import DESCRIPTOR as PROJECTIONS

# How long a thread that has an answer of a database waits for the interpreter while another thread folds. Python's own
# five milliseconds are too long: an answer comes in many pieces, and each would wait.
_SWITCH_SECONDS = 0.001


class ProjectorSettings(ServiceSettings):
    """All settings of a projector: TANDEM_PROJECTOR_… or the section [projector]. A domain names its views."""

    model_config = SettingsConfigDict(env_prefix="TANDEM_PROJECTOR_")
    section: ClassVar[str] = "projector"
    views: ClassVar[Collection[str]] = ()
    """By name: an announcement tells of all of them, and has to be short enough."""

    feed_database: DatabaseSettings | None = Field(
        None,
        description="The write database, whose feed is read and nothing else. With BROKER it is not needed: then"
        " FeedService alone reads it, and is not there without it",
    )
    read_database: DatabaseSettings = Field(description="The read database, which holds the views")
    cache_nodes: tuple[str, ...] = Field(
        (),
        description='Nodes of the cache as a JSON list: memcached\'s ["host:port", …], on one machine ["unix:/path"];'
        ' of Redis or Valkey ["redis://host:port", …], with TLS ["rediss://host:port", …]. Query servers learn them'
        " from here",
    )
    server: ServerSettings = Field(ServerSettings(port=50053), description="The gRPC server")
    tokens: SignedTokenSettings = Field(SignedTokenSettings(), description="The signature of tokens")
    follow: FollowSettings = Field(FollowSettings(), description="How the feed is followed")
    cache: CacheSettings = Field(CacheSettings(), description="The cache's nodes")
    change_log: ChangeLogSettings = Field(ChangeLogSettings(), description="The change log")
    archive: ArchiveSettings = Field(ArchiveSettings(), description="The feed's archive")
    audit: AuditSettings = Field(AuditSettings(), description="The auditor")
    broker: NatsSettings | None = Field(
        None,
        description="Read the relay's stream there, instead of the feed's table; for a projector far from the write"
        " database",
    )
    feed_service: FeedServiceSettings = Field(FeedServiceSettings(), description="FeedService")
    search_engine: SearchEngineSettings | None = Field(
        None, description="Put the views that have an index into a search engine; without one nothing is"
    )

    @model_validator(mode="after")
    def _have_a_feed(self) -> Self:
        if self.feed_database is None and self.broker is None:
            raise ValueError("no feed is set to follow: set FEED_DATABASE__URL, or BROKER__SERVERS")
        return self

    @field_validator("cache_nodes")
    @classmethod
    def _nodes_are_addresses(cls, nodes: tuple[str, ...]) -> tuple[str, ...]:
        for node in nodes:
            try:
                node_client(node, timeout=1.0)
            except NodeError as error:
                raise ValueError(f"{node}: {error}") from error
        if len(set(nodes)) != len(nodes):
            raise ValueError("names a node twice")
        epochs: CacheEpochs = {it: new_epoch(parse_node(it).longest_identity) for it in nodes}
        longest = Announcement(
            feed_epoch=uuid.UUID(int=0),
            positions=dict.fromkeys(cls.views, 2**63),
            cache_epochs=dict.fromkeys(cls.views, epochs),
            marks=dict.fromkeys(cls.views, 2**63),
            generations=dict.fromkeys(cls.views, 2**63),
            problems=dict.fromkeys(cls.views, HISTORY_CHANGED),
        )
        longest.encode()  # raises ValueError for more nodes than fit
        return nodes


def build_projector(
    views: Views,
    settings: ProjectorSettings,
    *,
    revision: str,
    projections: ServiceDescriptor = PROJECTIONS.services_by_name["ProjectionService"],
    audit: ServiceDescriptor = AUDIT.services_by_name["AuditService"],
    feed: ServiceDescriptor | None = None,
    erased_kind: str = "",
    indexes: Sequence[SearchIndex] = (),
) -> Application:
    """revision: the domain's migration of the read database that this program needs.

    projections, audit: the services, where the domain's contract has its own. feed: the service for followers of the
    domain's events; None where there is none, and it is not served without the write database. erased_kind: of the
    event with which a data subject is erased. indexes: what a search engine has of views, where the settings name one.
    """
    engine = settings.search_engine
    indexers = [
        Indexer(
            it,
            engine,
            read_database=settings.read_database,
            follow=settings.follow,
            log_keeps_seconds=3600 * settings.change_log.keep_hours,
        )
        for it in indexes
        if engine is not None
    ]
    views = views.logging([it.source for it in indexes]) if indexers else views
    sign_tokens(settings.tokens)
    archive = Archive(settings.archive.folder)
    lookups = _lookups(views, settings, archive)
    following = Following(
        views,
        feed=_feed(views, settings, archive),
        read_database=settings.read_database,
        cache=CacheWriter(settings.cache_nodes, settings.cache),
        follow=settings.follow,
        change_log=settings.change_log,
    )
    explaining = Explaining(
        projections,
        views,
        following.progress,
        following.cache,
        lookups=lookups,
        read_database=settings.read_database,
    )
    repairs = Repairs(following, lookups=lookups, read_database=settings.read_database)
    auditor = Auditor(
        following,
        settings.audit,
        lookups=lookups,
        read_database=settings.read_database,
        cache_nodes=settings.cache_nodes,
        cache=settings.cache,
    )
    audit_service = AuditService(audit, dict.fromkeys(views.projections, auditor.verify))
    projection_service = ProjectionService(
        projections,
        following.progress,
        lookups=lookups,
        read_database=settings.read_database,
        explaining=explaining,
        cache=following.cache,
        revision=revision,
    )
    feeds = [
        FeedService(
            it,
            views.contract,
            database,
            settings.feed_service,
            erased_kind=erased_kind,
            poll_seconds=settings.follow.poll_seconds,
            archive=archive,
        )
        for it, database in [(feed, settings.feed_database)]
        if it is not None and database is not None
    ]
    return Application(
        name="projector",
        server=settings.server,
        services=(projection_service.service, *(it.service for it in feeds), audit_service.service),
        ready=projection_service.is_ready,
        components=(explaining, projection_service, following, repairs, auditor, *feeds, *indexers),
        # Those of the batches that are under way while it catches up, and no cycles among them.
        new_objects=200_000,
    )


def _feed(views: Views, settings: ProjectorSettings, archive: Archive) -> Feed:
    """What the views follow."""
    if settings.broker is None:
        assert settings.feed_database is not None, "checked with the settings"
        return table_feed(settings.feed_database, views.contract, settings.follow, archive)
    # Here, because NATS's client takes a twentieth of a projector's start, and most have no broker.
    from tandem.relay.stream_feed import StreamFeed  # noqa: PLC0415

    poll_seconds = settings.follow.poll_seconds
    return StreamFeed(settings.broker, views.contract, name="tandem-projector", poll_seconds=poll_seconds)


def _lookups(views: Views, settings: ProjectorSettings, archive: Archive) -> NewLookups:
    """Where the feed is looked up: where the views follow it."""
    database, broker, contract = settings.feed_database, settings.broker, views.contract
    if broker is not None:
        from tandem.relay.stream_lookup import StreamLookups  # noqa: PLC0415 - see `_feed`

        return lambda name, _: StreamLookups(broker, contract, name=name)
    assert database is not None, "checked with the settings"
    return lambda name, at_once: TableLookups(database, contract, archive, name=name, at_once=at_once)


def run_projector(
    name: str,
    settings_class: type[ProjectorSettings],
    build: Callable[[Any], Application],
    actions: Mapping[str, Action],
) -> int:
    """What `python -m NAME` does; returns the exit code. build: makes the projector of the settings."""
    sys.setswitchinterval(_SWITCH_SECONDS)
    return main(name, settings_class, build, actions, "follow the feed until SIGTERM")


def projector_actions(migrations: Path) -> dict[str, Action]:
    """What `python -m <the domain's projector>` does other than serve. migrations: the domain's folder of them."""
    return {
        "migrate": Action("bring the read database's schema up to date", partial(_migrate, migrations=migrations)),
        "blockers": Action(
            "show who holds others up in the read database", lambda settings: blockers(settings.read_database)
        ),
        "end-session": Action(
            "end a session that `blockers` shows, by its process id",
            lambda settings, pid: end_session(settings.read_database, pid),
            takes=int,
        ),
    }


def _migrate(settings: ProjectorSettings, migrations: Path) -> Done:
    revision = migrate(settings.read_database, migrations, READ)
    return Done(f"{READ.name} is at revision {revision}", {"schema": READ.name, "revision": revision})
