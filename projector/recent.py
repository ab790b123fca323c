"""The rows that a session wrote last: what it need not load again."""

from collections.abc import Iterable, Mapping

from projector.fold import Stored, ViewRow

# What a row takes beside its value: its key, its place among the others, and the objects around.
_ROW_BYTES = 300


class RecentRows:
    """Some rows of one view, as they are in the database, and as nobody else can have changed them since: its lock is
    the session's, and a commit compares the view's position. So they are kept after a commit and not before, and go
    with the session. Bounded; those that have not been written for longest go first.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._bytes = 0
        self._rows: dict[bytes, Stored] = {}

    def get(self, keys: Iterable[bytes]) -> dict[bytes, Stored]:
        """Those of the rows that are here; the others may exist or not."""
        rows = self._rows
        return {key: rows[key] for key in keys if key in rows}

    def keep(self, changed: Mapping[bytes, ViewRow | None]) -> None:
        """What has been committed; None for a row that is gone."""
        rows = self._rows
        for key, row in changed.items():
            before = rows.pop(key, None)
            if before is not None:
                self._bytes -= len(before[1]) + _ROW_BYTES
            if row is not None:
                rows[key] = row.stored
                self._bytes += len(row.value) + _ROW_BYTES
        self._make_room()

    def _make_room(self) -> None:
        # In one pass: a dict looks for its first entry behind all that were taken out before.
        oldest: list[bytes] = []
        for key, (_, value) in self._rows.items():
            if self._bytes <= self._most:
                break
            self._bytes -= len(value) + _ROW_BYTES
            oldest.append(key)
        for key in oldest:
            del self._rows[key]
