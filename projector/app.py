"""The projector, wired: read downward and you have seen every dependency."""

import asyncio
from pathlib import Path

from sqlalchemy import Engine

from commerce.projection.v1.projection_service_pb2 import DESCRIPTOR
from projector.cache_writer import CacheWriter
from projector.feed import Feed
from projector.loop import Loop
from projector.servicers import ProjectionServicer
from projector.settings import Settings
from tandem.feed.table import CHANNEL as FEED_CHANNEL
from tandem.read_store.tables import SCHEMA
from tandem.runtime.database import create_database_engine, has_revision, newest_revision
from tandem.runtime.listener import Listener
from tandem.runtime.process import Application, Service
from tandem.runtime.settings import DatabaseSettings

MIGRATIONS = Path(__file__).parent / "migrations"


def build(settings: Settings) -> Application:
    # The loop has connections of its own: operators who ask how far the views are must not hold it up.
    feed = Feed(
        _engine(settings.feed_database, "tandem-projector", 1),
        Listener(settings.feed_database, FEED_CHANNEL, "tandem-projector-listener"),
        settings.follow.poll_seconds,
    )
    loop = Loop(
        feed,
        _engine(settings.read_database, "tandem-projector", 1),
        CacheWriter(settings.cache_nodes, settings.cache),
        settings.follow,
        settings.change_log,
    )
    asked_feed = _engine(settings.feed_database, "tandem-projector-status", 2)
    asked_read = _engine(settings.read_database, "tandem-projector-status", 2)
    needed = newest_revision(MIGRATIONS)

    async def ready() -> bool:
        return await asyncio.to_thread(has_revision, asked_read, SCHEMA, needed)

    return Application(
        name="projector",
        server=settings.server,
        services=(
            Service(DESCRIPTOR.services_by_name["ProjectionService"], ProjectionServicer(asked_feed, asked_read, loop)),
        ),
        ready=ready,
        components=(_Pool(asked_feed), _Pool(asked_read), loop),
    )


def _engine(settings: DatabaseSettings, name: str, size: int) -> Engine:
    """One statement is one snapshot; a batch's transaction says its own BEGIN and COMMIT."""
    return create_database_engine(settings, name=name, pool_size=size).execution_options(isolation_level="AUTOCOMMIT")


class _Pool:
    """A Component that closes an engine's connections at the end."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def start(self) -> None:
        """Nothing connects before the first use."""

    async def stop(self) -> None:
        self._engine.dispose()
