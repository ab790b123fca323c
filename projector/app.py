"""The projector, wired: read downward and you have seen every dependency."""

import asyncio
from pathlib import Path

from sqlalchemy import Engine

from commerce.feed.v1.feed_service_pb2 import DESCRIPTOR as FEED
from commerce.projection.v1.projection_service_pb2 import DESCRIPTOR as PROJECTION
from projector.cache_writer import CacheWriter
from projector.feed import Feed, has_feed
from projector.feed_service.history import History
from projector.feed_service.live import Live
from projector.feed_service.servicers import FeedServicer
from projector.feed_service.tail import Tail
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
    # The loop has connections of its own: operators who ask how far the views are must not hold it up, nor followers.
    feed = _feed(settings, "tandem-projector")
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
    threads = settings.feed_service.catch_up_threads
    history = History(_engine(settings.feed_database, "tandem-feed-history", threads), threads)
    live = Live(settings.feed_service)
    tail = Tail(_feed(settings, "tandem-feed-tail"), live)

    async def views_ready() -> bool:
        return await asyncio.to_thread(has_revision, asked_read, SCHEMA, needed)

    async def feed_ready() -> bool:
        return await asyncio.to_thread(has_feed, asked_feed)

    return Application(
        name="projector",
        server=settings.server,
        services=(
            Service(PROJECTION.services_by_name["ProjectionService"], ProjectionServicer(asked_feed, asked_read, loop)),
            Service(FEED.services_by_name["FeedService"], FeedServicer(history, live), feed_ready),
        ),
        ready=views_ready,
        components=(_Pool(asked_feed), _Pool(asked_read), loop, history, tail),
        # Those of the batches that are under way while it catches up, and no cycles among them.
        new_objects=200_000,
    )


def _feed(settings: Settings, name: str) -> Feed:
    """The write database, with a connection to read and one to listen."""
    listener = Listener(settings.feed_database, FEED_CHANNEL, f"{name}-listener")
    return Feed(_engine(settings.feed_database, name, 1), listener, settings.follow.poll_seconds)


def _engine(settings: DatabaseSettings, name: str, size: int) -> Engine:
    """A batch is one statement, and all that is asked for is found by position or by key."""
    return create_database_engine(settings, name=name, pool_size=size, by_key=True, autocommit=True)


class _Pool:
    """A Component that closes an engine's connections at the end."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def start(self) -> None:
        """Nothing connects before the first use."""

    async def stop(self) -> None:
        self._engine.dispose()
