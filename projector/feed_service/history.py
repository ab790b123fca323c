"""Reading the feed from the database, for those who are behind: a bounded number at once, each a batch at a time."""

import asyncio
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from projector.feed import first_line
from projector.feed_service.batch import Batch, Selection, cut
from projector.feed_service.entry import entry_of
from projector.feed_service.refusals import another_feed, expired, store_away
from shop.events import EVENTS
from tandem.feed.head import FeedHead, read_head
from tandem.feed.reader import read_events
from tandem.runtime.telemetry import log

T = TypeVar("T")


class History:
    """A Component. Each of its threads has a connection of the engine, which is in autocommit mode."""

    def __init__(self, engine: Engine, threads: int) -> None:
        self._engine = engine
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="feed-history")

    async def start(self) -> None:
        """Nothing connects before the first use."""

    async def stop(self) -> None:
        await asyncio.to_thread(self._threads.shutdown, wait=True, cancel_futures=True)
        self._engine.dispose()

    async def head(self) -> FeedHead:
        """Raises Unavailable."""
        return await self._run(read_head)

    async def read(self, epoch: uuid.UUID, after: int, selection: Selection, rows: int) -> Batch:
        """A batch out of the next `rows` events. Raises Unavailable, PreconditionFailed and OutOfRange."""
        return await self._run(lambda connection: _read(connection, epoch, after, selection, rows))

    async def _run(self, query: Callable[[Connection], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._with_connection, query)

    def _with_connection(self, query: Callable[[Connection], T]) -> T:
        try:
            with self._engine.connect() as connection:
                return query(connection)
        except SQLAlchemyError as error:
            log.warning("the feed cannot be read", error=first_line(error))
            raise store_away("the write database is away") from error


def _read(connection: Connection, epoch: uuid.UUID, after: int, selection: Selection, rows: int) -> Batch:
    head = read_head(connection)
    if head.epoch != epoch:
        raise another_feed()
    if head.position <= after:
        return Batch([], after, head.position)
    events = read_events(connection, EVENTS, after, rows, epoch)
    if not events or events[0].position != after + 1:
        # The feed has no gaps: what is missing was dropped, unless all of it is another's by now.
        if read_head(connection).epoch != epoch:
            raise another_feed()
        raise expired(epoch, events[0].position - 1 if events else head.position)
    return cut(events, selection, after=after, head=head.position, read=entry_of)
