"""The latest events, in memory."""

import uuid
from collections.abc import Iterator, Sequence

from projector.feed_service.entry import Entry, without_personal_data

_ERASED = "customer_erased"
# What an entry takes beside its bytes: the objects, and some ids.
_ENTRY_BYTES = 600


class Ring:
    """Entries `first` to `last` of a feed, without a gap, at most so many and so many bytes. For one thread.

    epoch: the feed's; None while nothing is known of it. last: the last position that was put in, or where it began.
    """

    def __init__(self, max_events: int, max_bytes: int) -> None:
        self._slots: list[Entry | None] = [None] * max_events
        self._max_bytes = max_bytes
        self._bytes = 0
        self.epoch: uuid.UUID | None = None
        self.first = 1
        self.last = 0

    def __len__(self) -> int:
        return self.last - self.first + 1

    def covers(self, position: int) -> bool:
        """Whether all events after the position that are known are here."""
        return self.epoch is not None and position >= self.first - 1

    def after(self, position: int, most: int) -> Iterator[Entry]:
        """At most so many of those that follow a position that is covered."""
        for wanted in range(position + 1, min(self.last, position + most) + 1):
            entry = self._slots[wanted % len(self._slots)]
            assert entry is not None
            yield entry

    def advance(self, epoch: uuid.UUID, after: int, entries: Sequence[Entry]) -> None:
        """Puts in what follows position `after`; what is here and does not fit to it is dropped."""
        if epoch != self.epoch or after != self.last:
            self.drop()
            self.epoch, self.first, self.last = epoch, after + 1, after
        erased: set[str] = set()
        for entry in entries:
            if len(self) == len(self._slots):
                self._drop_first()
            self._slots[entry.position % len(self._slots)] = entry
            self._bytes += _size(entry)
            self.last = entry.position
            if entry.kind == _ERASED:
                erased |= entry.ids
        while self._bytes > self._max_bytes:
            self._drop_first()
        if erased:
            self._erase(erased)

    def drop(self) -> None:
        self._slots = [None] * len(self._slots)
        self._bytes = 0
        self.epoch, self.first, self.last = None, 1, 0

    def _drop_first(self) -> None:
        slot = self.first % len(self._slots)
        entry, self._slots[slot] = self._slots[slot], None
        assert entry is not None
        self._bytes -= _size(entry)
        self.first += 1

    def _erase(self, customers: set[str]) -> None:
        """Those who come later must find of them what they would find in the database."""
        for slot, entry in enumerate(self._slots):
            if entry is not None and entry.personal_of in customers:
                blank = without_personal_data(entry)
                self._slots[slot] = blank
                self._bytes += _size(blank) - _size(entry)


def _size(entry: Entry) -> int:
    return len(entry.item) + _ENTRY_BYTES
