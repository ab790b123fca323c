"""A contender as a child process."""

import sys
from collections.abc import Sequence
from pathlib import Path

from tandem.cli.child import Child
from tandem.testing.ports import free_port


class Contender(Child):
    """`python -m benchmarks.contenders.{name} --port PORT …`, a server that listens when it can be used."""

    def __init__(self, name: str, folder: Path, *options: str) -> None:
        port = free_port()
        super().__init__(name, port, folder / f"{name}-{port}.log")
        self._options: Sequence[str] = options

    def launch(self) -> None:
        module = f"benchmarks.contenders.{self.name}"
        self._spawn([sys.executable, "-m", module, "--port", str(self.port), *self._options])
