"""All benchmarks, one after the other: `python -m benchmarks`. README.md says how, and what was found."""

import argparse
import importlib
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

from benchmarks import footprint, report
from benchmarks.load.compiled import installed
from benchmarks.measure import Result
from benchmarks.plan import Plan, full, progress, quick
from benchmarks.world import open_world

SCENARIOS = ("reads", "access", "rebuild", "writes", "lag", "growth", "footprint")
RESULTS = Path(__file__).with_name("results")


def main() -> int:
    """The exit code says whether everything was measured, not whether the bars hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer orders, turns and seconds: two minutes")
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, default=SCENARIOS, help="these scenarios alone")
    parser.add_argument("--output", type=Path, default=RESULTS, help="the folder for JSON and picture")
    arguments = parser.parse_args()
    if not installed():
        return 1
    say = progress()
    results, failed = measure((quick if arguments.quick else full)(say), arguments.only)
    arguments.output.mkdir(parents=True, exist_ok=True)
    report.write_json(arguments.output / "results.json", results, quick=arguments.quick)
    report.draw(arguments.output / "results.png", results)
    sys.stdout.write(report.table(results) + "\n")
    say(f"written: {arguments.output / 'results.json'} and results.png")
    if failed:
        sys.stderr.write(f"not measured, for the reasons above: {', '.join(failed)}\n")
    return 1 if failed else 0


def measure(plan: Plan, scenarios: Sequence[str]) -> tuple[list[Result], list[str]]:
    """The results, and the scenarios that failed: ten minutes of the others are not lost with one."""
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
                    results += importlib.import_module(f"benchmarks.{name}").run(world, plan)
            except Exception:
                traceback.print_exc()
                failed.append(name)
    return results, failed


if __name__ == "__main__":
    sys.exit(main())
