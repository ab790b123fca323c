"""Where the rows are that a batch changes: one source for whoever folds it.

The newest state of a row is in the first of these that has it:

    1. what a batch made of it that is folded and not written yet: at most two batches, see following.Pipeline
    2. memory: the rows that were written last
    3. the database

And which of them are parked: they take in no event.
"""

from collections.abc import Callable, Collection, Iterable, Mapping

from tandem.projection.changes import FoundRows, ParkedKeys, StoredRow, ViewChanges, ViewRow

# What a row takes in memory beside its value: its key, its entry in a dictionary, and the objects around.
_ROW_BYTES = 300

SelectRows = Callable[[Mapping[str, Collection[bytes]]], FoundRows]
"""Those of the rows that are in the database, in one round trip. Raises psycopg.Error."""

SelectParked = Callable[[str], ParkedKeys]
"""The keys of a view that are parked. Raises psycopg.Error."""

NeededKeys = Mapping[str, set[bytes]]
"""By view: the keys of rows that a batch changes and does not make."""


class RowSource:
    """The rows of all views of a session. Only the session changes them, since it holds the views' locks.

    `find` may run on one thread while another calls `refresh` and `add_folded`. Everything else has one thread, and
    runs while nothing else does.
    """

    def __init__(
        self, select_rows: SelectRows, select_parked: SelectParked, views: Iterable[str], max_view_bytes: int
    ) -> None:
        """max_view_bytes: of each view's rows in memory."""
        self._select_rows = select_rows
        self._max_view_bytes = max_view_bytes
        self._recent = {view: RecentRows(max_view_bytes) for view in views}
        self._select_parked = select_parked
        # By view, as the database has them; of those views alone of which they are known.
        self._parked: dict[str, ParkedKeys] = {}
        # Oldest first. It is replaced as a whole, so `find` sees a batch of all views or none of it.
        self._unwritten: tuple[Mapping[str, ViewChanges], ...] = ()

    def add(self, view: str) -> None:
        self._recent[view] = RecentRows(self._max_view_bytes)

    def remove(self, view: str) -> None:
        del self._recent[view]
        self.forget_parked(view)

    def find(self, needed: NeededKeys) -> FoundRows:
        """Those of the rows that exist. Raises psycopg.Error."""
        unwritten = self._unwritten
        found: FoundRows = {}
        missing: dict[str, set[bytes]] = {}
        for view, keys in needed.items():
            if view not in self._parked:
                self._parked[view] = self._select_parked(view)
            rows = found[view] = self._recent[view].get(keys)
            unknown = keys - rows.keys()
            for changes in unwritten:
                if view in changes:
                    unknown -= changes[view].rows.keys()
            if unknown:
                missing[view] = unknown
        if missing:
            for view, rows in self._select_rows(missing).items():
                found[view].update(rows)
        _put_in(unwritten, needed, found)
        return found

    def refresh(self, needed: NeededKeys, found: FoundRows) -> None:
        """Brings rows that were found up to date with the batches that were folded meanwhile."""
        _put_in(self._unwritten, needed, found)

    def parked(self, view: str) -> ParkedKeys:
        """The keys that are parked after the batches that are folded. `find` was called for the view."""
        found = self._parked[view]
        for batch in self._unwritten:
            if view in batch and batch[view].parked:
                found = _with(found, batch[view])
        return found

    def forget_parked(self, view: str) -> None:
        """Another projector may have parked keys of the view, or taken them back."""
        self._parked.pop(view, None)

    def add_folded(self, changes: Mapping[str, ViewChanges]) -> None:
        """A batch is folded: the batches behind it start from its rows."""
        self._unwritten = (*self._unwritten, changes)

    def written(self) -> None:
        """The oldest batch that was folded is in the database now."""
        changes, *later = self._unwritten
        for view, it in changes.items():
            self._recent[view].keep(it.rows)
            if it.parked:
                self._parked[view] = _with(self._parked[view], it)
        self._unwritten = tuple(later)

    def drop_folded(self) -> None:
        """What is folded and not written never will be."""
        self._unwritten = ()

    def forget(self) -> None:
        """The database alone says how the rows are: something failed, and what was written is not certain."""
        self._recent = {view: RecentRows(self._max_view_bytes) for view in self._recent}
        self._parked = {}
        self.drop_folded()


def _put_in(batches: Iterable[Mapping[str, ViewChanges]], needed: NeededKeys, found: FoundRows) -> None:
    """Replaces rows by what the batches made of them, oldest batch first."""
    for changes in batches:
        for view, it in changes.items():
            for key in needed.get(view, _NONE) & it.rows.keys():
                if row := it.rows[key]:
                    found[view][key] = row.stored
                else:
                    found[view].pop(key, None)


def _with(parked: ParkedKeys, changes: ViewChanges) -> ParkedKeys:
    keys = parked.keys | {it.key for it in changes.parked}
    return parked._replace(keys=keys, events=parked.events + len(changes.parked))


_NONE: frozenset[bytes] = frozenset()


class RecentRows:
    """The rows of one view that were written last, as they are in the database.

    Bounded, in two halves: when the newer half is full it becomes the older one, and what was in the older one and has
    not been written since is dropped.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_half = max_bytes // 2
        self._bytes = 0
        self._newer: dict[bytes, StoredRow] = {}
        self._older: dict[bytes, StoredRow] = {}

    def get(self, keys: Iterable[bytes]) -> dict[bytes, StoredRow]:
        """Those of the rows that are here; the others may exist or not."""
        newer, older = self._newer.get, self._older.get
        return {key: row for key in keys if (row := newer(key) or older(key))}

    def keep(self, changed: Mapping[bytes, ViewRow | None]) -> None:
        """What has been written; None for a row that is gone."""
        newer, room = self._newer, self._max_half - self._bytes
        for key, row in changed.items():
            if row is not None:
                _, began, _, value = row
                size = len(value) + _ROW_BYTES
                if size <= self._max_half:
                    if size > room:
                        self._older, newer, room = newer, {}, self._max_half
                    newer[key] = began, value
                    room -= size
                    continue
            newer.pop(key, None)
            self._older.pop(key, None)
        self._newer, self._bytes = newer, self._max_half - room
