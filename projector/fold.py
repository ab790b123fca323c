"""Folding events into a view's rows, in memory. Pure."""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from google.protobuf.message import DecodeError, Message

from projector.projections.shape import Columns, Projection
from tandem.feed.events import EVENT_KINDS, FeedEvent

_KINDS = frozenset(EVENT_KINDS)


class ViewRow:
    """A row of a view: its message, the position of the last event in it, and the columns beside."""

    __slots__ = ("_value", "columns", "message", "position")

    def __init__(self, message: Message, position: int, columns: Columns) -> None:
        self.message = message
        self.position = position
        self.columns = columns
        self._value: bytes | None = None

    @property
    def value(self) -> bytes:
        """The message as it is stored, in the database and in the cache: the same bytes whoever serialises it."""
        if self._value is None:
            self._value = self.message.SerializeToString(deterministic=True)
        return self._value


@dataclass
class Changes:
    """What a batch of events does to a view.

    rows: as they are after the events; None for a row that is gone. log: (position, key) in order, for the change log.
    stopped_by: the event that the view cannot take in, if there is one; those before it are in.
    """

    rows: dict[uuid.UUID, ViewRow | None] = field(default_factory=dict)
    log: list[tuple[int, uuid.UUID]] = field(default_factory=list)
    stopped_by: "CannotApply | None" = None


class CannotApply(Exception):
    """An event that a view cannot take; the message says which, `__cause__` why."""

    def __init__(self, event: FeedEvent, reason: str) -> None:
        super().__init__(f"event {event.position} ({event.kind}): {reason}")
        self.position = event.position


class Step(NamedTuple):
    """An event that concerns a view. payload: the event of its kind. keys: the rows it changes, with their names."""

    event: FeedEvent
    payload: Message
    keys: dict[uuid.UUID, str]


@dataclass
class Steps:
    """A view's way through a batch, before its rows are known. stopped_by: as in Changes."""

    steps: list[Step] = field(default_factory=list)
    stopped_by: CannotApply | None = None

    def needed(self, projection: Projection) -> set[uuid.UUID]:
        """The rows that the events change and do not make: those to look up."""
        known: set[uuid.UUID] = set()
        needed: set[uuid.UUID] = set()
        for event, _, keys in self.steps:
            if event.kind in projection.begins:
                known.update(keys)
            else:
                needed.update(keys.keys() - known if known else keys)
        return needed


def steps_of(projection: Projection, events: Iterable[FeedEvent]) -> Steps:
    """Those of the events that concern the view, up to the first whose rows cannot be told."""
    found = Steps()
    rules, keys_of = projection.rules, projection.keys_of
    for event in events:
        kind = event.kind
        if kind in rules:
            try:
                payload = getattr(event.event, kind)
                found.steps.append(Step(event, payload, keys_of(kind, payload)))
            except (ValueError, DecodeError) as error:
                found.stopped_by = CannotApply(event, f"{type(error).__name__}: {error}")
                found.stopped_by.__cause__ = error
                break
        elif kind not in _KINDS:
            # A newer command server's. To pass over it would lose it for good when this program is upgraded.
            found.stopped_by = CannotApply(event, "this program does not know this kind of event; upgrade it")
            break
    return found


def fold(projection: Projection, events: Sequence[FeedEvent], rows: Mapping[uuid.UUID, ViewRow]) -> Changes:
    """The rows after the events, from `rows`, which holds those of their keys that exist."""
    return fold_steps(projection, steps_of(projection, events), rows)


def fold_steps(projection: Projection, steps: Steps, rows: Mapping[uuid.UUID, ViewRow]) -> Changes:
    """The rows after the steps, from `rows`, which holds those that exist of the rows that they need.

    An event is taken in whole or not at all, also where it changes several rows.
    """
    changes = Changes(stopped_by=steps.stopped_by)
    changed, log = changes.rows, changes.log
    for event, payload, keys in steps.steps:
        kind, position = event.kind, event.position
        rule, blank, columns_of = projection.rules[kind], projection.blank.get(kind), projection.columns
        after: dict[uuid.UUID, ViewRow | None] = {}
        try:
            for key, name in keys.items():
                before = changed[key] if key in changed else rows.get(key)
                view: Message | None
                columns: Columns | None
                if before is not None:
                    view, columns = before.message, before.columns
                else:
                    view, columns = blank(name) if blank else None, None
                message = rule(view, payload)
                after[key] = (
                    None if message is None else ViewRow(message, position, columns_of(message, position, columns))
                )
        except Exception as error:  # whatever a rule raises stops this view alone, visibly
            changes.stopped_by = CannotApply(event, f"{type(error).__name__}: {error}")
            changes.stopped_by.__cause__ = error
            break
        changed.update(after)
        if projection.logged:
            log.extend([(position, key) for key in after])
    return changes
