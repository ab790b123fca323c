"""What operators ask of parked rows, and who does it: the projector that owns the view, on the thread that follows.

    a projector's service     asks: a row of the table `operation`, whoever owns the view
    Redriver                  the owner's. Between two batches it takes the oldest that is asked, and does a part of it:
                              of one key, at most so many events. Each part is a transaction, with what the operation
                              has come to, so that whoever owns the view next goes on behind it.

redrive: the row takes in what waits for it, in order, until there is nothing left, or an event that it cannot take in
either. A row that is damaged is made again from the feed first. drop: what waits is taken away, and the row goes on
without.
"""

import json
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import psycopg
from google.protobuf.message import DecodeError

from tandem.feed.events import FeedEvent
from tandem.feed.reader import EventsMissing, HistoryChanged
from tandem.projection.changes import (
    CannotApply,
    ParkedEvent,
    ParkedKeys,
    Room,
    StoredRow,
    ViewChanges,
    ViewRow,
    in_words,
)
from tandem.projection.fold import Step, Steps, fold_steps, steps_of
from tandem.projection.projection import Projection
from tandem.projection.replay import Replay
from tandem.projection.statements import Move, select_rows
from tandem.projection.traced import note_redriven
from tandem.projection.views import Views, ViewState
from tandem.projection.watched_feed import WatchedFeed
from tandem.read_store.tables import operation, parked
from tandem.runtime.database import Driver
from tandem.runtime.sqlstate import ViewAction, failure_of
from tandem.runtime.telemetry import log

REDRIVE, DROP = "redrive", "drop"

# Of one key, in one transaction.
_MOST_EVENTS = 500
# That an operation's outcome names.
MOST_NAMED = 20
_ROOM = ParkedKeys(frozenset(), 0, Room(1, _MOST_EVENTS))
_GOES_ON = "it is being redriven"


@dataclass
class Outcome:
    """What an operation has come to so far.

    keys: how many it has dealt with. events: how many were taken in, or dropped. failed: how many keys stay parked, and
    failing: some of these, each with the position and the error of its first event. after: the last key that was dealt
    with, in hexadecimal digits.
    """

    keys: int = 0
    events: int = 0
    failed: int = 0
    failing: tuple[tuple[str, int, str], ...] = ()
    after: str = ""

    def encode(self) -> str:
        return json.dumps(vars(self))

    @classmethod
    def decode(cls, stored: dict[str, Any]) -> "Outcome":
        return cls(**{**stored, "failing": tuple(tuple(it) for it in stored.get("failing", ()))})


class Operation(NamedTuple):
    """key: None for all that are parked when their turn comes."""

    id: uuid.UUID
    view: str
    action: str
    key: bytes | None
    outcome: Outcome


