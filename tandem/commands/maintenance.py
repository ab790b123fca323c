"""What the write database needs now and then: old receipts deleted, partitions made, the ledger kept."""

import asyncio
import contextlib
import uuid
from collections.abc import Iterable
from datetime import timedelta

from prometheus_client import Gauge
from sqlalchemy import Connection, Engine, func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import SQLAlchemyError

from tandem.commands.clock import Clock, ClocksDiffer, agreed_time, utc_now
from tandem.commands.ledger import Ledger
from tandem.commands.receipts import purge_receipts
from tandem.commands.settings import ReceiptSettings
from tandem.feed import table as feed
from tandem.feed.head import read_head
from tandem.feed.token import epoch_order, new_epoch
from tandem.runtime.database import driver_of, first_line
from tandem.runtime.snapshots import SnapshotWatch
from tandem.runtime.supervised import supervise
from tandem.runtime.telemetry import log

HEADROOM = Gauge("tandem_feed_headroom_events", "Events that the feed has partitions for, from its head on")
# Of the advisory lock under which partitions are made.
_PARTITION_LOCK = 7_246_003
PARTITIONS_AHEAD = 3
"""Beside the one that is being filled: 30 million events, so weeks to hear of one that cannot be made."""


class Maintenance:
    """A Component. Several servers may run it at the same time: they skip the rows that another is deleting."""

    def __init__(self, engine: Engine, settings: ReceiptSettings, ledger: Ledger, *, clock: Clock = utc_now) -> None:
        """clock: this server's."""
        self._ledger = ledger
        self._engine = engine
        self._settings = settings
        self._clock = clock
        self._snapshots = SnapshotWatch("write")
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
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
                # Small batches, so that no statement holds many rows: until there is nothing old left.
                while (purged := await asyncio.to_thread(self.purge_once)) > 0:
                    log.info("purged receipts", count=purged)
            except ClocksDiffer as error:
                log.error("receipts are not purged", error=str(error))
            except SQLAlchemyError as error:
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

    def look_ahead(self) -> None:
        """Makes partitions ahead where the role may; says how much there is, and how long a snapshot was held."""
        try:
            with self._engine.begin() as connection:
                for first in ensure_partitions(connection):
                    log.info("made a partition of the feed", first_position=first)
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


def ensure_partitions(connection: Connection) -> list[int]:
    """Makes what is missing of the head's partition and PARTITIONS_AHEAD after it; returns their first positions."""
    current = _next_position(connection) // feed.PARTITION_SIZE * feed.PARTITION_SIZE
    wanted = [current + number * feed.PARTITION_SIZE for number in range(PARTITIONS_AHEAD + 1)]
    if all(_has_partition(connection, first) for first in wanted):
        return []
    # One server at a time: what another has just made is seen behind this.
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _PARTITION_LOCK})
    made = [first for first in wanted if not _has_partition(connection, first)]
    for first in made:
        _create_partition(connection, first)
    return made


def headroom(connection: Connection) -> int:
    """How many positions more the feed has partitions for, without a gap. Where there is none, no command is stored."""
    position = _next_position(connection)
    end = position // feed.PARTITION_SIZE * feed.PARTITION_SIZE
    while _has_partition(connection, end):
        end += feed.PARTITION_SIZE
    left = max(0, end - position)
    HEADROOM.set(left)
    return left


def _next_position(connection: Connection) -> int:
    return read_head(connection).position + 1


def _has_partition(connection: Connection, first: int) -> bool:
    found = connection.execute(text("SELECT to_regclass(:name)"), {"name": _partition_name(first)})
    return found.scalar_one() is not None


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
