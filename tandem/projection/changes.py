"""What a batch of events does to a view's rows: the values that are folded, stored and parked."""

from collections.abc import Set
from dataclasses import dataclass, field
from typing import NamedTuple

from tandem.feed.events import FeedEvent

StoredRow = tuple[int, bytes]
"""Of a row before a batch: the position at which it began (0 in a view that does not ask for it), and its value."""

_LONGEST_ERROR = 1_000

FoundRows = dict[str, dict[bytes, StoredRow]]
"""By view and key: rows that exist."""


class ViewRow(NamedTuple):
    """A row after a batch.

    position: of the last event in it. began: of the event that made it, as in StoredRow. columns: the values of the
    table's other columns. value: the message, serialised with deterministic=True, as database and cache store it.
    """

    position: int
    began: int
    columns: tuple[object, ...]
    value: bytes

    @property
    def stored(self) -> StoredRow:
        return self.began, self.value


class ParkedEvent(NamedTuple):
    """An event that a row has not taken in. error: why, of the first one of the row; None of those that wait behind it.

    scope: of the first one, as Projection.scope_of has it.
    """

    key: bytes
    position: int
    kind: str
    error: str | None = None
    scope: str | None = None


class Room(NamedTuple):
    """How many keys of a view may be parked, and how many events for all of them."""

    keys: int
    events: int


class ParkedKeys(NamedTuple):
    """The keys of a view that are parked, how many events wait for them, and how many of both there may be."""

    keys: Set[bytes]
    events: int
    room: Room


NOTHING_PARKED = ParkedKeys(frozenset(), 0, Room(1_000, 1_000_000))


@dataclass
class ViewChanges:
    """What a batch of events does to a view.

    rows: as they are after the events, by key; None for a row that is gone. log: (position, key) in order, for the
    change log. stopped_by: the event that the view cannot take in, if there is one; the events before it are taken in.
    parked: events that the view passes and some row does not take in. parked_keys: how many keys of the view are parked
    after the events. damaged: the keys of rows that nobody can read, which are parked therefore.
    taken: (key, position) of events that were parked before and are not any more. failing: the first event that is left
    of each key that stays parked.
    """

    rows: dict[bytes, ViewRow | None] = field(default_factory=dict)
    log: list[tuple[int, bytes]] = field(default_factory=list)
    parked: list[ParkedEvent] = field(default_factory=list)
    parked_keys: int = 0
    damaged: set[bytes] = field(default_factory=set)
    taken: list[tuple[bytes, int]] = field(default_factory=list)
    failing: list[ParkedEvent] = field(default_factory=list)
    stopped_by: "CannotApply | None" = None

    @property
    def values(self) -> dict[bytes, bytes | None]:
        """What the cache is to have of each row: its message, serialised; None for one that is gone, and for one that
        is parked, of which the database alone says so.
        """
        values = {key: row.value if row else None for key, row in self.rows.items()}
        values.update(dict.fromkeys([it.key for it in (*self.parked, *self.failing)]))
        return values


class CannotApply(Exception):
    """An event that a view cannot take; the message says which, and why."""

    def __init__(self, event: FeedEvent, reason: str | Exception) -> None:
        said = in_words(reason) if isinstance(reason, Exception) else reason
        super().__init__(f"event {event.position} ({event.kind}): {said}")
        self.position = event.position


def in_words(error: Exception) -> str:
    """As it is stored and shown: PostgreSQL's text takes neither all characters nor any length."""
    said = f"{type(error).__name__}: {error}"[:_LONGEST_ERROR]
    return said.replace("\0", "").encode("utf-8", "replace").decode()
