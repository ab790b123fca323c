"""What a query says of rows that are parked: they could not take an event in, and their view went on without them.

An answer that shows such rows, or lacks them, says since which position, and its `as_of` is before that. A token that
is at or beyond it is refused, since no state that includes it can be shown.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from google.protobuf.message import Message
from sqlalchemy import TextClause, text

from tandem.feed.token import Token
from tandem.queries.freshness import Need
from tandem.read_store.tables import parked_in
from tandem.runtime.errors import Unavailable

# Until an operator has redriven it.
_RETRY_SECONDS = 5.0


class Parked(NamedTuple):
    """Of the rows that an answer is made of: how many are parked, and the first position that one of them lacks."""

    rows: int = 0
    since: int = 0

    def shown_at(self, as_of: Token) -> Token:
        """What an answer includes that was read where the view is at `as_of`."""
        return replace(as_of, position=self.since - 1, mark=0) if self.rows else as_of


NONE_PARKED = Parked()


def parked_among(keys: Iterable[Any], since: Mapping[Any, int]) -> Parked:
    """since: by key of those that are parked."""
    found = [since[key] for key in keys if key in since] if since else ()
    return Parked(len(found), min(found)) if found else NONE_PARKED


PARKED = "k.keys AS parked_rows, k.since AS parked_since"
"""What a statement about several rows says of those that are parked; `k` is what `parked_of_views` gives."""


def parked_of_views(views: Mapping[str, str], condition: str = "true") -> str:
    """SQL to stand behind rows of `projection` in FROM. views: by the names of these rows. condition: see parked_in."""
    return f"CROSS JOIN LATERAL {parked_in(views, condition)} AS k"


class LookUp(NamedTuple):
    """A statement about several rows. plain: says how many rows of its views are parked, of whatever scope. exact:
    looks up those that its answer may lack.
    """

    plain: TextClause
    exact: TextClause

    @classmethod
    def of(cls, make: Callable[[str, str], str], views: Mapping[str, str], condition: str = "true") -> "LookUp":
        """make: the statement, given what it selects of what is parked, and what stands in FROM behind the rows of
        `projection`. views, condition: as parked_of_views has them.
        """
        count = " + ".join(f"{name}.parked" for name in views)
        plain = make(f"{count} AS parked_rows, NULL::bigint AS parked_since", "")
        return cls(text(plain), text(make(PARKED, parked_of_views(views, condition))))

    def read(self, execute: Callable[[TextClause], Sequence[Any]]) -> Sequence[Any]:
        """The rows. The plain one goes first: to look up what is parked takes PostgreSQL 5 to 15 µs each time."""
        rows = execute(self.plain)
        return execute(self.exact) if rows[0].parked_rows else rows


def parked_of(row: Any) -> Parked:
    """Of a row of a statement that selects PARKED."""
    return Parked(row.parked_rows, row.parked_since) if row.parked_rows else NONE_PARKED


def parked_fields(response: type[Message], it: Parked) -> bytes:
    """An answer's fields about rows that are parked, those that its message has."""
    if not it.rows:
        return b""
    values = {"parked_rows": it.rows, "parked_since": it.since}
    known = {name: value for name, value in values.items() if name in response.DESCRIPTOR.fields_by_name}
    return response(**known).SerializeToString()


def parked_refusal(view: str, need: Need, as_of: Token, it: Parked, key: str = "") -> Unavailable | None:
    """What a call is refused with whose tokens the view includes, where the rows that are parked do not.

    as_of: the view's position. key: the row's, where it is one.
    """
    if not it.rows or not need.wanted:
        return None
    shown = it.shown_at(as_of)
    if all(shown.includes(wanted.token) for wanted in need.wanted):
        return None
    return parked_error(view, it, key)


def parked_error(view: str, it: Parked, key: str = "") -> Unavailable:
    metadata = {"view": view, "parked_since": str(it.since), **({"key": key} if key else {})}
    return Unavailable(
        f"the view {view} could not take event {it.since} into a row that this needs, which is parked; an operator must"
        " redrive it",
        reason="PARKED",
        retry_after=_RETRY_SECONDS,
        metadata=metadata,
    )
