"""What the write database needs now and then: old receipts deleted, the feed's next partition made."""

import asyncio
import contextlib
import uuid
from datetime import timedelta

from sqlalchemy import Connection, Engine, select, text
from sqlalchemy.exc import DBAPIError

from tandem.commands.clock import Clock, ClocksDiffer, agreed_time, utc_now
from tandem.commands.receipts import purge_receipts
from tandem.commands.settings import ReceiptSettings
from tandem.feed import table as feed
from tandem.runtime.telemetry import log


class Maintenance:
    """A Component. Several servers may run it at the same time: they skip the rows that another is deleting."""

    def __init__(self, engine: Engine, settings: ReceiptSettings, *, clock: Clock = utc_now) -> None:
        """clock: this server's."""
        self._engine = engine
        self._settings = settings
        self._clock = clock
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._engine.dispose()

    async def _run(self) -> None:
        while True:
            try:
                first = await asyncio.to_thread(self._ensure_partition)
                if first is not None:
                    log.info("made the feed's next partition", first_position=first)
                # Small batches, so that no statement holds many rows: until there is nothing old left.
                while (purged := await asyncio.to_thread(self.purge_once)) > 0:
                    log.info("purged receipts", count=purged)
            except ClocksDiffer as error:
                log.error("receipts are not purged", error=str(error))
            except DBAPIError as error:
                # The database is away or busy; the next round does what this one did not.
                log.warning("maintenance failed, will be tried again", error=repr(error)[:500])
            except Exception:
                # A bug. Partitions must be made nevertheless: without the next one, no command can be stored some day.
                log.exception("maintenance failed, will be tried again")
            await asyncio.sleep(self._settings.purge_every_seconds)

    def purge_once(self) -> int:
        """Deletes one batch of old receipts; returns how many. Raises ClocksDiffer."""
        with self._engine.begin() as connection:
            keep = timedelta(days=self._settings.keep_days)
            now = agreed_time(connection, self._clock)
            return purge_receipts(connection, now, keep, self._settings.purge_batch)

    def _ensure_partition(self) -> int | None:
        with self._engine.begin() as connection:
            return ensure_partition(connection)


def ensure_partition(connection: Connection) -> int | None:
    """Makes the feed's next partition when the head is in the second half of the last one; returns its first position.

    Every command server asks now and then; half a partition, millions of events, is the time there is.
    """
    position: int = connection.execute(select(feed.feed_head.c.position)).scalar_one()
    first = (position // feed.PARTITION_SIZE) * feed.PARTITION_SIZE
    if position - first >= feed.PARTITION_SIZE // 2:
        first += feed.PARTITION_SIZE
    name = _partition_name(first)
    if connection.execute(text("SELECT to_regclass(:name)"), {"name": name}).scalar_one() is not None:
        return None
    _create_partition(connection, first)
    return first


def _partition_name(first: int) -> str:
    return f"{feed.event.fullname}_{first // feed.PARTITION_SIZE}"


def _create_partition(connection: Connection, first: int) -> None:
    """Makes the partition of positions `first` to `first` + PARTITION_SIZE - 1.

    Made apart and then attached, which does not shut writers out as CREATE … PARTITION OF would.
    """
    name, parent = _partition_name(first), feed.event.fullname
    connection.execute(text(f"CREATE TABLE IF NOT EXISTS {name} (LIKE {parent} INCLUDING DEFAULTS INCLUDING INDEXES)"))
    connection.execute(
        text(
            f"ALTER TABLE {parent} ATTACH PARTITION {name} FOR VALUES FROM ({first}) TO ({first + feed.PARTITION_SIZE})"
        )
    )


def begin_epoch(connection: Connection) -> uuid.UUID:
    """Names the feed anew, after its database was restored to an earlier state; tokens from before are refused then."""
    epoch: uuid.UUID = connection.execute(
        text(f"UPDATE {feed.feed_head.fullname} SET epoch = gen_random_uuid() RETURNING epoch")  # noqa: S608
    ).scalar_one()
    return epoch
