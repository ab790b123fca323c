"""Runs a command server whose clock differs from this machine's by as many seconds as a file says, at every look.

`python -m nemesis.stepped_clock FILE`. A machine's own clock cannot be set by a test, and its time is everybody's.
"""

import runpy
import sys
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

from tandem.runtime import clock


def step(file: Path) -> None:
    """From now on in this process."""

    class Stepped(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Any:
            return datetime.now(tz) + timedelta(seconds=float(file.read_text()))

    vars(clock)["datetime"] = Stepped


if __name__ == "__main__":
    step(Path(sys.argv.pop(1)))
    runpy.run_module("command_server", run_name="__main__", alter_sys=True)
