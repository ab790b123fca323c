"""A file that says something, read again when it changes. One that cannot be used changes nothing: what was said before
stays in force.
"""

from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Generic, TypeVar

from prometheus_client import Counter, Gauge

from tandem.runtime.settings import SettingsError
from tandem.runtime.supervised import SupervisedThread
from tandem.runtime.telemetry import log

T = TypeVar("T")

_LOOK_SECONDS = 0.5


class WatchedFile(Generic[T]):
    """What the file says: `said`, once it is read. `start` and `stop` its thread."""

    def __init__(
        self, name: str, file: Path, parse: Callable[[str], T], *, setting: str, changed: str, reads: Counter,
        outdated: Gauge,
    ) -> None:  # fmt: skip
        """parse: raises ValueError, which names all that is wrong. changed: is logged when it says something else.

        reads: by outcome. outdated: 1 while the file cannot be used. setting: which names the file.
        """
        self._name = name
        self._file = file
        self._parse = parse
        self._changed = changed
        self._reads = reads
        self._outdated = outdated
        self._stopping = Event()
        self._thread = SupervisedThread(name, self._run)
        self._problem = ""
        self._setting = setting
        self.said: T

    def start(self) -> None:
        """Raises SettingsError."""
        self.read()
        self._thread.start()

    def read(self) -> None:
        """For the first time. Raises SettingsError."""
        try:
            self._content = self._seen = self._file.read_text(encoding="utf-8")
            self.said = self._parse(self._content)
        except (OSError, ValueError) as error:
            raise SettingsError(f"{self._setting}: {self._file}: {error}") from error

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(_LOOK_SECONDS):
            self._look()

    def _look(self) -> None:
        try:
            content, before = self._file.read_text(encoding="utf-8"), self._seen
            self._seen = content
            if content != before:
                # Somebody may be writing it, and half a file is one too. The next look knows.
                return
            if content == self._content and not self._problem:
                return
            self.said = self._parse(content)
        except (OSError, ValueError) as error:
            if str(error) != self._problem:
                self._problem = str(error)
                self._outdated.set(1)
                self._reads.labels("failed").inc()
                log.error(f"the {self._name} cannot be used; the one before stays in force", error=self._problem[:2000])
            return
        self._content, self._problem = content, ""
        self._outdated.set(0)
        self._reads.labels("read").inc()
        log.warning(self._changed, file=str(self._file))
