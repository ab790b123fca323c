"""Rows of a view and their entries in the cache, compared with what the feed makes of them, and made right.

Whoever doubts rows replays them beside the view (replay.py) and hands an `Inspection` over. The session that owns the
view takes it between two of its batches. Nothing moves the view then, so the replayed row, the stored row and the
entry are compared at one position, and what is written is written at that position: no event is skipped or done twice.
"""

import threading
import uuid
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import Table, Uuid

from tandem.feed.token import Token
from tandem.feed.verification import ENTRY, EVENT, EXTRA, MISSING, ROW, Difference
from tandem.projection.cache_writer import CacheWriter
from tandem.projection.changes import ViewChanges, ViewRow
from tandem.projection.projection import Projection
from tandem.projection.replay import KeyRange, Replay
from tandem.projection.statements import Move, count_parked, move_views, select_waiting
from tandem.projection.watched_feed import WatchedFeed
from tandem.read_store.tables import newest, view_of_table, written_columns
from tandem.runtime.arrays import array
from tandem.runtime.database import Driver

# At most so many inspections wait for a session.
_MOST_WAITING = 64


class NotNow(Exception):
    """The rows could not be compared: the view is not ours, or was made anew, or the feed is away. The message says."""


class Behind(Exception):
    """The view has gone on by too much since the rows were replayed. They are to be replayed further."""


@dataclass
class Inspection:
    """Rows that a session is to compare. replay: it has them; it is the session's until the answer.

    generation: of the view, when the replay was begun. repair: whether what differs is made right. whole: whether rows
    with an erased person's events are compared too: see Replay.unopened.
    answer: the differences; raises NotNow, Behind, BrokenOff, CannotApply, and what the databases raise.
    """

    view: str
    keys: Collection[bytes]
    replay: Replay
    generation: int
    repair: bool
    whole: bool
    answer: "Future[list[Difference]]" = field(default_factory=Future)


