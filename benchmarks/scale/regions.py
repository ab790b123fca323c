"""Two regions: how far behind the far one is, by the length of the line, and what a minute without the line costs.

A probe places an order near; the clock starts when it has the acknowledgement, and stops when GetOrderDetails with the
receipt's token has answered, at a far or at a near query server, in turn. Prober and callers are beside the servers
that they call: the line is between the regions alone, and only events cross it.
"""

import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from benchmarks.scale.tables import Table
from commerce.query.v1.query_service_pb2 import GetOrderDetailsRequest
from commerce.query.v1.query_service_pb2_grpc import QueryServiceStub
from tandem.testing.stack import wait_until
from tests.support.builders import identity, place_order
from tests.support.regions import Regions, Watch, Writes, two_regions
from tests.support.regions import missing as missing_for_regions

ROUND_TRIPS = (0.0, 0.02, 0.08, 0.2)
_SECONDS = 12.0
"""Of probes, for each line, without other writes and with them."""
_WRITES = 100.0
"""A second, where there are some, as far as one writer gets: orders placed, and addresses changed."""
_CUT_ROUND_TRIP = 0.08
_CUT_SECONDS = 60.0
_ORDERS, _WATCHES = 20, 20
_CALL_SECONDS = 60.0
# Between two probes: the next one finds all at rest, and the requests of the far side at any moment of theirs.
_PAUSES = (0.02, 0.1)
# As production has them: every commit is on the disk when it is acknowledged.
_POSTGRES = {"fsync": "on", "shared_buffers": "256MB", "max_wal_size": "2GB"}


def missing() -> str:
    return missing_for_regions()


def run(folder: Path, say: Callable[[str], None]) -> Iterator[Table]:
    # PostgreSQL's user must pass through it.
    folder.chmod(0o711)
    with two_regions(folder, postgres=_POSTGRES) as regions:
        writes = Writes(regions.commands, orders=_ORDERS, rate=_WRITES)
        yield _lags(regions, writes, say)
        yield _cut(regions, writes, say)


@dataclass
class _Probes:
    """In milliseconds, of each probe."""

    near: list[float] = field(default_factory=list)
    far: list[float] = field(default_factory=list)


def _lags(regions: Regions, writes: Writes, say: Callable[[str], None]) -> Table:
    rows = []
    numbers = iter(range(1_000_000, 2_000_000))
    for round_trip in ROUND_TRIPS:
        regions.set_round_trip(round_trip)
        regions.caught_up()
        for load in (None, writes):
            say(f"regions: {1000 * round_trip:.0f} ms of round trip, {'with' if load else 'without'} other writes")
            probes, rate = _probe_beside(regions, numbers, load)
            name = f"{rate:.0f}/s beside" if load else "one at a time"
            near, far = map(_percentiles, (probes.near, probes.far))
            rows.append([f"{1000 * round_trip:.0f} ms", name, *near, *far, f"{len(probes.near)} + {len(probes.far)}"])
    return Table(
        "From a commit near to visible, in ms, by the line's round trip; half of it is one way",
        ["round trip", "writes", *(f"{it} {p}" for it in ("near", "far") for p in ("p50", "p90", "p99")), "probes"],
        rows,
        [
            "The clock starts with the acknowledgement near and stops when a read with its token has answered, near or"
            " far; callers are in the region that they call. Everything runs on one machine.",
        ],
    )


def _probe_beside(regions: Regions, numbers: Iterator[int], load: Writes | None) -> tuple[_Probes, float]:
    """Also returns how many writes of the load were acknowledged in a second."""
    if load is None:
        return _probe(regions, numbers), 0.0
    with load.going_on():
        load.more(int(_WRITES))
        count, began = load.count, time.monotonic()
        probes = _probe(regions, numbers)
        return probes, (load.count - count) / (time.monotonic() - began)


def _probe(regions: Regions, numbers: Iterator[int]) -> _Probes:
    found = _Probes()
    commands, near, far = regions.commands, regions.near_queries, regions.far_queries()
    until = time.monotonic() + _SECONDS
    while time.monotonic() < until:
        for queries, lags in ((near, found.near), (far, found.far)):
            number = next(numbers)
            placed = commands.PlaceOrder(place_order(number), timeout=_CALL_SECONDS)
            acknowledged = time.perf_counter()
            answer = queries.GetOrderDetails(_wanted(number, placed.receipt.consistency_token), timeout=_CALL_SECONDS)
            lags.append(1000 * (time.perf_counter() - acknowledged))
            assert answer.order_details.order_id == placed.order_id
            time.sleep(random.uniform(*_PAUSES))
    return found


def _percentiles(found: Sequence[float]) -> list[str]:
    cuts = statistics.quantiles(found, n=100, method="inclusive")
    return [f"{cuts[it - 1]:.1f}" for it in (50, 90, 99)]


