"""What a projection is made of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import uuid_utils
from google.protobuf.message import Message

Rule = Callable[[Any, Any], Message | None]
"""(view or None, event or part of one) -> view or None.

The view is the rule's own: it is changed where it is and returned. A rule that raises has changed nothing: whoever
called it throws the view away. Typed by the view and the event in each file, which is why it is Any here.
"""

Columns = tuple[object, ...]


def id_of(name: str) -> bytes:
    """The 16 bytes of a UUID; Python's own class takes several times as long. Raises ValueError."""
    return uuid_utils.UUID(name).bytes


def no_columns(_view: Any, _began: int) -> Columns:
    """For views that are read by key alone."""
    return ()


@dataclass(frozen=True)
class Projection:
    """A view and how it follows the feed.

    view: its name, and its table's. message: what its rows hold.
    rules: by kind of event; events of other kinds do not concern the view.
    key_field: the event's field with the name of the row that it changes.
    parts: by kind, for events that change several rows: the rows' names, each with what its rule gets for the event.
    columns: what its table has beside key, position and value, from the view and the position at which its row began.
    began: the column that holds that position, where there is one; a row that was loaded knows it from there.
    key_of: a row's key from its name; a name that is no UUID needs one of its own.
    begins: the kinds of events that make a row, whatever was there: rows that they name need not be looked up.
    logged: whether its changes go into the change log: where rows can be watched. Whoever follows sums asks for all.
    """

    view: str
    message: type[Message]
    rules: Mapping[str, Rule]
    key_field: str = ""
    parts: Mapping[str, Callable[[Any], Mapping[str, Any]]] = field(default_factory=dict)
    columns: Callable[[Any, int], Columns] = no_columns
    began: str = ""
    key_of: Callable[[str], bytes] = id_of
    begins: frozenset[str] = frozenset()
    logged: bool = False

    def parts_of(self, kind: str, event: Message) -> dict[bytes, Any]:
        """The keys of the rows that an event changes, with what their rule gets. Raises ValueError for a wrong name."""
        key_of = self.key_of
        several = self.parts.get(kind)
        if several is None:
            return {key_of(getattr(event, self.key_field)): event}
        return {key_of(name): part for name, part in several(event).items()}


class NotThere(Exception):
    """An event for a row that is not there: the feed and the view do not belong together."""


def present(view: Any) -> Any:
    """The view, to be changed. Raises NotThere for None."""
    if view is None:
        raise NotThere("it is about something that is not in the view")
    return view
