"""From an acknowledgement to the answer of a read that carries its token: idle, and at half of the write peak.

One prober places an order; the clock starts when it has the acknowledgement, and stops when GetOrderDetails with that
token has answered. It reads the same once more, when nothing has to be waited for: the median of these reads in a turn
is the measure of what that turn found. All views are on, and with load the projector has everybody else's orders to
take in as well. The prober is Python on the same machine: its own part is in every sample, and in the second read too.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from benchmarks.load import h2load
from benchmarks.measure import Bar, Figure, Result, Sample, Spread, alternate, at_most, p50, p99
from benchmarks.plan import Plan
from benchmarks.world import World
from benchmarks.writes import METHOD, Tandem, new_bodies, new_orders
from commerce.query.v1.query_service_pb2 import GetOrderDetailsRequest
from commerce.type.v1.consistency_pb2 import Consistency

IDLE, LOADED = "idle", "half of the write peak"
_CALL_SECONDS = 10.0
# Between two probes, so that each finds the stack as it is without them.
_PAUSE = 0.005
# Times the plan's seconds in a turn: a probe takes some milliseconds, and a 99th percentile wants hundreds of them.
_LONGER = 3
# What the load must at least be, of the peak, to be called half of it.
_HALF, _AT_LEAST = 0.5, 0.45


@dataclass
class Lags:
    """Of each probe, in seconds. acknowledged: when, on the clock of time.perf_counter(). visible: from then to the
    answer. again: the same read once more.
    """

    acknowledged: list[float] = field(default_factory=list)
    visible: list[float] = field(default_factory=list)
    again: list[float] = field(default_factory=list)

    def to_sample(self) -> "Lag":
        """Its rate is of one prober after the other, without what it does between two waits."""
        visible, again = sorted(self.visible), sorted(self.again)
        return Lag(
            rate=len(visible) / sum(visible),
            p50=statistics.median(visible),
            p99=visible[len(visible) * 99 // 100],
            again_p50=statistics.median(again),
            again_p99=again[len(again) * 99 // 100],
        )


@dataclass(frozen=True)
class Lag(Sample):
    """again_p50, again_p99: seconds that the same read took once more."""

    again_p50: float = 0.0
    again_p99: float = 0.0


def run(world: World, plan: Plan) -> list[Result]:
    # Else PostgreSQL cleans up after other scenarios meanwhile.
    world.tidy()
    peak = Tandem(world, plan).place_orders().rate
    plan.say(f"lag: the write peak is {peak:.0f} orders/s")
    loads: list[float] = []

    def idle() -> Lag:
        return turn(probe(world, _LONGER * plan.seconds))

    def loaded() -> Lag:
        lags, rate = probe_loaded(world, plan, _HALF * peak)
        loads.append(rate / peak)
        return turn(lags)

    def turn(lags: Lags) -> Lag:
        world.wait_for_followers()
        return lags.to_sample()

    samples = alternate({IDLE: idle, LOADED: loaded}, plan.rounds, say=plan.say)
    figures = [*figures_of(samples), Figure("load meanwhile, of the write peak", Spread.of(loads), "")]
    return [Result("From commit to visible", samples, figures, bars(samples))]


def bars(samples: Mapping[str, Sequence[Lag]]) -> list[Bar]:
    def times(name: str, value: Callable[[Sample], float]) -> list[float]:
        return [value(it) / it.again_p50 for it in samples[name]]

    return [
        at_most("idle, p50, times the same read again", times(IDLE, p50), 3),
        at_most("idle, p99, times the same read again", times(IDLE, p99), 6),
        at_most("half of the write peak, p99, times the same read again", times(LOADED, p99), 15),
    ]


def figures_of(samples: Mapping[str, Sequence[Lag]]) -> list[Figure]:
    """What the bars are multiples of, and the 99th percentile as a multiple of the read's own."""
    return [
        figure
        for name, found in samples.items()
        for figure in (
            Figure(f"the same read again, {name}, p50", Spread.of([1000 * it.again_p50 for it in found]), "ms"),
            Figure(f"p99, times that read's p99, {name}", Spread.of([it.p99 / it.again_p99 for it in found]), ""),
        )
    ]


def probe_loaded(world: World, plan: Plan, rate: float) -> tuple[Lags, float]:
    """Probes while others place orders at this rate; also returns the rate that it was. Raises LoadFailed for less."""
    seconds = _LONGER * plan.seconds
    # A second longer than the prober: it must not see the load's end.
    bodies = world.bodies(new_bodies(round(rate * (plan.warm_up + seconds + 2.0))))
    with ThreadPoolExecutor(1) as threads:
        load = threads.submit(
            h2load.measure,
            world.target(world.stack.command_server, METHOD),
            bodies,
            in_flight=plan.in_flight,
            seconds=seconds + 1.0,
            warm_up=plan.warm_up,
            once=True,
            rate=rate,
        )
        time.sleep(plan.warm_up)
        lags = probe(world, seconds)
        assert not load.done(), f"the load ended before the prober: {load.result()}"
        found = load.result().rate
    bodies.unlink()
    if found < rate * _AT_LEAST / _HALF:
        raise h2load.LoadFailed(f"{found:.0f} orders/s were placed, {rate:.0f} were asked for")
    return lags, found


def probe(world: World, seconds: float) -> Lags:
    """One order after the other. AssertionError for an answer that is not the order's, grpc.RpcError for none."""
    lags = Lags()
    # Made once: a stub is fifty callables.
    commands, queries = world.stack.commands, world.stack.queries
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        [order] = new_orders(1)
        placed = commands.PlaceOrder(order, timeout=_CALL_SECONDS)
        acknowledged = time.perf_counter()
        fresh = Consistency(at_least_as_fresh=placed.receipt.consistency_token)
        request = GetOrderDetailsRequest(order_id=placed.order_id, consistency=fresh)
        answer = queries.GetOrderDetails(request, timeout=_CALL_SECONDS)
        seen = time.perf_counter()
        queries.GetOrderDetails(request, timeout=_CALL_SECONDS)
        lags.again.append(time.perf_counter() - seen)
        lags.acknowledged.append(acknowledged)
        lags.visible.append(seen - acknowledged)
        assert answer.order_details.order_id == placed.order_id == order.order_id
        assert len(answer.order_details.lines) == len(order.lines)
        time.sleep(_PAUSE)
    return lags
