"""Rows that another session keeps locked: known to all threads of a command server, so that no batch waits for them."""

import threading

from tandem.commands.write_model import Keys, Reference


class BusyRows:
    """What was found locked and has not been found free since. From any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows = Keys()

    def __bool__(self) -> bool:
        return bool(self._rows)

    def found(self, asked: Keys, held: Keys) -> None:
        """What a look at the rows `asked` has shown: `held` are locked, the others are free."""
        with self._lock:
            rows = self._rows.without(asked)
            for of, ids in held.items():
                rows[of] |= ids
            # Replaced and not changed: who reads takes no lock.
            self._rows = rows

    def may_hold_up(self, keys: Keys) -> bool:
        """Whether a command with these keys may need such a row: for certain, or through a row that refers to it."""
        rows = self._rows
        return keys.meets(rows) or any(isinstance(of, Reference) and of.to in rows for of in keys)
