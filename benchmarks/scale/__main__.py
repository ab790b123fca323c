"""What happens beyond one machine: `python -m benchmarks.scale`. docs/scaling.md has the tables of the last run.

A scenario is a module of this package with `run(folder, say)`, which yields its tables as it measures them, and
`missing()`, which says why it cannot run on this machine, or nothing.
"""

import argparse
import importlib
import sys
import tempfile
import traceback
from pathlib import Path

from benchmarks.plan import progress

SCENARIOS: tuple[str, ...] = ("regions", "query_servers", "failover", "pooler")
"""Modules of this package, in the order in which they run."""
ON_DEMAND = ("cell", "cells")
"""Those that run only where they are asked for."""


def main() -> int:
    """The exit code says whether all that was asked for was measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument(
        "--only", nargs="+", choices=(*SCENARIOS, *ON_DEMAND), default=SCENARIOS, help="these scenarios alone"
    )
    arguments = parser.parse_args()
    say = progress()
    failed: list[str] = []
    for name in arguments.only:
        scenario = importlib.import_module(f"benchmarks.scale.{name}")
        if reason := scenario.missing():
            say(f"{name} cannot run: {reason}")
            failed.append(name)
            continue
        say(f"{name} …")
        try:
            with tempfile.TemporaryDirectory(prefix="tandem-scale-") as folder:
                for table in scenario.run(Path(folder), say):
                    sys.stdout.write(table.markdown() + "\n\n")
                    sys.stdout.flush()
        except Exception:
            traceback.print_exc()
            failed.append(name)
    if failed:
        sys.stderr.write(f"not measured, for the reasons above: {', '.join(failed)}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
