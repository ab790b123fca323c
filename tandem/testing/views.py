"""Views, without a store: what events make of a row.

    view(PROJECTION, EVENTS).after(placed, paid).shows(OrderDetails(...))

The events are stored and read, and the rows folded, as a projector does it.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from google.protobuf.message import Message

from tandem.feed.events import EventContract, FeedEvent
from tandem.projection.changes import ViewChanges, ViewRow
from tandem.projection.fold import fold_steps, steps_of
from tandem.projection.projection import Projection
from tandem.testing.differences import differences, in_words


def feed_events(contract: EventContract[Any], history: Iterable[Message], *, first: int = 1) -> list[FeedEvent]:
    """The events as a feed has them, with positions from `first` on: messages of the contract, or of its kinds."""
    return [_stored(contract, it, position) for position, it in enumerate(history, first)]


def _stored(contract: EventContract[Any], given: Any, position: int) -> FeedEvent:
    event = given
    if not isinstance(given, contract.message):
        event = contract.message()
        getattr(event, contract.kind_of(type(given))).CopyFrom(given)
    kind = contract.kind_in(event)
    assert kind is not None, f"given {in_words(event)}, which is no event"
    return FeedEvent(
        contract, position, kind, event.SerializeToString(), version=contract.versions[kind], mark=1_000_000 + position
    )


class view:  # noqa: N801 - reads as a word of a sentence
    """A view in which nothing is yet."""

    def __init__(self, projection: Projection, contract: EventContract[Any]) -> None:
        self._projection = projection
        self._contract = contract

    def after(self, *events: Message) -> "Rows":
        """Its rows after these events, at positions from 1 on. Raises AssertionError where the view stops."""
        projection, contract = self._projection, self._contract
        steps = steps_of(projection, feed_events(contract, events), contract.kinds)
        changes = fold_steps(projection, steps, {})
        if changes.stopped_by is not None:
            raise AssertionError(f"{projection.view} stops: {changes.stopped_by}")
        return Rows(projection, changes)


class Rows:
    """The rows of a view. `of`: names one of them, as events do; not needed where the view has no more than one."""

    def __init__(self, projection: Projection, changes: ViewChanges) -> None:
        self._projection = projection
        self._changes = changes

    def shows(self, expected: Message, *, of: str | None = None) -> None:
        """Raises AssertionError, with what differs in words, unless the row says exactly this."""
        came = self.message(of=of)
        if lines := differences(expected, came):
            what = f"the row of {self._projection.view} differs:"
            raise AssertionError("\n  ".join([what, *lines]))

    def shows_nothing(self, *, of: str | None = None) -> None:
        """Raises AssertionError where there is a row."""
        for row in self._found(of).values():
            says = in_words(self._projection.message.FromString(row.value))
            raise AssertionError(f"{self._projection.view} was to have no row, and has {says}")

    def message(self, *, of: str | None = None) -> Any:
        """What the row says: a message of its own. Raises AssertionError where there is none, or one that is parked."""
        return self._projection.message.FromString(self._row(of).value)

    def columns(self, *, of: str | None = None) -> tuple[object, ...]:
        """What the table has beside the message. Raises as `message`."""
        return self._row(of).columns

    def parked(self) -> Sequence[tuple[int, str]]:
        """The events that some row does not take in, each with its position and why."""
        return [(it.position, it.error) for it in self._changes.parked if it.error is not None]

    def _row(self, of: str | None) -> ViewRow:
        rows = self._found(of)
        if len(rows) != 1:
            which = "" if of is None else f" of {of}"
            raise AssertionError(f"{self._projection.view} has {len(rows)} rows{which}, not one")
        return next(iter(rows.values()))

    def _found(self, of: str | None) -> dict[bytes, ViewRow]:
        """The rows that are meant. Raises AssertionError where an event of theirs is parked."""
        key = None if of is None else self._projection.key_of(of)
        rows = {it: row for it, row in self._changes.rows.items() if row is not None and key in (None, it)}
        # Without a name, events may be parked for rows that the test is not about.
        meant = rows or {it.key for it in self._changes.parked} if key is None else {key}
        for it in self._changes.parked:
            if it.key in meant and it.error is not None:
                raise AssertionError(f"{self._projection.view} parks event {it.position} ({it.kind}): {it.error}")
        return rows
