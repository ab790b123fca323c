"""What a projection is made of."""

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from google.protobuf.message import Message

Rule = Callable[[Any, Any], Message | None]
"""(view or None, event) -> view or None. Typed by the view and the event in each file, which is why it is Any here."""

Columns = tuple[object, ...]


@lru_cache(maxsize=16_384)
def parsed_id(name: str) -> uuid.UUID:
    """Remembered: an id is met in several views, and a product's in order after order. Raises ValueError."""
    return uuid.UUID(name)


def no_columns(_view: Any, _position: int, _before: Columns | None) -> Columns:
    """For views that are read by key alone."""
    return ()


@dataclass(frozen=True)
class Projection:
    """A view and how it follows the feed.

    view: its name, and its table's. message: what its rows hold.
    rules: by kind of event; events of other kinds do not concern the view.
    keys: by kind of event, the names of the rows that the event changes; None takes `key_field` of the event.
    columns: what its table has beside key, position and value, from the view, the event's position and the row's
        columns before (None for a new row).
    key_of: a row's key from its name; a name that is no UUID needs one of its own.
    blank: by kind of event, the view that a rule gets for a new row of this name, instead of None: for events that
        begin several rows, where a rule could not tell which one it is to make.
    begins: the kinds of events that make a row, whatever was there: rows that they name need not be looked up.
    logged: whether its changes go into the change log. Sums do not: every order changes several, and whoever follows
        them asks for all of them.
    """

    view: str
    message: type[Message]
    key_field: str
    rules: Mapping[str, Rule]
    keys: Mapping[str, Callable[[Any], Sequence[str]]]
    columns: Callable[[Any, int, Columns | None], Columns] = no_columns
    key_of: Callable[[str], uuid.UUID] = parsed_id
    blank: Mapping[str, Callable[[str], Message]] = field(default_factory=dict)
    begins: frozenset[str] = frozenset()
    logged: bool = True

    def keys_of(self, kind: str, event: Message) -> dict[uuid.UUID, str]:
        """The rows that an event changes, each once, with their names. Raises ValueError for what is not a name."""
        several = self.keys.get(kind)
        names = several(event) if several else [getattr(event, self.key_field)]
        return {self.key_of(name): name for name in names}


class NotThere(Exception):
    """An event for a row that is not there: the feed and the view do not belong together."""


def present(view: Any, event: Message) -> Any:
    """A copy of the view, to be changed. Raises NotThere for None."""
    if view is None:
        raise NotThere(f"{event.DESCRIPTOR.name} for something that is not in the view")
    copy = type(view)()
    copy.CopyFrom(view)
    return copy