class Inspections:
    """Those that wait for the session. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[Inspection] = deque()

    def ask(self, inspection: Inspection) -> None:
        """Raises NotNow when too many wait."""
        with self._lock:
            if len(self._waiting) >= _MOST_WAITING:
                raise NotNow(f"{_MOST_WAITING} inspections wait already")
            self._waiting.append(inspection)

    def take(self) -> Iterator[Inspection]:
        """Those that wait now, one by one. For one thread; where it ends in between, the others still wait."""
        for _ in range(len(self._waiting)):
            with self._lock:
                it = self._waiting.popleft()
            yield it

    def give_back(self, reason: str) -> None:
        """Nobody takes them now: the session is over."""
        for it in self.take():
            it.answer.set_exception(NotNow(reason))


class Inspector:
    """Inspects for a session, on its thread, between two batches."""

    def __init__(
        self,
        driver: Driver,
        feed: WatchedFeed,
        cache: CacheWriter,
        *,
        session: uuid.UUID,
        alone: AbstractContextManager[object],
        forget: Callable[[], None],
        most_events: int,
    ) -> None:
        """session: of the views' owner. alone: within it, no other thread writes or announces. forget: drops the rows
        that the session has in memory, and what was folded ahead. most_events: that are read to bring replayed rows to
        where the view is.
        """
        self._driver = driver
        self._session = session
        self._alone = alone
        self._forget = forget
        self._feed = feed
        self._cache = cache
        self._most_events = most_events

    def inspect(self, it: Inspection, projection: Projection, at: Token) -> list[Difference]:
        """at: where the view is, which is ours.

        Raises as Inspection.answer says, and Deposed.
        """
        replay, view = it.replay, projection.view
        if at.generation != it.generation:
            raise NotNow(f"{view} was made anew")
        self._catch_up(replay, at)
        # Raises HistoryChanged where the view has what the feed has lost: that is no difference, and a person decides.
        if self._feed.events(at.position, 0, at.epoch, at.mark) is None:
            raise NotNow("the feed is away")
        found = read_rows(self._driver, projection, list(it.keys)).rows
        differences = compare(projection, it.keys, replay, found)
        entries = {}
        if view in self._cache.epochs:
            with self._alone:
                entries = self._cache.read(view, [key for key in it.keys if key not in replay.failed])
        for key, value in entries.items():
            row = replay.rows.get(key)
            if key not in differences and (row is None or value != row.value):
                differences[key] = Difference(view, key, ENTRY, at.position if row is None else row.position)
        if not it.whole:
            differences = {key: one for key, one in differences.items() if key not in replay.unopened}
        if it.repair:
            return self._repair(projection, at, replay, differences)
        # A row that is parked says so itself.
        waiting = select_waiting(self._driver, view, list(differences)) if differences else {}
        return [one for key, one in differences.items() if key not in waiting]

    def _catch_up(self, replay: Replay, at: Token) -> None:
        """Brings replayed rows to where the view is, by what came meanwhile. Raises BrokenOff."""
        missing = at.position - replay.position
        if missing > self._most_events:
            raise Behind
        while replay.position < at.position:
            part = self._feed.events(replay.position, at.position - replay.position, at.epoch, 0)
            if part is None or not part.events:
                raise NotNow("the feed is away")
            replay.take_in(part.events, part.events[-1].position)

    def _repair(
        self,
        projection: Projection,
        at: Token,
        replay: Replay,
        differences: Mapping[bytes, Difference],
    ) -> list[Difference]:
        right = {key: replay.rows.get(key) for key in differences if key not in replay.failed}
        rows = {key: row for key, row in right.items() if differences[key].kind != ENTRY}
        with self._alone:
            if rows:
                self._forget()
                # A view that is FAILED seems to have no problem then, until it is tried again, which is soon.
                # What waits for a row that is parked is in the row that is made again.
                waiting = select_waiting(self._driver, projection.view, list(rows))
                taken = [(key, position) for key, positions in waiting.items() for position in positions]
                parked = count_parked(self._driver, projection.view) - len(waiting)
                changes = ViewChanges(rows=rows, taken=taken, parked_keys=parked)
                move = Move(projection, at.position, at.position, changes, at.mark)
                move_views(self._driver, at.epoch, self._session, [move])
            if projection.view in self._cache.epochs:
                self._cache.write({projection.view: ViewChanges(rows=right).values})
        return [replace(it, repaired=key in right) for key, it in differences.items()]


class StoredRows(NamedTuple):
    """Rows as they are, and where the view was in that moment; None for a view that nobody has begun."""

    at: Token | None
    rows: dict[bytes, ViewRow]


def read_rows(driver: Driver, projection: Projection, keys: Collection[bytes]) -> StoredRows:
    """Those of the rows that exist. One statement. Raises psycopg.Error."""
    return _read(driver, projection, _BY_KEY, [array("UUID", keys)])


def read_range(driver: Driver, projection: Projection, wanted: KeyRange, most: int) -> StoredRows:
    """At most `most` rows of a range, by key. One statement. Raises psycopg.Error."""
    first = uuid.UUID(bytes=wanted.first)
    end = None if wanted.end is None else uuid.UUID(bytes=wanted.end)
    return _read(driver, projection, _BY_RANGE, [first, end, end, most])


# `written_columns` begin with the key and the position, and end with the value.
def _read(driver: Driver, projection: Projection, rows: str, parameters: Sequence[Any]) -> StoredRows:
    answer = list(driver.send(_statement(projection.table, rows), parameters))
    if not answer:
        return StoredRows(None, {})
    at = Token(*answer[0][:4])
    found = {}
    for _, _, _, _, key, position, *columns, value in answer:
        if key is not None:
            found[key.bytes] = ViewRow(position, 0, tuple(columns), value)
    return StoredRows(at, found)


_BY_KEY = "SELECT {columns} FROM {table} WHERE key = ANY (%s::uuid[])"
_BY_RANGE = (
    "SELECT {columns} FROM {table} WHERE key >= %s AND (%s::uuid IS NULL OR key < %s::uuid) ORDER BY key LIMIT %s"
)


@cache
def _statement(table: Table, rows: str) -> str:
    columns = ", ".join(column.name for column in written_columns(table))
    position, of_view = newest(f"'{view_of_table(table)}'"), rows.format(columns=columns, table=table.fullname)
    return (
        f"SELECT p.feed_epoch, p.position, p.mark, p.generation, v.* FROM {position} AS p"  # noqa: S608
        f" LEFT JOIN LATERAL ({of_view}) AS v ON true"
    )


def compare(
    projection: Projection, keys: Collection[bytes], replay: Replay, found: Mapping[bytes, ViewRow]
) -> dict[bytes, Difference]:
    """What differs, by key. found: the rows as they are, at the position where the replay is."""
    view = projection.view
    differences = {}
    for key in keys:
        if key in replay.failed:
            error = replay.failed[key]
            differences[key] = Difference(view, key, EVENT, error.position, error=error.error or "")
            continue
        right, stored = replay.rows.get(key), found.get(key)
        if right is None and stored is not None:
            differences[key] = Difference(view, key, EXTRA, stored.position)
        elif right is not None and stored is None:
            differences[key] = Difference(view, key, MISSING, right.position)
        elif right is not None and stored is not None:
            columns = tuple(_differing(projection.table, right, stored))
            if columns:
                differences[key] = Difference(view, key, ROW, right.position, columns)
    return differences


def _differing(table: Table, right: ViewRow, stored: ViewRow) -> list[str]:
    if (right.value, right.position) == (stored.value, stored.position) and right.columns == stored.columns:
        return []
    _, *columns = written_columns(table)
    rows = ((it.position, *it.columns, it.value) for it in (right, stored))
    return [
        column.name
        for column, *values in zip(columns, *rows, strict=True)
        if len({str(it) if isinstance(column.type, Uuid) and it is not None else it for it in values}) > 1
    ]
