"""All benchmarks, one after the other: `python -m benchmarks`. README.md says how, and what was found."""

import argparse
import importlib
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import psutil

from benchmarks import footprint, report
from benchmarks.load.compiled import installed
from benchmarks.measure import Result
from benchmarks.plan import Plan, full, progress, quick
from benchmarks.world import open_world

SCENARIOS = ("reads", "rebuild", "access", "lag", "writes", "growth", "footprint")
APART = {"access-all": "access:run_all", "rebuild-beside": "rebuild:run_beside"}
"""Those that take too long for all days: module and function, by the name for --only."""


def main() -> int:
    """The exit code says whether everything was measured, not whether the bars hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer orders, turns and seconds: two minutes")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=(*SCENARIOS, *APART),
        default=SCENARIOS,
        help=f"these scenarios alone; those that are left out otherwise: {', '.join(APART)}",
    )
    parser.add_argument("--output", type=Path, default=report.RESULTS, help="the folder for tables, JSON and picture")
    arguments = parser.parse_args()
    if not installed():
        return 1
    # Services of a shop that is served have what Python has compiled.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    say = progress()
    results, failed = measure((quick if arguments.quick else full)(say), arguments.only)
    took = report.Took.of(results, began=psutil.Process().create_time(), ended=time.time())
    arguments.output.mkdir(parents=True, exist_ok=True)
    report.write_json(arguments.output / "results.json", results, took, quick=arguments.quick)
    report.draw(arguments.output / "results.png", results)
    (arguments.output / "bars.md").write_text(report.bars_table(results), encoding="utf-8")
    sys.stdout.write(report.table(results, took) + "\n")
    say(f"written: {arguments.output / 'results.json'}, results.png and bars.md")
    if failed:
        sys.stderr.write(f"not measured, for the reasons above: {', '.join(failed)}\n")
    return 1 if failed else 0


def measure(plan: Plan, scenarios: Sequence[str]) -> tuple[list[Result], list[str]]:
    """The results, and the scenarios that failed: the minutes of the others are not lost with one."""
    results: list[Result] = []
    failed: list[str] = []
    with (
        tempfile.TemporaryDirectory(prefix="tandem-bench-") as folder,
        open_world(Path(folder), plan.orders, plan.say) as world,
        footprint.watching(world) as peaks,
    ):
        for name in scenarios:
            plan.say(f"{name} …")
            try:
                if name == "footprint":
                    results += footprint.run(world, plan, peaks)
                else:
                    module, _, function = APART.get(name, name).partition(":")
                    run = getattr(importlib.import_module(f"benchmarks.{module}"), function or "run")
                    results += run(world, plan)
            except Exception:
                traceback.print_exc()
                failed.append(name)
    return results, failed


if __name__ == "__main__":
    sys.exit(main())
