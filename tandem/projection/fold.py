"""Folding events into a view's rows, in memory. Pure.

A batch is folded row by row: a row's message is parsed, changed by each event that concerns it, and serialised. So one
message is in memory at a time instead of one for each row.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError, Message

from tandem.feed.events import FeedEvent
from tandem.projection.changes import (
    NOTHING_PARKED,
    CannotApply,
    ParkedEvent,
    ParkedKeys,
    StoredRow,
    ViewChanges,
    ViewRow,
    in_words,
)
from tandem.projection.projection import NotThere, Projection

Touch = tuple[int, str, Any]
"""Of an event that concerns a row: its position, its kind, and what its rule gets."""


class Step(NamedTuple):
    """An event that concerns a view. parts: the keys of the rows that it changes, each with what its rule gets."""

    event: FeedEvent
    parts: dict[bytes, Any]


@dataclass
class Steps:
    """The events of a batch that concern a view, before its rows are known. stopped_by: as in ViewChanges."""

    steps: list[Step] = field(default_factory=list)
    stopped_by: CannotApply | None = None

    def bound(self, max_rows: int) -> int | None:
        """Takes events out at the end, so that the others change at most `max_rows` rows, or there is one event alone.

        Returns the position of the first that is taken out, for the batch behind; None when there is none.
        """
        if sum(len(parts) for _, parts in self.steps) <= max_rows:
            return None
        keys: set[bytes] = set()
        for number, (event, parts) in enumerate(self.steps):
            keys.update(parts)
            if number and len(keys) > max_rows:
                del self.steps[number:]
                self.stopped_by = None
                return event.position
        return None

    def needed(self, projection: Projection) -> set[bytes]:
        """The keys of rows that the events change and do not make: those to look up."""
        known: set[bytes] = set()
        needed: set[bytes] = set()
        for event, parts in self.steps:
            if event.kind in projection.begins:
                known.update(parts)
            else:
                needed.update(parts.keys() - known if known else parts)
        return needed


def steps_of(projection: Projection, events: Iterable[FeedEvent], known_kinds: Collection[str]) -> Steps:
    """Those of the events that concern the view, up to the first of which it cannot be said which rows it changes.

    known_kinds: all kinds of events that this program knows.
    """
    found = Steps()
    rules, parts_of = projection.rules, projection.parts_of
    for event in events:
        kind = event.kind
        if kind in rules:
            try:
                found.steps.append(Step(event, parts_of(kind, event.message)))
            except Exception as error:  # whatever it is: a number of days that no calendar has, say
                found.stopped_by = CannotApply(event, error)
                break
        elif kind not in known_kinds:
            # A newer command server stored it. A view that passed over it would lack it for good after an upgrade.
            found.stopped_by = CannotApply(event, "this program does not know this kind of event; upgrade it")
            break
    return found


def fold_steps(
    projection: Projection, steps: Steps, rows: Mapping[bytes, StoredRow], parked: ParkedKeys = NOTHING_PARKED
) -> ViewChanges:
    """The rows after the steps. rows: of those that the steps need, the ones that exist.

    An event that some row cannot take in is parked for that row, with all that follow for it; other rows that the event
    changes take it in. parked: the keys for which all is parked. Where that would be too much, the view stops.
    """
    changes = _fold(projection, steps, rows, parked)
    if changes.parked and (last := _last_that_fits(changes.parked, parked)) is not None:
        event = next(event for event, _ in steps.steps if event.position == last.position)
        full = f"{parked.room.keys} keys of the view, or {parked.room.events} events, are parked already; {last.error}"
        before = [step for step in steps.steps if step.event.position < last.position]
        return _fold(projection, Steps(before, CannotApply(event, full)), rows, parked)
    return changes


def _fold(projection: Projection, steps: Steps, rows: Mapping[bytes, StoredRow], parked: ParkedKeys) -> ViewChanges:
    """Row by row, each with all steps that concern it."""
    changes = ViewChanges(stopped_by=steps.stopped_by)
    rules, touches = projection.rules, _touches(steps.steps)
    if projection.logged:
        changes.log = [(event.position, key) for event, parts in steps.steps for key in parts]
    parse, columns_of, changed = projection.message.FromString, projection.columns, changes.rows
    waiting = parked.keys
    for key, touching in touches.items():
        if key in waiting:
            changes.parked += [ParkedEvent(key, position, kind) for position, kind, _ in touching]
            continue
        try:
            began, message = 0, None
            if key in rows:
                began, value = rows[key]
                message = parse(value)
            for position, kind, part in touching:
                if message is None:
                    if kind not in projection.beginning:
                        raise NotThere("it is about something that is not in the view")
                    began = position
                message = rules[kind](message, part)
            if message is None:
                changed[key] = None
            else:
                value = message.SerializeToString(deterministic=True)
                changed[key] = ViewRow(position, began, columns_of(message, began), value)
        except Exception:  # whatever a rule raises
            _fold_one_by_one(projection, key, touching, rows.get(key), changes)
    if changes.parked:
        changes.parked_keys = len(waiting | {it.key for it in changes.parked})
    else:
        changes.parked_keys = len(waiting)
    return changes


def _fold_one_by_one(
    projection: Projection, key: bytes, touching: Sequence[Touch], stored: StoredRow | None, changes: ViewChanges
) -> None:
    """A row that cannot take in some of the events: it is as those before the first of these make it."""
    for number, (position, kind, part) in enumerate(touching):
        try:
            began, message = position, None
            if stored is not None:
                began, value = stored
                message = projection.message.FromString(value)
            elif kind not in projection.beginning:
                raise NotThere("it is about something that is not in the view")
            message = projection.rules[kind](message, part)
            row = None
            if message is not None:
                value = message.SerializeToString(deterministic=True)
                row = ViewRow(position, began, projection.columns(message, began), value)
        except Exception as error:  # as in _fold
            before = _readable(projection, stored)
            if stored is not None and before is None:
                changes.damaged.add(key)
            changes.parked.append(ParkedEvent(key, position, kind, in_words(error), projection.scope_of(before, part)))
            changes.parked += [ParkedEvent(key, later, its_kind) for later, its_kind, _ in touching[number + 1 :]]
            return
        changes.rows[key] = row
        stored = None if row is None else row.stored


def _readable(projection: Projection, stored: StoredRow | None) -> Message | None:
    """The row's message; None where there is no row, or one that is damaged."""
    try:
        return None if stored is None else projection.message.FromString(stored[1])
    except DecodeError:
        return None


def _last_that_fits(events: Sequence[ParkedEvent], parked: ParkedKeys) -> ParkedEvent | None:
    """The first event for which there is no room among those that are parked; None where all fit."""
    in_order = sorted(events, key=lambda it: it.position)
    keys, count = parked.room.keys - len(parked.keys), parked.room.events - parked.events
    for it in in_order:
        keys -= it.error is not None
        count -= 1
        if keys < 0 or count < 0:
            return it
    return None


def _touches(steps: Sequence[Step]) -> dict[bytes, list[Touch]]:
    """By the row's key: the events that concern it."""
    touches: dict[bytes, list[Touch]] = {}
    for event, parts in steps:
        kind, position = event.kind, event.position
        for key, part in parts.items():
            touch = position, kind, part
            if key in touches:
                touches[key].append(touch)
            else:
                touches[key] = [touch]
    return touches