class Redriver:
    """Does what is asked of views. For the thread that follows."""

    def __init__(
        self,
        driver: Driver,
        feed: WatchedFeed,
        views: Views,
        projections: Mapping[str, Projection],
        write: Callable[[Move, Callable[[], None]], None],
    ) -> None:
        """projections: with those of the other generations.

        write: stores a move with rows of a view that stays where it is, and calls its argument in the same transaction.
        """
        self._driver = driver
        self._feed = feed
        self._views = views
        self._projections = projections
        self._write = write
        # Of a row that is damaged: made again so far.
        self._replay: Replay | None = None
        self._replayed: tuple[str, bytes] | None = None

    def work(self, states: dict[str, ViewState], epoch: uuid.UUID) -> bool:
        """Does a part of what is asked of the views; whether there may be more to do at once.

        Raises psycopg.Error, Deposed, and OtherEpoch.
        """
        asked = _next(self._driver, states)
        if asked is None:
            return False
        key = asked.key if asked.key is not None else _key_after(self._driver, asked.view, asked.outcome.after)
        state = states[asked.view]
        if key is None or asked.outcome.after == key.hex():
            self._finish(asked)
            return True
        projection = self._projections[asked.view]
        waiting = _waiting(self._driver, asked.view, key, last=asked.action == DROP)
        if not waiting:
            asked.outcome.after = key.hex()
            _note(self._driver, asked)
            return True
        if asked.action == DROP:
            changes = ViewChanges(taken=[(key, it.position) for it in waiting])
            self._store(asked, projection, state, key, changes)
            return True
        return self._redrive(asked, projection, state, key, waiting, epoch)

    def _redrive(  # noqa: PLR0917 - what `work` has found
        self,
        asked: Operation,
        projection: Projection,
        state: ViewState,
        key: bytes,
        waiting: Sequence[ParkedEvent],
        epoch: uuid.UUID,
    ) -> bool:
        made: ViewRow | None = None
        began = time.monotonic()
        try:
            # What waits is in the view's history, and may be something else in the feed's.
            if self._feed.events(state.position, 0, epoch, state.mark) is None:
                return False
            stored = select_rows(self._driver, {asked.view: projection}, {asked.view: [key]})[asked.view].get(key)
            if stored is not None and not _is_readable(projection, stored):
                replay = self._make_again(projection, key, waiting[0].position - 1, epoch)
                if replay is None:
                    return not self._feed.problem
                if key in replay.failed:
                    error = f"the damaged row cannot be made again: {replay.failed[key].error}"
                    self._store(asked, projection, state, key, _failing(waiting[0], error))
                    return True
                made = replay.rows.get(key)
                stored = None if made is None else made.stored
            events = self._events([it.position for it in waiting], epoch)
        except (CannotApply, EventsMissing, HistoryChanged) as error:
            self._store(asked, projection, state, key, _failing(waiting[0], in_words(error)))
            return True
        if events is None:
            # The feed is away.
            return False
        count = len(events)
        while True:
            changes = _fold(projection, key, stored, events[:count], self._views)
            if made is not None:
                changes.rows.setdefault(key, made)
            if count < len(waiting) and not changes.failing:
                rest = waiting[count]
                changes.failing = [ParkedEvent(key, rest.position, rest.kind, _GOES_ON, waiting[0].scope)]
            try:
                self._store(asked, projection, state, key, changes)
                note_redriven(asked.view, began, events[: len(changes.taken)])
            except psycopg.Error as error:
                if failure_of(error).view not in {ViewAction.PARK, ViewAction.FAIL}:
                    raise
                if count > 1:
                    count //= 2
                    continue
                self._store(asked, projection, state, key, _failing(waiting[0], in_words(error)))
            return True

    def _store(
        self, asked: Operation, projection: Projection, state: ViewState, key: bytes, changes: ViewChanges
    ) -> None:
        """Stores what becomes of one key, and of the operation."""
        before = Outcome(**vars(asked.outcome))
        outcome = asked.outcome
        left = _count(self._driver, asked.view, key) - len(changes.taken)
        changes.parked_keys = state.parked - (not left)
        outcome.events += len(changes.taken)
        goes_on = left and (asked.action == DROP or (changes.failing and changes.failing[0].error == _GOES_ON))
        if not goes_on:
            outcome.keys += 1
            outcome.after = key.hex()
            if left:
                [it] = changes.failing
                outcome.failed += 1
                outcome.failing = (*outcome.failing, (key.hex(), it.position, it.error or ""))[:MOST_NAMED]
        if projection.logged and changes.rows:
            # For who follows the log, and asks for the entries of a position again: the view stays where it is.
            changes.log = [(state.position, key)]
        try:
            move = Move(projection, state.position, state.position, changes, state.mark)
            self._write(move, lambda: _note(self._driver, asked))
        except psycopg.Error:
            # Nothing of it is done.
            vars(outcome).update(vars(before))
            raise
        log.info(
            "parked events", view=asked.view, key=key.hex(), done=asked.action, events=len(changes.taken), left=left
        )

    def _finish(self, asked: Operation) -> None:
        self._replay = self._replayed = None
        _note(self._driver, asked, done=True)
        log.info("an operator's request is done", view=asked.view, action=asked.action, keys=asked.outcome.keys)

    def _make_again(self, projection: Projection, key: bytes, until: int, epoch: uuid.UUID) -> Replay | None:
        """Makes a damaged row again from the feed, a part of it; None until it is made."""
        if self._replay is None or self._replayed != (projection.view, key):
            self._replay = Replay(self._views.contract, projection, frozenset((key,)), epoch=epoch)
            self._replayed = projection.view, key
        replay = self._replay
        if replay.position < until:
            replay.advance_in(self._feed, until)
        return replay if replay.position >= until else None

    def _events(self, positions: Sequence[int], epoch: uuid.UUID) -> list[FeedEvent] | None:
        """The events at some positions; None while the feed is away."""
        found: list[FeedEvent] = []
        for first, last in _runs(positions):
            after = first - 1
            while after < last:
                part = self._feed.events(after, last - after, epoch, 0)
                if part is None or not part.events:
                    return None
                found += part.events
                after = part.events[-1].position
        return found


