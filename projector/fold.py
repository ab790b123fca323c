"""Folding events into a view's rows, in memory. Pure."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from google.protobuf.message import DecodeError, Message

from projector.projections.shape import Columns, Projection
from tandem.feed.events import EVENT_KINDS, FeedEvent


@dataclass(frozen=True)
class ViewRow:
    """A row of a view: its message, the position of the last event in it, and the columns beside."""

    message: Message
    position: int
    columns: Columns

    @cached_property
    def value(self) -> bytes:
        """The message as it is stored, in the database and in the cache: the same bytes whoever serialises it."""
        return self.message.SerializeToString(deterministic=True)


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


def touched(projection: Projection, events: Sequence[FeedEvent]) -> set[uuid.UUID]:
    """The rows of the view that the events change, up to the first event that `fold` will stop at, at least."""
    keys: set[uuid.UUID] = set()
    for event in events:
        try:
            keys.update(_keys(projection, event))
        except CannotApply:
            break
    return keys


def fold(projection: Projection, events: Sequence[FeedEvent], rows: Mapping[uuid.UUID, ViewRow]) -> Changes:
    """The rows after the events, from `rows`, which holds those of their keys that exist.

    An event is taken in whole or not at all, also where it changes several rows.
    """
    changes = Changes()
    for event in events:
        try:
            after = {
                key: _apply(projection, event, name, changes.rows[key] if key in changes.rows else rows.get(key))
                for key, name in _keys(projection, event).items()
            }
        except CannotApply as error:
            changes.stopped_by = error
            break
        changes.rows.update(after)
        if projection.logged:
            changes.log.extend((event.position, key) for key in after)
    return changes


def _apply(projection: Projection, event: FeedEvent, name: str, before: ViewRow | None) -> ViewRow | None:
    payload = getattr(event.event, event.kind)
    try:
        view = before.message if before else _blank(projection, event.kind, name)
        message = projection.rules[event.kind](view, payload)
        if message is None:
            return None
        columns = projection.columns(message, event.position, before.columns if before else None)
    except Exception as error:  # whatever a rule raises stops this view alone, visibly
        raise CannotApply(event, f"{type(error).__name__}: {error}") from error
    return ViewRow(message, event.position, columns)


def _blank(projection: Projection, kind: str, name: str) -> Message | None:
    blank = projection.blank.get(kind)
    return blank(name) if blank else None


def _keys(projection: Projection, event: FeedEvent) -> dict[uuid.UUID, str]:
    if event.kind not in EVENT_KINDS:
        # A newer command server's. To pass over it would lose it for good when this program is upgraded.
        raise CannotApply(event, "this program does not know this kind of event; upgrade it")
    if event.kind not in projection.rules:
        return {}
    try:
        return projection.keys_of(event.kind, getattr(event.event, event.kind))
    except (ValueError, DecodeError) as error:
        raise CannotApply(event, f"{type(error).__name__}: {error}") from error
