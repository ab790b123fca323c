"""Rows of a view as the feed makes them: some rows, made again from the first event on, beside the view.

A replay reads the feed in bounded parts and folds them by the projection's own rules. It keeps the rows that are
wanted, and no others. Whoever compares a row, or repairs it, replays it up to the position where the view is.

A range of keys takes 30 µs an event of the view's kinds, a few rows 15 µs, and up to 16 rows that are named by ids less
than 3: PostgreSQL finds their events.
"""

import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tandem.feed.events import EventContract, FeedEvent
from tandem.feed.lookup import Lookup
from tandem.feed.reader import ScannedPart
from tandem.feed.source import Feed
from tandem.projection.changes import ParkedEvent, ParkedKeys, Room, ViewRow
from tandem.projection.fold import Step, Steps, fold_steps, steps_of
from tandem.projection.projection import Projection, uuid_key

# Of keys that are looked for by PostgreSQL in the events' payloads: see scan_events.
_MOST_TEXTS = 16
# Of what a replay is asked for, all that can be made is made.
_ANY_NUMBER = ParkedKeys(frozenset(), 0, Room(sys.maxsize, sys.maxsize))
# What a row takes in memory beside its value.
_ROW_BYTES = 1_000


@dataclass(frozen=True)
class KeyRange:
    """The keys from `first` on and before `end`, 16 bytes each; None has no end."""

    first: bytes = bytes(16)
    end: bytes | None = None

    def __contains__(self, key: object) -> bool:
        return isinstance(key, bytes) and key >= self.first and (self.end is None or key < self.end)

    def behind(self, key: bytes) -> "KeyRange | None":
        """Its part behind a key; None where there is none."""
        following = int.from_bytes(key) + 1
        if following == 1 << 128 or (self.end is not None and following >= int.from_bytes(self.end)):
            return None
        return KeyRange(following.to_bytes(16), self.end)


Wanted = KeyRange | frozenset[bytes]
"""Which rows are replayed."""


class Change(NamedTuple):
    """A change of a row. row: after it, None where there is none then. failed: why the row cannot take it in."""

    event: FeedEvent
    key: bytes
    row: ViewRow | None
    failed: ParkedEvent | None


class Replay:
    """Some rows of one view, as the feed makes them up to `position`. For one thread.

    wanted: a range is cut where its rows would take more memory than they may; it ends before the first row that is
    left out.
    rows: those that are there. failed: by key, the event that could not be taken in; such a row is not in `rows`.
    unopened: the keys of rows with an event whose personal data was there and is not any more, since its subject was
    erased. A view that took that event in before may show it until the event that takes it out of the row.
    """

    def __init__(
        self,
        contract: EventContract[Any],
        projection: Projection,
        wanted: Wanted,
        *,
        epoch: uuid.UUID,
        batch_events: int = 1000,
        max_bytes: int = 64 * 2**20,
    ) -> None:
        """epoch: of the feed.

        batch_events: that are in memory at once, and 4 MiB of them. max_bytes: of all rows, for a range.
        """
        self.wanted = wanted
        self.position = 0
        self.rows: dict[bytes, ViewRow] = {}
        self.failed: dict[bytes, ParkedEvent] = {}
        self.unopened: set[bytes] = set()
        self._contract = contract
        self._projection = projection
        self._epoch = epoch
        self._batch_events = batch_events
        self._max_bytes = max_bytes
        self._bytes = 0
        self._texts = _texts_of(projection, wanted)

    def advance(self, feed: Lookup, until: int) -> int:
        """Takes the next part of the events in, none behind `until`; returns how many it read. Call it until `position`
        is `until`, and stop or wait between two calls as you like.

        Raises OtherEpoch, HistoryChanged and EventsMissing when the feed is not the view's, or its first events are not
        there any more; CannotApply for an event of which it cannot be said which rows it changes; and as the Lookup.
        """
        part = self._next_part(feed, until)
        self.take_in(part.events, part.until)
        return len(part.events)

    def advance_by_change(self, feed: Lookup, until: int) -> list[Change]:
        """As `advance`: what changed a row that is wanted, one event after the other."""
        part = self._next_part(feed, until)
        changes = []
        for event in part.events:
            self.take_in([event], event.position)
            [*steps] = steps_of(self._projection, [event], self._contract.kinds).steps
            for key in steps[0].parts if steps else ():
                if key in self.wanted:
                    changes.append(Change(event, key, self.rows.get(key), self.failed.get(key)))
        self.position = part.until
        return changes

    def advance_in(self, feed: Feed, until: int) -> None:
        """As `advance`, in a feed that is followed; nothing is taken in while that is away."""
        part = feed.scan(
            self.position,
            until,
            self._batch_events,
            self._epoch,
            kinds=self._projection.rules.keys(),
            texts=self._texts,
        )
        if part is not None:
            self.take_in(part.events, part.until)

    def _next_part(self, feed: Lookup, until: int) -> ScannedPart:
        kinds = self._projection.rules.keys()
        return feed.scan(self.position, until, self._batch_events, epoch=self._epoch, kinds=kinds, texts=self._texts)

    def take_in(self, events: Sequence[FeedEvent], until: int) -> None:
        """Takes in what somebody else has read: all events of the view's kinds behind `position` and up to `until`.

        Raises CannotApply, as `advance` does.
        """
        found = steps_of(self._projection, events, self._contract.kinds)
        if found.stopped_by is not None:
            raise found.stopped_by
        steps = Steps()
        for event, parts in found.steps:
            ours = {key: part for key, part in parts.items() if key in self.wanted and key not in self.failed}
            if ours:
                steps.steps.append(Step(event, ours))
                if event.is_unopened:
                    self.unopened.update(ours)
        self.position = until
        known = {key: self.rows[key].stored for _, parts in steps.steps for key in parts if key in self.rows}
        changes = fold_steps(self._projection, steps, known, _ANY_NUMBER)
        self._keep(changes.rows)
        for it in changes.parked:
            if it.error is not None:
                self.failed[it.key] = it
        self._keep(dict.fromkeys([it.key for it in changes.parked]))

    def _keep(self, changed: Mapping[bytes, ViewRow | None]) -> None:
        for key, row in changed.items():
            before = self.rows.pop(key, None)
            if before is not None:
                self._bytes -= len(before.value) + _ROW_BYTES
            if row is not None:
                self.rows[key] = row
                self._bytes += len(row.value) + _ROW_BYTES
        if self._bytes > self._max_bytes and isinstance(self.wanted, KeyRange) and len(self.rows) > 1:
            self._narrow(self.wanted)

    def _narrow(self, wanted: KeyRange) -> None:
        """Leaves out the second half of the rows. What is behind them is for another replay."""
        keys = sorted(self.rows)
        self.wanted = KeyRange(wanted.first, keys[len(keys) // 2])
        self.rows = {key: row for key, row in self.rows.items() if key in self.wanted}
        self.failed = {key: error for key, error in self.failed.items() if key in self.wanted}
        self.unopened = {it for it in self.unopened if it in self.wanted}
        self._bytes = sum(len(it.value) + _ROW_BYTES for it in self.rows.values())


def _texts_of(projection: Projection, wanted: Wanted) -> tuple[str, ...]:
    """What stands in the payload of each event that changes a wanted row; empty where that cannot be said.

    Ids are text in lower case in every event: tandem.commands.rules.Id.
    """
    if isinstance(wanted, KeyRange) or len(wanted) > _MOST_TEXTS or projection.key_of is not uuid_key:
        return ()
    return tuple(str(uuid.UUID(bytes=it)) for it in wanted)
