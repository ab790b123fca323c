"""Runs a service that notes its steps in a file: `python -m benchmarks.profiles.marks MODULE FILE`.

A step is what lies between two marks of a thread. A note takes some two microseconds. Threads come and go, and one may
have the number of one before: what a new thread does first has a mark before it.
"""

import functools
import importlib
import os
import runpy
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.profiles import steps
from benchmarks.profiles.steps import Step


class Mark(NamedTuple):
    """at: on the clock of time.perf_counter(), the same for all processes of a machine. cpu: the thread's processor
    time. Both in seconds. what: the step that ends here; empty where none does, and the next one begins.
    """

    at: float
    cpu: float
    thread: int
    what: str


@dataclass
class Taken:
    """What a step took in all: seconds, and of those the processor's."""

    seconds: float = 0.0
    cpu: float = 0.0


def read(file: Path) -> list[Mark]:
    """In the order of time."""
    lines = (line.split(" ", 3) for line in file.read_text(encoding="utf-8").splitlines())
    return sorted(Mark(float(at), float(cpu), int(thread), what) for at, cpu, thread, what in lines)


def in_the_middle(found: Sequence[Mark], each: str) -> tuple[int, dict[str, Taken]]:
    """How often `each` was done in the middle three fifths of a run, and what the steps took meanwhile, of all threads.

    found: as `read` returns it.
    """
    times = [mark.at for mark in found if mark.what == each]
    fifth = len(times) // 5
    assert fifth, f"done {len(times)} times, which tells nothing: {each}"
    first, last = times[fifth], times[4 * fifth]
    taken: defaultdict[str, Taken] = defaultdict(Taken)
    before: dict[int, Mark] = {}
    for mark in found:
        begun = before.get(mark.thread)
        if begun is not None and mark.what and first <= begun.at and mark.at <= last:
            taken[mark.what].seconds += mark.at - begun.at
            taken[mark.what].cpu += mark.cpu - begun.cpu
        before[mark.thread] = mark
    return 3 * fifth, dict(taken)


def main(arguments: Sequence[str]) -> None:
    """Ends as the service does: with SystemExit."""
    module, file = arguments
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(what: str) -> None:
        line = f"{time.perf_counter():.7f} {time.thread_time():.7f} {threading.get_ident()} {what}\n"
        os.write(descriptor, line.encode())

    for step in steps.OF[module]:
        owner, name = place_of(step)
        setattr(owner, name, _noted(getattr(owner, name), step, note))
    sys.argv = [module, "serve"]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def place_of(step: Step) -> tuple[Any, str]:
    """The module or class that has the step's function, and its name there."""
    owner: Any = importlib.import_module(step.module)
    *classes, name = step.function.split(".")
    for it in classes:
        owner = getattr(owner, it)
    return owner, name


def _noted(function: Callable[..., Any], step: Step, note: Callable[[str], None]) -> Callable[..., Any]:
    @functools.wraps(function)
    def noted(*arguments: Any, **options: Any) -> Any:
        if step.before is not None:
            note(step.before)
        result = function(*arguments, **options)
        note(step.after(*arguments) if callable(step.after) else step.after)
        return result

    return noted


if __name__ == "__main__":
    main(sys.argv[1:])
