"""Rows that another session keeps locked: known to all threads of a command server, so that no batch waits for them."""

import threading
import time

from tandem.commands.write_model import Keys, Reference


class BusyRows:
    """What was found locked a short while ago, and has not been found free since. From any thread."""

    def __init__(self, seconds: float) -> None:
        """seconds: for how long it is known. Nobody may ever ask for a row again, and so find it free."""
        self._seconds = seconds
        self._lock = threading.Lock()
        self._looks: list[tuple[float, Keys]] = []
        """When each look was, on the clock of time.monotonic(), and what it found that is not known to be free."""

    def __bool__(self) -> bool:
        return bool(self._known())

    def found(self, asked: Keys, held: Keys) -> None:
        """What a look at the rows `asked` has shown: `held` are locked, the others are free."""
        with self._lock:
            looks = [(when, rows.without(asked)) for when, rows in self._known()]
            # Replaced and not changed: who reads takes no lock.
            self._looks = [it for it in (*looks, (time.monotonic(), held.without(Keys()))) if it[1]]

    def may_hold_up(self, keys: Keys) -> bool:
        """Whether a command with these keys may need such a row: for certain, or through a row that refers to it."""
        return any(
            keys.meets(rows) or any(isinstance(of, Reference) and of.to in rows for of in keys)
            for _, rows in self._known()
        )

    def _known(self) -> list[tuple[float, Keys]]:
        since = time.monotonic() - self._seconds
        return [it for it in self._looks if it[0] >= since]