def _is_readable(projection: Projection, stored: StoredRow) -> bool:
    try:
        projection.message.FromString(stored[1])
    except DecodeError:
        return False
    return True


def _fold(
    projection: Projection, key: bytes, stored: StoredRow | None, events: Sequence[FeedEvent], views: Views
) -> ViewChanges:
    """What the events make of one row, as far as it can take them in."""
    found = steps_of(projection, events, views.kinds)
    ours = [Step(event, {key: parts[key]}) for event, parts in found.steps if key in parts]
    changes = fold_steps(projection, Steps(ours), {} if stored is None else {key: stored}, _ROOM)
    stop = changes.parked[0] if changes.parked else None
    if stop is None and found.stopped_by is not None:
        event = next(it for it in events if it.position == found.stopped_by.position)
        stop = ParkedEvent(key, event.position, event.kind, str(found.stopped_by))
    changes.taken = [(key, it.position) for it in events if stop is None or it.position < stop.position]
    changes.failing = [] if stop is None else [stop]
    # Who watches a parked row looks at it again and again: the log of these positions is written.
    changes.parked, changes.damaged, changes.log = [], set(), []
    return changes


def _failing(first: ParkedEvent, error: str) -> ViewChanges:
    return ViewChanges(failing=[first._replace(error=error)])


def _runs(positions: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The first and last of those that follow each other without a gap."""
    first = last = positions[0]
    for it in positions[1:]:
        if it != last + 1:
            yield first, last
            first = it
        last = it
    yield first, last


def _next(driver: Driver, views: Collection[str]) -> Operation | None:
    row = driver.execute(
        f"SELECT id, view, action, uuid_send(key), outcome FROM {operation.fullname}"  # noqa: S608 - a table of ours
        " WHERE done_at IS NULL AND view = ANY(%s) ORDER BY asked_at, id LIMIT 1",
        (list(views),),
        prepare=True,
    ).fetchone()
    if row is None:
        return None
    number, view, action, key, outcome = row
    return Operation(number, view, action, None if key is None else bytes(key), Outcome.decode(outcome))


def _note(driver: Driver, asked: Operation, *, done: bool = False) -> None:
    driver.execute(
        f"UPDATE {operation.fullname} SET outcome = %s::jsonb, done_at = CASE WHEN %s THEN now() END"  # noqa: S608
        " WHERE id = %s",
        (asked.outcome.encode(), done, asked.id),
    )


def _key_after(driver: Driver, view: str, after: str) -> bytes | None:
    row = driver.execute(
        f"SELECT uuid_send(key) FROM {parked.fullname} WHERE view = %s AND key > %s ORDER BY key LIMIT 1"  # noqa: S608
        if after
        else f"SELECT uuid_send(key) FROM {parked.fullname} WHERE view = %s ORDER BY key LIMIT 1",  # noqa: S608
        (view, uuid.UUID(after)) if after else (view,),
    ).fetchone()
    return bytes(row[0]) if row else None


def _waiting(driver: Driver, view: str, key: bytes, *, last: bool) -> list[ParkedEvent]:
    """The first events that wait for a row, in order, or the last ones: its first event goes last of all."""
    found = driver.execute(
        f"SELECT position, kind, error, scope FROM {parked.fullname} WHERE view = %s AND key = %s"  # noqa: S608
        f" ORDER BY position {'DESC' if last else ''} LIMIT {_MOST_EVENTS}",
        (view, uuid.UUID(bytes=key)),
    ).fetchall()
    return [ParkedEvent(key, *it) for it in found]


def _count(driver: Driver, view: str, key: bytes) -> int:
    row = driver.execute(
        f"SELECT count(*) FROM {parked.fullname} WHERE view = %s AND key = %s",  # noqa: S608
        (view, uuid.UUID(bytes=key)),
    ).fetchone()
    assert row is not None
    return int(row[0])
