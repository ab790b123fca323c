"""The projector, wired: read downward and you have seen every dependency."""

import asyncio
from pathlib import Path

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from commerce.projection.v1.projection_service_pb2 import DESCRIPTOR
from projector.cache_writer import CacheWriter
from projector.loop import Loop
from projector.servicers import ProjectionServicer
from projector.settings import Settings
from tandem.feed.table import CHANNEL as FEED_CHANNEL
from tandem.read_store.tables import SCHEMA
from tandem.runtime.database import create_database_engine, current_revision, newest_revision
from tandem.runtime.listener import Listener
from tandem.runtime.process import Application

MIGRATIONS = Path(__file__).parent / "migrations"


def build(settings: Settings) -> Application:
    # One statement is one snapshot; a batch's transaction says its own BEGIN and COMMIT.
    feed = create_database_engine(settings.feed_database, name="tandem-projector", pool_size=3).execution_options(
        isolation_level="AUTOCOMMIT"
    )
    read = create_database_engine(settings.read_database, name="tandem-projector", pool_size=1).execution_options(
        isolation_level="AUTOCOMMIT"
    )
    # Apart from the loop's connection, which holds the views' locks.
    side = create_database_engine(settings.read_database, name="tandem-projector-side", pool_size=2).execution_options(
        isolation_level="AUTOCOMMIT"
    )
    loop = Loop(
        feed=feed,
        read=read,
        listener=Listener(settings.feed_database, FEED_CHANNEL, "tandem-projector-listener"),
        cache=CacheWriter(settings.cache_nodes, settings.cache),
        follow=settings.follow,
        change_log=settings.change_log,
    )
    needed = newest_revision(MIGRATIONS)

    async def ready() -> bool:
        return await asyncio.to_thread(_has_revision, side, needed)

    return Application(
        name="projector",
        server=settings.server,
        service=DESCRIPTOR.services_by_name["ProjectionService"],
        servicer=ProjectionServicer(feed, side, loop),
        ready=ready,
        components=(_Pool(side), loop),
    )


class _Pool:
    """A Component that closes an engine's connections at the end."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def start(self) -> None:
        """Nothing connects before the first use."""

    async def stop(self) -> None:
        self._engine.dispose()


def _has_revision(engine: Engine, needed: str) -> bool:
    try:
        with engine.connect() as connection:
            return current_revision(connection, SCHEMA) == needed
    except SQLAlchemyError:
        return False
