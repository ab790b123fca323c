"""What each service takes: memory at rest and at its peak under the other scenarios' load, and the time to start.

A start is a multiple of that of a Python which imports the two libraries that none of them does without, and does
nothing else.

Memory is what the kernel calls PSS, of a process and its children: pages that several processes share count in parts,
so that it can be added up.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import psutil

from benchmarks.measure import Figure, Result, Sample, Spread, alternate, at_most, p50, ratios
from benchmarks.plan import Plan
from benchmarks.world import World
from tandem.cli.services import Service

IMPORTS = 'python -c "import grpc, sqlalchemy"'

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
    services = {it.name: it for it in (stack.command_server, stack.projector, stack.query_server)}
    starts: dict[str, Callable[[], Sample]] = {name: partial(_start, it) for name, it in services.items()}
    samples = alternate({IMPORTS: _import, **starts}, plan.rounds)
    bars = [at_most(f"start of {name}, times {IMPORTS}", ratios(samples, name, IMPORTS, p50), 2.5) for name in services]
    return Result("From the start of a process to SERVING", samples, bars=bars)


def _start(service: Service) -> Sample:
    service.stop()
    began = time.perf_counter()
    service.start()
    return _sample(time.perf_counter() - began)


def _import() -> Sample:
    """With what Python has compiled, as a service has."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import grpc, sqlalchemy"], env=environment, check=True)
    return _sample(time.perf_counter() - began)


def _sample(seconds: float) -> Sample:
    """Of one start."""
    return Sample(rate=1 / seconds, p50=seconds, p99=seconds)


def _figures(what: str, values: Mapping[str, Sequence[float]], unit: str) -> list[Figure]:
    return [Figure(f"{name} {what}".strip(), Spread.of(each), unit) for name, each in values.items()]


def _mebibytes(service: Service) -> float:
    process = psutil.Process(service.pid)
    family = [process, *process.children(recursive=True)]
    return sum(it.memory_full_info().pss for it in family) / _MIB
