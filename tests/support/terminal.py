"""A program on a terminal (a pty), as a person sees it."""

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.stack import wait_until

SHOW_CURSOR, HIDE_CURSOR = "\x1b[?25h", "\x1b[?25l"
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_END_SECONDS = 20.0


class Terminal:
    """Runs a program on a terminal of so many columns and lines; what it writes is collected."""

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        columns: int = 80,
        lines: int = 24,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._master, slave = pty.openpty()
        self.resize(columns, lines)
        surroundings = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=slave,
            stderr=slave,
            env=surroundings | {"TERM": "xterm"} | dict(environment or {}),
            start_new_session=True,
        )
        os.close(slave)
        self._written = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                self._written += os.read(self._master, 65536)
            except OSError:  # how Linux says that nobody has the other side open
                return

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def written(self) -> str:
        """With what moves the cursor and gives colours."""
        return self._written.decode(errors="replace")

    def lines(self, start: int = 0) -> list[str]:
        """All that was ever written from a place of `written` on, without what moves the cursor."""
        return _CONTROL.sub("", self.written()[start:]).replace("\r", "\n").split("\n")

    def wait_for(self, words: str, start: int = 0) -> None:
        """Until it writes these words behind a place of `written`."""

        def there() -> bool:
            if any(words in line for line in self.lines(start)):
                return True
            assert self.process.poll() is None, f"it ended before {words!r}:\n{self.written()}"
            return False

        wait_until(there, f"it writes {words!r}", seconds=20)

    def end(self, number: signal.Signals = signal.SIGINT) -> int:
        """Sends the signal and waits for its end; returns the exit code."""
        self.process.send_signal(number)
        code = self.process.wait(_END_SECONDS)
        self._reader.join(_END_SECONDS)
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._reader.join(_END_SECONDS)
        os.close(self._master)
