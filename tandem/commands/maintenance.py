"""What the write database needs now and then: old receipts deleted, partitions made, the ledger kept."""

import asyncio
import contextlib
import uuid
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta

from sqlalchemy import Connection, Engine, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import SQLAlchemyError

from tandem.commands.ledger import Ledger
from tandem.commands.partitions import ensure_partitions, headroom
from tandem.commands.receipts import begin_period, purge_receipts
from tandem.commands.settings import ReceiptSettings
from tandem.feed import table as feed
from tandem.feed.table import PARTITION_EVENTS
from tandem.feed.token import epoch_order, new_epoch
from tandem.runtime.clock import Clock, ClocksDiffer, agreed_time, utc_now
from tandem.runtime.database import driver_of, first_line
from tandem.runtime.snapshots import SnapshotWatch
from tandem.runtime.supervised import supervise
from tandem.runtime.telemetry import log, note_success


class Maintenance:
    """A Component. Several servers may run it at the same time."""

    def __init__(
        self,
        engine: Engine,
        settings: ReceiptSettings,
        ledger: Ledger,
        partition_events: int = PARTITION_EVENTS,
        *,
        clock: Clock = utc_now,
    ) -> None:
        """partition_events: of the partitions that it makes. clock: this server's."""
        self._ledger = ledger
        self._engine = engine
        self._settings = settings
        self._partition_events = partition_events
        self._clock = clock
        self._snapshots = SnapshotWatch("write")
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        for job in ("partitions", "receipts"):
            note_success(job)
        self._task = asyncio.create_task(supervise("maintenance", self._run))

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._engine.dispose()

    async def _run(self) -> None:
        while True:
            await asyncio.to_thread(self.look_ahead)
            try:
                await asyncio.to_thread(self.purge)
                note_success("receipts")
            except ClocksDiffer as error:
                log.error("receipts are not purged", error=str(error))
            except SQLAlchemyError as error:
                # The database is away or busy; the next round does what this one did not.
                log.warning("maintenance failed, will be tried again", error=repr(error)[:500])
            except Exception:
                # A bug. Partitions must be made nevertheless: without the next one, no command can be stored some day.
                log.exception("maintenance failed, will be tried again")
            await asyncio.sleep(self._settings.purge_every_seconds)

    def purge(self) -> None:
        """Empties the tables of old receipts, and begins the next one when it is time. Raises ClocksDiffer."""
        while (purged := self._alone(purge_receipts)) is not None:
            log.info("purged receipts", period=purged)
        if (begun := self._alone(begin_period)) is not None:
            log.info("receipts go to the next table", period=begun)

    def _alone(self, change: Callable[[Connection, datetime, timedelta], int | None]) -> int | None:
        with self._engine.begin() as connection:
            return change(connection, agreed_time(connection, self._clock), timedelta(days=self._settings.keep_days))

    def look_ahead(self) -> None:
        """Makes partitions ahead where the role may; says how much there is, and how long a snapshot was held."""
        try:
            with self._engine.begin() as connection:
                for first in ensure_partitions(connection, self._partition_events):
                    log.info("made a partition of the feed", first_position=first)
            note_success("partitions")
        except Exception as error:  # whatever it is, receipts must be purged, and the next round tries again
            log.error("a partition of the feed cannot be made; run migrate as the owner", error=first_line(error))
        try:
            with self._engine.connect() as connection:
                headroom(connection)
                self._ledger.catch_up(connection)
                with driver_of(connection) as driver:
                    self._snapshots.look(driver)
        except SQLAlchemyError as error:
            log.warning("it is not known how the write database is", error=first_line(error))


def begin_epoch(connection: Connection, ended: Iterable[uuid.UUID] = ()) -> uuid.UUID:
    """Names the feed anew, after its database lost commits in a failover or was restored to an earlier state.

    ended: epochs that the feed has had and that the database may not know, since it is from before them.

    Tokens from before are refused then. Projectors bring the views over: see tandem.projection.ownership.
    """
    head = feed.feed_head
    before, now = connection.execute(select(head.c.epoch, func.clock_timestamp()).with_for_update()).one()
    all_ended = {before, *ended}
    # Later than all of them, so that none of their tokens is waited for.
    epoch = new_epoch(max(all_ended, key=epoch_order), now)
    connection.execute(insert(feed.ended_epoch).on_conflict_do_nothing(), [{"epoch": it} for it in all_ended])
    connection.execute(head.update().values(epoch=epoch, lost_position=None))
    return epoch
