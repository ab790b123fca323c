"""What the write database needs now and then: old receipts deleted, the feed's next partition made."""

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from command_server.settings import ReceiptSettings
from command_server.storage.feed import ensure_partition, purge_receipts
from tandem.runtime.telemetry import log


class Maintenance:
    """A Component. Several servers may run it at the same time: they skip the rows that another is deleting."""

    def __init__(self, engine: Engine, settings: ReceiptSettings) -> None:
        self._engine = engine
        self._settings = settings
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
            except DBAPIError as error:
                # The database is away or busy; the next round does what this one did not.
                log.warning("maintenance failed, will be tried again", error=repr(error)[:500])
            except Exception:
                # A bug. Partitions must be made nevertheless: without the next one, no command can be stored some day.
                log.exception("maintenance failed, will be tried again")
            await asyncio.sleep(self._settings.purge_every_seconds)

    def purge_once(self) -> int:
        """Deletes one batch of old receipts; returns how many."""
        with self._engine.begin() as connection:
            keep = timedelta(days=self._settings.keep_days)
            return purge_receipts(connection, datetime.now(UTC), keep, self._settings.purge_batch)

    def _ensure_partition(self) -> int | None:
        with self._engine.begin() as connection:
            return ensure_partition(connection)
