"""Folding events into a view's rows, in memory. Pure."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from google.protobuf.message import Message

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
    """What a batch of events does to a view. None for a row that is gone."""

    rows: dict[uuid.UUID, ViewRow | None] = field(default_factory=dict)
    log: list[tuple[int, uuid.UUID]] = field(default_factory=list)
    """(position, key) in order: for the change log."""


class CannotApply(Exception):
    """An event that a view cannot take; the message says which, `__cause__` why."""

    def __init__(self, event: FeedEvent, reason: str) -> None:
        super().__init__(f"event {event.position} ({event.kind}): {reason}")


def keys_of(projection: Projection, events: Sequence[FeedEvent]) -> set[uuid.UUID]:
    """The rows of the view that the events change. Raises CannotApply."""
    return {key for event in events for key in _keys(projection, event)}


def fold(projection: Projection, events: Sequence[FeedEvent], rows: Mapping[uuid.UUID, ViewRow]) -> Changes:
    """The rows after the events, from `rows`, which holds those of their keys that exist. Raises CannotApply."""
    changes = Changes()
    for event in events:
        for key in _keys(projection, event):
            before = changes.rows[key] if key in changes.rows else rows.get(key)
            payload = getattr(event.event, event.kind)
            try:
                message = projection.rules[event.kind](before.message if before else None, payload)
                columns = (
                    projection.columns(message, event.position, before.columns if before else None)
                    if message is not None
                    else ()
                )
            except Exception as error:  # whatever a rule raises stops this view alone, visibly
                raise CannotApply(event, f"{type(error).__name__}: {error}") from error
            changes.rows[key] = ViewRow(message, event.position, columns) if message is not None else None
            changes.log.append((event.position, key))
    return changes


def _keys(projection: Projection, event: FeedEvent) -> list[uuid.UUID]:
    if event.kind not in EVENT_KINDS:
        # A newer command server's. To pass over it would lose it for good when this program is upgraded.
        raise CannotApply(event, "this program does not know this kind of event; upgrade it")
    if event.kind not in projection.rules:
        return []
    try:
        return projection.keys_of(event.kind, getattr(event.event, event.kind))
    except ValueError as error:
        raise CannotApply(event, str(error)) from error