def _wanted(number: int, token: str = "", seconds: float = _CALL_SECONDS) -> GetOrderDetailsRequest:
    request = GetOrderDetailsRequest(order_id=identity("order", number))
    if token:
        request.consistency.at_least_as_fresh = token
        request.consistency.max_wait.FromMilliseconds(int(1000 * seconds))
    return request


class _Caller(threading.Thread):
    """Reads far again and again while the line is cut. answers: how many calls were answered how, by kind of call."""

    def __init__(self, queries: QueryServiceStub, token: Callable[[], str]) -> None:
        super().__init__(daemon=True)
        self._queries = queries
        self._token = token
        self._stopping = threading.Event()
        self.without_token: dict[str, int] = {}
        self.with_token: dict[str, int] = {}

    def run(self) -> None:
        while not self._stopping.wait(0.2):
            for counts, request in (
                (self.without_token, _wanted(1)),
                (self.with_token, _wanted(1, self._token(), 0.2)),
            ):
                outcome = self._outcome(request)
                counts[outcome] = counts.get(outcome, 0) + 1

    def _outcome(self, request: GetOrderDetailsRequest) -> str:
        try:
            self._queries.GetOrderDetails(request, timeout=_CALL_SECONDS)
        except grpc.RpcError as error:
            status, info = rpc_status.from_call(error), error_details_pb2.ErrorInfo()
            known = status is not None and any(it.Unpack(info) for it in status.details)
            return str(info.reason) if known else str(error)
        return "answered"

    def stop(self) -> None:
        self._stopping.set()
        self.join()


def _cut(regions: Regions, writes: Writes, say: Callable[[str], None]) -> Table:
    regions.set_round_trip(_CUT_ROUND_TRIP)
    regions.caught_up()
    orders = list(writes.versions)
    watches = [Watch(regions.far_queries(), orders[it % len(orders)]) for it in range(_WATCHES)]
    wait_until(lambda: all(it.shown for it in watches), "watches have begun")
    with writes.going_on():
        writes.more(int(2 * _WRITES))
        say(f"regions: the line is cut for {_CUT_SECONDS:.0f} s")
        regions.line.cut()
        # What was on its way has come, or never comes.
        time.sleep(1.0)
        begin = regions.far_position()
        caller = _Caller(regions.far_queries(), lambda: writes.token)
        caller.start()
        count, counted = writes.count, time.monotonic()
        time.sleep(_CUT_SECONDS - 1.0)
        rate = (writes.count - count) / (time.monotonic() - counted)
        caller.stop()
        assert regions.far_position() == begin, "nothing passes a line that is cut"
        behind, token = regions.head() - begin, writes.token
        mended = time.monotonic()
        regions.line.mend()
        regions.far_queries().GetOrderDetails(_wanted(1, token), timeout=_CALL_SECONDS)
        back = time.monotonic() - mended
        until = time.monotonic() + _CALL_SECONDS
        while regions.head() - regions.far_position() > _WRITES / 2:
            assert time.monotonic() < until, "the far views come to where the feed is"
            time.sleep(0.05)
        caught_up = time.monotonic() - mended
    regions.caught_up()
    near, far = regions.views()
    assert far == near, "nothing is lost, and nothing doubled"
    wait_until(
        lambda: all(it.shown[-1] == writes.versions[it.order_id] for it in watches), "watches are at the latest state"
    )
    for it in watches:
        it.leave()
    assert all(it.only_went_forward() for it in watches), "no state came again"
    ends = sum(len(it.ends) for it in watches)
    rows = [
        ["events that the far views were behind when the line was back", f"{behind:,}"],
        ["until a token of the last write before that was answered", f"{back:.1f} s"],
        [
            f"until the far views were at most {_WRITES / 2:.0f} events behind, while writes went on",
            f"{caught_up:.1f} s",
        ],
        ["rows of all views that were compared, near and far, and are the same", f"{sum(map(len, far.values())):,}"],
        ["watches that were open all the time, of which streams ended", f"{_WATCHES}, {ends}"],
        ["states that they were shown, each newer than the one before", f"{sum(len(it.shown) for it in watches):,}"],
        ["far reads without a token while the line was cut", _said(caller.without_token)],
        ["far reads with the token of the last write, which wait 0.2 s", _said(caller.with_token)],
    ]
    return Table(
        f"The line, of {1000 * _CUT_ROUND_TRIP:.0f} ms of round trip, is cut for {_CUT_SECONDS:.0f} s under"
        f" {rate:.0f} writes a second",
        ["what", "found"],
        rows,
        ["Packets are dropped, both ways, and neither end is told."],
    )


def _said(counts: dict[str, int]) -> str:
    return ", ".join(f"{outcome} {count}" for outcome, count in sorted(counts.items()))
