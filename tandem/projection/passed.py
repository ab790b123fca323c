"""When each view was announced at which position: for operators who ask where a write is."""

import time
from collections import deque
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

_KEPT = 2 * 3600
_LATEST = 1000

_Noted = tuple[float, Mapping[str, int]]


class Passed:
    """The latest announcements, and the first and the last of each second, of the last hour.

    `note` is for one thread, `announced_by` for any.
    """

    def __init__(self) -> None:
        self._latest: deque[_Noted] = deque(maxlen=_LATEST)
        self._noted: deque[_Noted] = deque(maxlen=_KEPT)

    def note(self, positions: Mapping[str, int]) -> None:
        """What has been announced now: the views' positions, not to be changed afterwards."""
        now = time.time()
        self._latest.append((now, positions))
        if len(self._noted) > 1 and int(self._noted[-2][0]) == int(now):
            self._noted[-1] = (now, positions)
        else:
            self._noted.append((now, positions))

    def announced_by(self, view: str, position: int) -> datetime | None:
        """The first time at which the view was known to be at the position or behind it, since it was last before it:
        exactly for the latest announcements, to the second before.

        None where it is not known: it was there before we looked, or it is not there.
        """
        found: float | None = None
        for at, positions in self._backwards():
            known = positions.get(view)
            if known is None:
                continue
            if known < position:
                return None if found is None else datetime.fromtimestamp(found, UTC)
            found = at
        return None

    def _backwards(self) -> Iterator[_Noted]:
        latest, noted = tuple(self._latest), tuple(self._noted)
        yield from reversed(latest)
        yield from (it for it in reversed(noted) if it[0] < latest[0][0])
