"""The rows that a session wrote last: what it need not load again."""

from collections.abc import Iterable, Mapping

from projector.fold import Stored, ViewRow

# What a row takes beside its value: its key, its place among the others, and the objects around.
_ROW_BYTES = 300


class RecentRows:
    """Some rows of one view, as they are in the database, and as nobody else can have changed them since: its lock is
    the session's, and a commit compares the view's position. So they are kept after a commit and not before, and go
    with the session.

    Bounded, in two halves: when the newer one is full, the older one goes, and with it what has not been written since.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes // 2
        self._bytes = 0
        self._newer: dict[bytes, Stored] = {}
        self._older: dict[bytes, Stored] = {}

    def get(self, keys: Iterable[bytes]) -> dict[bytes, Stored]:
        """Those of the rows that are here; the others may exist or not."""
        newer, older = self._newer, self._older
        return {key: newer[key] if key in newer else older[key] for key in keys if key in newer or key in older}

    def keep(self, changed: Mapping[bytes, ViewRow | None]) -> None:
        """What has been committed; None for a row that is gone."""
        for key, row in changed.items():
            size = len(row.value) + _ROW_BYTES if row else 0
            if row is None or size > self._most:
                self._newer.pop(key, None)
                self._older.pop(key, None)
                continue
            if self._bytes + size > self._most:
                self._older, self._newer, self._bytes = self._newer, {}, 0
            self._newer[key] = row.stored
            self._bytes += size
