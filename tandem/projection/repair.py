"""Damaged rows are made again from the feed, by the projector that owns their view.

The session meets them in its batches, readers meet them and say so by NOTIFY: they may not write. Both come here, to a
thread with connections of its own, which replays the rows and has the session put them in place.
"""

import asyncio
import time
import uuid
from collections import defaultdict
from collections.abc import Iterable

import psycopg
from google.protobuf.message import DecodeError, Message
from sqlalchemy.exc import SQLAlchemyError

from tandem.feed.lookup import NewLookups
from tandem.feed.reader import BrokenOff
from tandem.projection.changes import CannotApply
from tandem.projection.examiner import PASSING, REPAIRED, STOP_SECONDS, Examiner, Followed
from tandem.projection.inspection import read_range
from tandem.projection.replay import KeyRange
from tandem.read_store.damage import CHANNEL, DamagedRow
from tandem.runtime.database import driver_of, first_line
from tandem.runtime.listener import Listener
from tandem.runtime.settings import DatabaseSettings, SettingsError
from tandem.runtime.supervised import SupervisedThread
from tandem.runtime.telemetry import log

# How long the thread waits for a notification before it looks for what the session has met.
_LOOK_SECONDS = 0.1
# Rows that are repaired together: so many are looked for in the feed by PostgreSQL.
_TOGETHER = 16
# Before a row is tried again that could not be repaired, since a database was away, say; and one that has an event
# which its view cannot take in.
_AGAIN_SECONDS = 1.0
_UNREPAIRABLE_SECONDS = 60.0
# Rows that are read at once to find those that are damaged.
_LOOKED_THROUGH = 1000


class Repairs:
    """A Component: repairs what is reported of the views that this program owns."""

    def __init__(self, following: Followed, *, lookups: NewLookups, read_database: DatabaseSettings) -> None:
        name = "tandem-projector-repair"
        self._examiner = Examiner(following, lookups(name, 1), read_database, name)
        self._damage = following.damage
        self._listener = Listener(read_database, CHANNEL, "tandem-projector-damage")
        self._listens = True
        # Of rows that could not be repaired: when they are tried again.
        self._again: dict[DamagedRow, float] = {}
        self._thread = SupervisedThread("repairs", self._run)

    async def start(self) -> None:
        self._thread.start()

    async def stop(self) -> None:
        self._examiner.stopping.set()
        await asyncio.to_thread(self._thread.join, STOP_SECONDS)

    def _run(self) -> None:
        try:
            while not self._examiner.stopping.is_set():
                self._listen()
                self._repair_reported()
        finally:
            self._listener.close()
        # By this thread: who stops it may not have waited for its end.
        self._examiner.close()

    def _listen(self) -> None:
        try:
            for payload in self._listener.wait(_LOOK_SECONDS):
                self._damage.add(DamagedRow.decode(payload))
        except (psycopg.Error, SettingsError) as error:
            if self._listens:
                log.warning("cannot listen for damaged rows", error=first_line(error))
            self._listens = False
            self._examiner.stopping.wait(_AGAIN_SECONDS)
        else:
            self._listens = True

    def _repair_reported(self) -> None:
        """Of the views that are ours: who owns another view has been told too."""
        now = time.monotonic()
        due = [row for row, at in self._again.items() if at <= now]
        reported = {row for row in self._damage.take() if row not in self._again} | set(due)
        self._again = {row: at for row, at in self._again.items() if at > now}
        by_view: defaultdict[str, list[str]] = defaultdict(list)
        states = self._examiner.following.progress.states
        for row in reported:
            if (state := states.get(row.view)) is not None and state.is_followed:
                by_view[row.view].append(row.key)
        for view, keys in by_view.items():
            if "" in keys:
                self._look_through(view)
            named = [it for it in keys if it]
            for start in range(0, len(named), _TOGETHER):
                self._repair(view, named[start : start + _TOGETHER])

    def _repair(self, view: str, keys: list[str]) -> None:
        """keys: in hexadecimal digits."""
        wanted = frozenset(uuid.UUID(it).bytes for it in keys)
        try:
            generation = self._examiner.state(view).generation
            replay = self._examiner.begin(view, wanted)
            found = self._examiner.ask(view, wanted, replay, generation, repair=True, whole=True)
        except (BrokenOff, CannotApply) as error:
            log.error("rows cannot be made again", view=view, keys=keys, error=str(error))
            self._try_again(view, keys, _UNREPAIRABLE_SECONDS)
            return
        except PASSING as error:
            log.warning("rows cannot be made again now", view=view, keys=keys, error=first_line(error))
            self._try_again(view, keys, _AGAIN_SECONDS)
            return
        REPAIRED.labels(view).inc(sum(it.repaired for it in found))
        for it in found:
            if it.repaired:
                log.warning("a row was made again", view=view, key=it.key.hex(), position=it.position)
            else:
                log.error("rows cannot be made again", view=view, keys=[it.key.hex()], error=it.error)
        self._try_again(view, [it.key.hex() for it in found if not it.repaired], _UNREPAIRABLE_SECONDS)

    def _try_again(self, view: str, keys: Iterable[str], seconds: float) -> None:
        at = time.monotonic() + seconds
        self._again |= {DamagedRow(view, key): at for key in keys}

    def _look_through(self, view: str) -> None:
        """Reports the rows of a view that hold no message of it: somebody has met one and does not know which."""
        projection = self._examiner.following.views.projection(view)
        rest: KeyRange | None = KeyRange()
        try:
            while rest is not None and not self._examiner.stopping.is_set():
                with self._examiner.read.connect() as connection, driver_of(connection) as driver:
                    rows = read_range(driver, projection, rest, _LOOKED_THROUGH).rows
                for key, row in rows.items():
                    if not _is_message(projection.message, row.value):
                        self._damage.report(view, key.hex())
                rest = KeyRange().behind(max(rows)) if len(rows) == _LOOKED_THROUGH else None
        except (SQLAlchemyError, psycopg.Error) as error:
            log.warning("damaged rows cannot be looked for now", view=view, error=first_line(error))
            self._try_again(view, [""], _AGAIN_SECONDS)


def _is_message(kind: type[Message], value: bytes) -> bool:
    try:
        kind.FromString(value)
    except DecodeError:
        return False
    return True
