"""Runs h2load against a gRPC server: what it measured, and whether every call was answered with OK."""

import os
import subprocess
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.load.compiled import bodies_library, h2load
from benchmarks.measure import Sample
from benchmarks.processor import cpu_seconds

# Of calls that are under way at once. More connections than that change nothing, fewer make a proxy of each.
_MOST_CONNECTIONS = 4
# h2load does not end by itself when a server hangs.
_PATIENCE = 120.0


class LoadFailed(Exception):
    """The load was not what it should have been, so that nothing can be said of it."""


@dataclass(frozen=True)
class Target:
    """method: as in "/commerce.query.v1.QueryService/GetOrderDetails".

    server, stores: the processes whose processor time is counted, their children with them; apart: more of them, each
    under a name of its own. headers: of each call, as
    in "name: value". callers: a file with a header in each line, of which each call gets the next one too.
    """

    address: str
    method: str
    server: Sequence[psutil.Process] = ()
    stores: Sequence[psutil.Process] = ()
    headers: Sequence[str] = ()
    callers: Path | None = None
    apart: Mapping[str, Sequence[psutil.Process]] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """What bodies.c counted: answers by status, and how often the bodies began again."""

    ok: int
    failed: int
    first_failure: int
    begun_again: int


@dataclass(frozen=True)
class Answered:
    """Calls by their ends: seconds since the epoch, and how long each took."""

    ends: Sequence[float]
    seconds: Sequence[float]


def write_bodies(path: Path, messages: Iterable[bytes]) -> Path:
    """A file of bodies for `measure` and `send`: each call gets the next message. Returns the path."""
    with path.open("wb") as file:
        for message in messages:
            file.write(b"\0" + len(message).to_bytes(4) + message)
    return path


def measure(
    target: Target,
    bodies: Path,
    *,
    in_flight: int,
    seconds: float,
    warm_up: float,
    once: bool = False,
    rate: float | None = None,
) -> Sample:
    """Keeps `in_flight` calls under way, and measures for `seconds` after `warm_up`.

    rate: begin so many calls a second instead, never more than `in_flight` at once. once: no body may be sent twice, so
    LoadFailed when there are too few. Raises LoadFailed when a call fails, or none is answered.
    """
    extent = ["-D", f"{round(1000 * (warm_up + seconds))}ms"]
    if rate is not None:
        extent += ["--rps", f"{rate / connections(in_flight):.1f}"]
    with _Run(target, bodies, in_flight, extent) as run:
        time.sleep(warm_up)
        began, before = time.time(), run.spent()
        report, answered = run.finish()
        after = run.spent()
    _check(target, report, answered, in_flight, once=once)
    return summarize(answered, began, {who: after[who] - before[who] for who in after})


def send(target: Target, bodies: Path, count: int, *, in_flight: int) -> Sample:
    """Sends so many calls, each with a body of its own, and measures from the first to the last; raises LoadFailed."""
    run = _Run(target, bodies, in_flight, ["-n", str(count)])
    # Before it starts: a few calls may be over sooner than one can look.
    before = run.spent()
    with run:
        report, answered = run.finish()
        after = run.spent()
    _check(target, report, answered, in_flight, once=True)
    if report.ok != count:
        raise LoadFailed(f"{target.method}: {report.ok} of {count} calls were answered")
    began = min(end - taken for end, taken in zip(answered.ends, answered.seconds, strict=True))
    return summarize(answered, began, {who: after[who] - before[who] for who in after})


def connections(in_flight: int) -> int:
    """How many connections so many calls share. Raises ValueError when they cannot be shared equally."""
    count = min(_MOST_CONNECTIONS, in_flight)
    if in_flight % count:
        raise ValueError(f"{in_flight} calls cannot be shared among {count} connections")
    return count


