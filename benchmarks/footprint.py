"""What each service takes: memory at rest and at its peak under the other scenarios' load, and the time to start.

Memory is what the kernel calls PSS, of a process and its children: pages that several processes share count in parts,
so that it can be added up.
"""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import psutil

from benchmarks.measure import Bar, Figure, Result, Spread, at_most
from benchmarks.plan import Plan
from benchmarks.world import World
from tandem.cli.services import Service

_MIB = 1024 * 1024
# Reading PSS walks the page tables of the process: seldom enough to be nothing beside the load.
_EVERY_SECONDS = 1.0


class Peaks:
    """The most memory that each of the world's services was seen to take."""

    def __init__(self, services: Sequence[Service]) -> None:
        self.at_rest = {service.name: _mebibytes(service) for service in services}
        self.at_peak = dict(self.at_rest)
        self._services = services

    def look(self) -> None:
        for service in self._services:
            # One that a scenario has stopped for a while takes nothing.
            if service.exit_code() is None:
                self.at_peak[service.name] = max(self.at_peak[service.name], _mebibytes(service))


@contextmanager
def watching(world: World) -> Iterator[Peaks]:
    """Looks at the memory of Tandem's services from a thread until the block ends."""
    stack = world.stack
    peaks = Peaks([stack.command_server, stack.projector, stack.query_server])
    stop = threading.Event()
    failures: list[Exception] = []

    def follow() -> None:
        while not stop.wait(_EVERY_SECONDS):
            try:
                peaks.look()
            except psutil.NoSuchProcess:
                continue  # stopped between two lines of ours
            except Exception as error:
                failures.append(error)
                return

    thread = threading.Thread(target=follow, name="memory", daemon=True)
    thread.start()
    try:
        yield peaks
    finally:
        stop.set()
        thread.join()
    if failures:
        raise failures[0]


def run(world: World, plan: Plan, peaks: Peaks) -> list[Result]:
    return [_memory(peaks), _starts(world, plan)]


def _memory(peaks: Peaks) -> Result:
    return Result(
        "Memory (PSS) of each service",
        figures=[
            *_figures("at rest", {name: [value] for name, value in peaks.at_rest.items()}, "MiB"),
            *_figures("at its peak", {name: [value] for name, value in peaks.at_peak.items()}, "MiB"),
        ],
        bars=[at_most(f"{name} at most 150 MiB at its peak", [value], 150) for name, value in peaks.at_peak.items()],
    )


def _starts(world: World, plan: Plan) -> Result:
    """From the start of the process to SERVING, each service alone."""
    stack = world.stack
    took: dict[str, list[float]] = {}
    for service in (stack.command_server, stack.projector, stack.query_server):
        for _ in range(plan.rounds):
            service.stop()
            began = time.monotonic()
            service.start()
            took.setdefault(service.name, []).append(time.monotonic() - began)
        plan.say(f"start of {service.name}: {Spread.of(took[service.name]).median:.2f} s")
    bars: list[Bar] = [at_most(f"{name} at most 1.5 s", values, 1.5) for name, values in took.items()]
    return Result("From the start of a process to SERVING", figures=_figures("", took, "s"), bars=bars)


def _figures(what: str, values: Mapping[str, Sequence[float]], unit: str) -> list[Figure]:
    return [Figure(f"{name} {what}".strip(), Spread.of(each), unit) for name, each in values.items()]


def _mebibytes(service: Service) -> float:
    process = psutil.Process(service.pid)
    family = [process, *process.children(recursive=True)]
    return sum(it.memory_full_info().pss for it in family) / _MIB
