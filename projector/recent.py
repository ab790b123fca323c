"""The rows that a session wrote last: what it need not load again."""

import uuid
from collections.abc import Iterable, Mapping

from projector.fold import ViewRow

# What a row takes beside its value: its message, parsed, is a few times as large.
_ROW_BYTES = 1_000


class RecentRows:
    """Some rows of one view, as they are in the database, and as nobody else can have changed them since: its lock is
    the session's, and a commit compares the view's position. So they are kept after a commit and not before, and go
    with the session. Bounded; those that have not been written for longest go first.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._bytes = 0
        self._rows: dict[uuid.UUID, ViewRow] = {}

    def get(self, keys: Iterable[uuid.UUID]) -> dict[uuid.UUID, ViewRow]:
        """Those of the rows that are here; the others may exist or not."""
        rows = self._rows
        return {key: rows[key] for key in keys if key in rows}

    def keep(self, rows: Mapping[uuid.UUID, ViewRow | None]) -> None:
        """What has been committed; None for a row that is gone."""
        for key, row in rows.items():
            before = self._rows.pop(key, None)
            if before is not None:
                self._bytes -= _cost(before)
            if row is not None:
                self._rows[key] = row
                self._bytes += _cost(row)
        while self._bytes > self._most:
            self._bytes -= _cost(self._rows.pop(next(iter(self._rows))))


def _cost(row: ViewRow) -> int:
    return len(row.value) + _ROW_BYTES
