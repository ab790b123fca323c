"""What a projection is made of: a view's table, its rules, and which rows an event changes.

Rules are pure functions of the domain: no SQL, no clock, no look-ups. An event carries all that a view needs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any

import uuid_utils
from google.protobuf.message import Message
from sqlalchemy import DateTime, Table, Uuid

from tandem.read_store.tables import other_table, view_of_table

Rule = Callable[[Any, Any], Message | None]
"""(row's message or None, event or part of one) -> row's message or None.

Only the rules of events that begin a row are called without one, see Projection. The message is the rule's own: a rule
changes it where it is and returns it. When a rule raises, its caller throws the message away, so a rule need not undo
anything. Each domain types its rules by view and event, so they are Any here.
"""

Columns = tuple[object, ...]

_LONGEST_SCOPE = 100
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def uuid_key(name: str) -> bytes:
    """The 16 bytes of a UUID. Raises ValueError."""
    return uuid_utils.UUID(name).bytes


def no_columns(_message: Any, _began: int) -> Columns:
    """For views that are read by key alone."""
    return ()


def plain_columns(table: Table) -> Callable[[Any, int], Columns]:
    """The columns that the contract says: fields of the message, and the position where the row began.

    What comes of them raises ValueError for an empty UUID where the field is not `optional`.
    """
    names: tuple[str, ...] = table.info["plain"]
    with_position = bool(table.info["began"])
    moments = [number for number, it in enumerate(names) if isinstance(table.c[it].type, DateTime)]
    ids = [number for number, it in enumerate(names) if isinstance(table.c[it].type, Uuid)]
    optional = [number for number, it in enumerate(names) if table.c[it].nullable]

    def columns(message: Any, began: int) -> Columns:
        values = [getattr(message, it) for it in names]
        for number in moments:
            moment = values[number]
            # In 0.4 µs; ToDatetime takes 0.9.
            values[number] = _EPOCH + timedelta(0, moment.seconds, moment.nanos // 1000)
        for number in optional:
            if not message.HasField(names[number]):
                values[number] = None
        for number in ids:
            if values[number] == "":
                raise ValueError(
                    f"{names[number]} is empty, and is a UUID: the contract has to say that it is optional"
                )
        if with_position:
            values.append(began)
        return tuple(values)

    return columns


@dataclass(frozen=True)
class Projection:
    """A view and how it follows the feed.

    table: made by tandem.read_store.tables.view_table. message: what its rows hold.
    rules: by kind of event; events of other kinds do not concern the view.
    key_field: the event's field that names the row which it changes.
    parts: by kind, for events that change several rows: the rows' names, each with what its rule gets for the event.
    columns: what the table has beside key, position and value, from the message and the position where its row began;
    where the contract says all of them, it need not be given. began: the column that holds that position, where there
    is one; where the contract says it, it need not be given.
    key_of: a row's key from its name; a name that is no UUID needs a function of its own.
    begins: the kinds of events that make a row, whatever was there: rows that they name need not be looked up.
    may_begin: the kinds of events that make a row where there is none. For all others the row must be there.
    logged: whether its changes go into the change log: only where rows can be watched, or an index follows them.
    scope: the field by which lists and sums select rows, of text: the view's message has it, and so has what the rules
    of events that begin a row get. It must stay the same for a row. Of a row that is parked it says which answers lack
    something; without it all answers from several rows do.
    """

    table: Table
    message: type[Message]
    rules: Mapping[str, Rule]
    key_field: str = ""
    parts: Mapping[str, Callable[[Any], Mapping[str, Any]]] = field(default_factory=dict)
    columns: Callable[[Any, int], Columns] = no_columns
    began: str = ""
    key_of: Callable[[str], bytes] = uuid_key
    begins: frozenset[str] = frozenset()
    may_begin: frozenset[str] = frozenset()
    logged: bool = False
    scope: str = ""

    def __post_init__(self) -> None:
        info = self.table.info
        if self.columns is no_columns and (info.get("plain") or info.get("began")):
            object.__setattr__(self, "columns", plain_columns(self.table))
        if not self.began:
            object.__setattr__(self, "began", info.get("began", ""))

    @cached_property
    def beginning(self) -> frozenset[str]:
        """The kinds of events for which no row need be there."""
        return self.begins | self.may_begin

    def other_generation(self) -> "Projection":
        """The same view in its other table. Nobody watches it."""
        return replace(self, table=other_table(self.table), logged=False)

    @cached_property
    def view(self) -> str:
        """The view's name is its table's."""
        return view_of_table(self.table)

    def parts_of(self, kind: str, event: Message) -> dict[bytes, Any]:
        """The keys of the rows that an event changes, with what their rule gets. Raises ValueError for a wrong name."""
        key_of = self.key_of
        several = self.parts.get(kind)
        if several is None:
            return {key_of(getattr(event, self.key_field)): event}
        return {key_of(name): part for name, part in several(event).items()}

    def scope_of(self, message: Message | None, part: Any) -> str | None:
        """What the row is selected by. message: the row's, where it can be read. part: what its rule gets for an event.

        None where nobody can say.
        """
        for it in (message, part) if self.scope else ():
            found = getattr(it, self.scope, None)
            if found and isinstance(found, str) and len(found) <= _LONGEST_SCOPE and "\0" not in found:
                return found
        return None


class NotThere(Exception):
    """An event for a row that is not there."""