def summarize(answered: Answered, began: float, cpu: dict[str, float]) -> Sample:
    """Of the calls that were answered after `began`; cpu: seconds that all of them took together."""
    taken = sorted(taken for end, taken in zip(answered.ends, answered.seconds, strict=True) if end >= began)
    if not taken:
        raise LoadFailed("no call was answered in the time that is measured")
    return Sample(
        rate=len(taken) / (max(answered.ends) - began),
        p50=taken[len(taken) // 2],
        p99=taken[len(taken) * 99 // 100],
        cpu={who: seconds / len(taken) for who, seconds in cpu.items()},
    )


def parse_log(text: bytes) -> Answered:
    """h2load's --log-file: start in microseconds since the epoch, HTTP status, microseconds; raises LoadFailed.

    The status is -1 for a call that was not answered, whose stream or connection ended.
    """
    fields = text.split()
    took = [int(field) / 1e6 for field in fields[2::3]]
    starts = [int(field) / 1e6 for field in fields[0::3]]
    if bad := [(start, status) for start, status in zip(starts, fields[1::3], strict=True) if status != b"200"]:
        statuses = ", ".join(sorted({status.decode() for _, status in bad}))
        after = min(bad)[0] - min(starts)
        raise LoadFailed(
            f"HTTP statuses other than 200: {statuses}; of {len(bad)} calls out of {len(starts)}, the first of which"
            f" began {after:.3f} s after the first of all"
        )
    return Answered([start + taken for start, taken in zip(starts, took, strict=True)], took)


def _check(target: Target, report: Report, answered: Answered, in_flight: int, *, once: bool) -> None:
    if report.failed:
        raise LoadFailed(
            f"{target.method} at {target.address}: {report.failed} calls failed, the first with status "
            f"{report.first_failure}; {report.ok} did not"
        )
    # What is under way when the time is over may be counted by one and not by the other.
    if abs(report.ok - len(answered.ends)) > in_flight:
        raise LoadFailed(f"{target.method}: {len(answered.ends)} calls ended, {report.ok} of them with a status")
    if once and report.begun_again:
        raise LoadFailed(f"{target.method}: there were fewer bodies than calls, and none may be sent twice")


class _Run:
    """h2load while it runs, and the folder of its files."""

    def __init__(self, target: Target, bodies: Path, in_flight: int, extent: Sequence[str]) -> None:
        self._target = target
        self._bodies = bodies
        count = connections(in_flight)
        self._extent = [*extent, "-c", str(count), "-m", str(in_flight // count), "-t", "1"]
        self._load: psutil.Process | None = None
        self._finished: float | None = None

    def __enter__(self) -> "_Run":
        self._temporary = tempfile.TemporaryDirectory(prefix="tandem-bench-load-")
        self._folder = Path(self._temporary.name)
        # h2load only sends bodies when it has one.
        placeholder = self._folder / "body"
        placeholder.write_bytes(b"\0")
        all_headers = ("content-type: application/grpc", "te: trailers", *self._target.headers)
        headers = [part for it in all_headers for part in ("-H", it)]
        files = ["-d", str(placeholder), "--log-file", str(self._folder / "log")]
        self._process = subprocess.Popen(
            [h2load(), *self._extent, *headers, *files, f"http://{self._target.address}{self._target.method}"],
            env={
                **os.environ,
                **({} if self._target.callers is None else {"BENCH_HEADERS": str(self._target.callers)}),
                "LD_PRELOAD": str(bodies_library()),
                "BENCH_BODIES": str(self._bodies),
                "BENCH_REPORT": str(self._folder / "report"),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._load = psutil.Process(self._process.pid)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._temporary.cleanup()

    def spent(self) -> dict[str, float]:
        """Processor seconds up to now."""
        return {
            "server": cpu_seconds(self._target.server),
            "stores": cpu_seconds(self._target.stores),
            "load": self._load_spent(),
            **{name: cpu_seconds(processes) for name, processes in self._target.apart.items()},
        }

    def _load_spent(self) -> float:
        if self._finished is not None:
            return self._finished
        return cpu_seconds([self._load]) if self._load is not None else 0.0

    def finish(self) -> tuple[Report, Answered]:
        """Waits for its end; raises LoadFailed when that is not a good one."""
        before = os.times()
        try:
            output, _ = self._process.communicate(timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            raise LoadFailed(f"h2load does not end within {_PATIENCE:g} s: {self._target}") from None
        after = os.times()
        # Known of a child that has ended: what it made its parent's children's time grow by.
        self._finished = after.children_user + after.children_system - before.children_user - before.children_system
        if self._process.returncode != 0:
            raise LoadFailed(f"h2load ended with {self._process.returncode}:\n{output}")
        report = Report(*map(int, (self._folder / "report").read_text(encoding="ascii").split()))
        return report, parse_log((self._folder / "log").read_bytes())
