"""The services on other Pythons: `python -m benchmarks.pythons` compares those that are on the PATH as python3.X.

Each gets an environment of its own with what the services' lock pins, once. A query server and a command server of each
take turns on the same stores. One without the GIL is not among them: the native transport, and what else of the lock is
compiled for the stable ABI (abi3), has no wheel for it.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import psutil

from benchmarks import report
from benchmarks.load import h2load
from benchmarks.load.compiled import NotInstalled, installed
from benchmarks.measure import Result, Sample, alternate
from benchmarks.plan import Plan, full, progress
from benchmarks.world import QUERIES, World, open_world
from benchmarks.writes import METHOD, new_bodies
from tandem.cli.services import Service
from tools.pythons import ROOT, interpreter, named_versions
from tools.runtime_lock import services_lock

_MOST_A_SECOND = 15_000


class OnAPython(Service):
    """A service on another Python than this one."""

    python = sys.executable

    def launch(self) -> None:
        self._spawn([self.python, *self.command], environment=self._environment)


def main() -> int:
    """The exit code says whether all that are there were measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pythons", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each (default: %(default)s)")
    arguments = parser.parse_args()
    if not installed():
        return 1
    say = progress()
    ours = f"{sys.version_info.major}.{sys.version_info.minor}"
    pythons, missing = {f"Python {ours}": sys.executable}, []
    for version in named_versions():
        if version == ours:
            continue
        try:
            pythons[f"Python {version}"] = environment(version)
        except NotInstalled as error:
            missing.append(f"Python {version}: {error}")
    # The services are those of this checkout, on whichever Python.
    os.environ["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT, ROOT / "gen")))
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    plan = full(say)
    with (
        tempfile.TemporaryDirectory(prefix="tandem-pythons-") as folder,
        open_world(Path(folder), plan.orders, say, service=OnAPython) as world,
    ):
        results = list(measure(world, plan, arguments.rounds, pythons, missing))
    took = report.Took.of(results, began=psutil.Process().create_time(), ended=time.time())
    sys.stdout.write(report.table(results, took) + "\n")
    return 0


def environment(version: str) -> str:
    """Its Python, with what the services need. Raises NotInstalled."""
    python = interpreter(version)
    if python is None:
        raise NotInstalled(f"there is no python{version} on the PATH")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tandem-bench"
    folder = home / f"services-{version}"
    own, lock, wanted = folder / "bin" / "python", folder / "services.lock", services_lock()
    if not lock.exists() or lock.read_text(encoding="utf-8") != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([python, "-m", "venv", str(folder)], check=True)
        new = lock.with_suffix(".new")
        new.write_text(wanted, encoding="utf-8")
        pip = [str(own), "-m", "pip", "install", "--quiet", "--require-hashes", "--only-binary=:all:", "-r", str(new)]
        result = subprocess.run(pip, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise NotInstalled(f"its packages cannot be installed: {result.stderr.strip().splitlines()[-1]}")
        new.rename(lock)
    return str(own)


def measure(world: World, plan: Plan, rounds: int, pythons: dict[str, str], missing: Sequence[str]) -> Iterator[Result]:
    with running(world, world.stack.new_query_server, pythons) as servers:
        requests = world.order_requests(world.orders)
        turns: dict[str, Callable[[], Sample]] = {
            name: lambda server=server: h2load.measure(  # type: ignore[misc]
                world.target(server, QUERIES + "GetOrderDetails"),
                requests,
                in_flight=plan.in_flight,
                seconds=plan.seconds,
                warm_up=plan.warm_up,
            )
            for name, server in servers.items()
        }
        name = f"GetOrderDetails, cached, {plan.in_flight} in flight"
        yield Result(name, alternate(turns, rounds, say=world.say), not_measured=missing)
    with running(world, world.stack.new_command_server, pythons) as servers:
        turns = {name: lambda server=server: place(world, plan, server) for name, server in servers.items()}  # type: ignore[misc]
        name = f"PlaceOrder, projector following, {plan.in_flight} in flight"
        yield Result(name, alternate(turns, rounds, say=world.say), not_measured=missing)


def place(world: World, plan: Plan, server: Service) -> Sample:
    bodies = world.bodies(new_bodies(round(_MOST_A_SECOND * (plan.warm_up + plan.seconds))))
    sample = h2load.measure(
        world.target(server, METHOD),
        bodies,
        in_flight=plan.in_flight,
        seconds=plan.seconds,
        warm_up=plan.warm_up,
        once=True,
    )
    bodies.unlink()
    world.wait_for_followers()
    return sample


@contextmanager
def running(world: World, new: Callable[[], Service], pythons: dict[str, str]) -> Iterator[dict[str, Service]]:
    """A server on each Python."""
    servers = {}
    for name, python in pythons.items():
        server = servers[name] = new()
        cast("OnAPython", server).python = python
    world.start(*servers.values())
    yield servers
    for server in servers.values():
        world.stop(server)


if __name__ == "__main__":
    sys.exit(main())
