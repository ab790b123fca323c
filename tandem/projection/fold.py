"""Folding events into a view's rows, in memory. Pure.

A batch is folded row by row: a row's message is parsed, changed by each event that concerns it, and serialised. So one
message is in memory at a time instead of one for each row.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError

from tandem.feed.events import FeedEvent
from tandem.projection.projection import Columns, NotThere, Projection

StoredRow = tuple[int, bytes]
"""Of a row before a batch: the position at which it began (0 in a view that does not ask for it), and its value."""

FoundRows = dict[str, dict[bytes, StoredRow]]
"""By view and key: rows that exist."""


class ViewRow(NamedTuple):
    """A row after a batch.

    position: of the last event in it. began: of the event that made it, as in StoredRow. columns: the values of the
    table's other columns. value: the message, serialised with deterministic=True, as database and cache store it.
    """

    position: int
    began: int
    columns: Columns
    value: bytes

    @property
    def stored(self) -> StoredRow:
        return self.began, self.value


@dataclass
class ViewChanges:
    """What a batch of events does to a view.

    rows: as they are after the events, by key; None for a row that is gone. log: (position, key) in order, for the
    change log. stopped_by: the event that the view cannot take in, if there is one; the events before it are taken in.
    damaged: the keys of rows that nobody can read: they stay as they are, without the events.
    """

    rows: dict[bytes, ViewRow | None] = field(default_factory=dict)
    log: list[tuple[int, bytes]] = field(default_factory=list)
    damaged: set[bytes] = field(default_factory=set)
    stopped_by: "CannotApply | None" = None

    @property
    def values(self) -> dict[bytes, bytes | None]:
        """The rows' messages, serialised; None for a row that is gone or damaged."""
        return {**dict.fromkeys(self.damaged), **{key: row.value if row else None for key, row in self.rows.items()}}


class CannotApply(Exception):
    """An event that a view cannot take; the message says which, and why."""

    def __init__(self, event: FeedEvent, reason: str | Exception) -> None:
        if isinstance(reason, Exception):
            reason = f"{type(reason).__name__}: {reason}"
        super().__init__(f"event {event.position} ({event.kind}): {reason}")
        self.position = event.position


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
            except Exception as error:  # as in _fold_one_by_one: a number of days that no calendar has, say
                found.stopped_by = CannotApply(event, error)
                break
        elif kind not in known_kinds:
            # A newer command server stored it. A view that passed over it would lack it for good after an upgrade.
            found.stopped_by = CannotApply(event, "this program does not know this kind of event; upgrade it")
            break
    return found


def fold_steps(projection: Projection, steps: Steps, rows: Mapping[bytes, StoredRow]) -> ViewChanges:
    """The rows after the steps. rows: of those that the steps need, the ones that exist.

    An event is taken in whole or not at all, also where it changes several rows.
    """
    try:
        changes = _fold(projection, steps.steps, rows)
    except Exception:
        # Some event cannot be taken in, and part of it may be in the rows. Folding one at a time shows which it is.
        return _fold_one_by_one(projection, steps, rows)
    changes.stopped_by = steps.stopped_by
    return changes


def _fold(projection: Projection, steps: Sequence[Step], rows: Mapping[bytes, StoredRow]) -> ViewChanges:
    """Row by row, each with all steps that concern it. Raises NotThere, and whatever a rule raises."""
    changes = ViewChanges()
    rules, touches = projection.rules, _touches(steps)
    if projection.logged:
        changes.log = [(event.position, key) for event, parts in steps for key in parts]
    parse, columns_of, changed = projection.message.FromString, projection.columns, changes.rows
    for key, touching in touches.items():
        began, message = 0, None
        if key in rows:
            began, value = rows[key]
            try:
                message = parse(value)
            except DecodeError:
                changes.damaged.add(key)
                continue
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
    return changes


def _touches(steps: Sequence[Step]) -> dict[bytes, list[tuple[int, str, Any]]]:
    """By the row's key: the events that concern it, as position, kind and what its rule gets."""
    touches: dict[bytes, list[tuple[int, str, Any]]] = {}
    for event, parts in steps:
        kind, position = event.kind, event.position
        for key, part in parts.items():
            touch = position, kind, part
            if key in touches:
                touches[key].append(touch)
            else:
                touches[key] = [touch]
    return touches


def _fold_one_by_one(projection: Projection, steps: Steps, rows: Mapping[bytes, StoredRow]) -> ViewChanges:
    changes = ViewChanges(stopped_by=steps.stopped_by)
    now = dict(rows)
    for step in steps.steps:
        try:
            found = _fold(projection, [step], now)
        except Exception as error:  # whatever a rule raises stops this view alone, and operators see it
            changes.stopped_by = CannotApply(step.event, error)
            break
        for key, row in found.rows.items():
            if row is None:
                now.pop(key, None)
            else:
                now[key] = row.stored
        changes.rows |= found.rows
        changes.damaged |= found.damaged
        changes.log += found.log
    return changes
