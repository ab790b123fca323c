"""PlaceOrder, three lines, fsync on, 64 under way: Tandem against the SQL alone, a library, and no batches.

All have the same PostgreSQL server and take turns on it:

- Tandem: its command server alone, as the others have no views to fill; the projector is stopped, and catches up
  between turns. Once more with the projector following, on the same processors; no bar is about that.
- The floor: the same SQL in batches of the mean size that Tandem just had, nothing around it; see contenders.floor.
- `eventsourcing`: aggregates that hold the same, from 16 threads; see contenders.eventsourced. Once more with its
  stored procedure, which its users do not get by default; no bar is against that.
- A transaction a request: grpc.aio and SQLAlchemy, under the same load; see contenders.per_request.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psycopg
from google.protobuf.message import Message

from benchmarks import shop
from benchmarks.contenders import eventsourced, floor
from benchmarks.contenders.child import Contender
from benchmarks.load import h2load
from benchmarks.measure import Bar, Figure, Result, Sample, Spread, alternate, at_least, ratios
from benchmarks.plan import Plan
from benchmarks.world import COMMANDS, World
from commerce.command.v1.command_service_pb2 import PlaceOrderRequest
from tandem.feed.table import SCHEMA

METHOD = COMMANDS + "PlaceOrder"
TANDEM = "Tandem"
FOLLOWED = "Tandem, projector following"
FLOOR = "the SQL alone"
LIBRARY = "eventsourcing, 16 threads"
PROCEDURE = "eventsourcing, stored procedure"
PER_REQUEST = "a transaction a request"
THREADS = 16

# More than any contender can place: each body is sent once, and there must be enough of them.
_MOST_A_SECOND = 15_000
# The world numbers its own orders from 0 on, and relies on having all of them.
_numbers = itertools.count(1_000_000_000)
_ORDERS_BEFORE = range(2_000_000_000, 2_000_002_000)


def run(world: World, plan: Plan) -> list[Result]:
    tandem = Tandem(world, plan)
    samples = alternate(
        {
            TANDEM: tandem.place_orders_alone,
            FLOOR: lambda: measure_floor(world, plan, tandem),
            LIBRARY: lambda: measure_library(world, plan, functions=False),
            PROCEDURE: lambda: measure_library(world, plan, functions=True),
            PER_REQUEST: lambda: measure_per_request(world, plan),
            FOLLOWED: tandem.place_orders,
        },
        plan.rounds,
    )
    figures = [Figure("commands in a transaction, mean", Spread.of(tandem.batch_sizes), "")]
    name = f"PlaceOrder, {shop.LINES} lines, {plan.in_flight} in flight"
    return [Result(name, samples, figures, bars(samples))]


def bars(samples: Mapping[str, Sequence[Sample]]) -> list[Bar]:
    asked = {FLOOR: 0.5, LIBRARY: 5.0, PER_REQUEST: 5.0}
    return [
        at_least(f"PlaceOrder, times {other}", ratios(samples, TANDEM, other), limit) for other, limit in asked.items()
    ]


def new_orders(count: int) -> list[PlaceOrderRequest]:
    """Orders that nobody has placed."""
    return [shop.order(number) for number in itertools.islice(_numbers, count)]


class Tandem:
    """Places orders with Tandem. batch_sizes, rates: of each turn, commands in a transaction and orders a second."""

    def __init__(self, world: World, plan: Plan) -> None:
        self._world = world
        self._plan = plan
        self.batch_sizes: list[float] = []
        self.rates: list[float] = []

    def place_orders_alone(self) -> Sample:
        """As `place_orders`, and the projector does not run meanwhile."""
        projector = self._world.stack.projector
        code = projector.stop()
        assert code == 0, f"the projector ended with exit code {code}:\n{projector.log_tail()}"
        try:
            return self.place_orders_beside()
        finally:
            projector.start()
            self._world.wait_for_views()

    def place_orders(self) -> Sample:
        """One turn; the views have all of its orders at the end. AssertionError when some were not stored."""
        sample = self.place_orders_beside()
        self._world.wait_for_views()
        return sample

    def place_orders_beside(self) -> Sample:
        """One turn, beside whatever else is done; the views are where they are at its end."""
        stack, plan = self._world.stack, self._plan
        before = self._stored()
        with _bodies(self._world, plan) as bodies:
            sample = h2load.measure(
                self._world.target(stack.command_server, METHOD),
                bodies,
                in_flight=plan.in_flight,
                seconds=plan.seconds,
                warm_up=plan.warm_up,
                once=True,
            )
        after = self._stored()
        _check_stored(stack.write_url, after["orders"] - before["orders"], sample, plan)
        self.batch_sizes.append(
            (after["commands"] - before["commands"]) / (after["transactions"] - before["transactions"])
        )
        self.rates.append(sample.rate)
        return sample

    def _stored(self) -> dict[str, float]:
        server = self._world.stack.command_server
        return {
            "commands": server.metric("tandem_command_batch_size_sum"),
            "transactions": server.metric("tandem_command_batch_size_count"),
            "orders": _count(self._world.stack.write_url, "customer_order"),
        }


def measure_floor(world: World, plan: Plan, tandem: Tandem) -> Sample:
    """In batches of the size that Tandem had in its last turn, and for about as long if it is twice as fast."""
    size = max(1, round(tandem.batch_sizes[-1]))
    count = round(2 * tandem.rates[-1] * plan.seconds / size + 1) * size
    orders = new_orders(count)
    with _database(world) as recorded, _database(world) as replayed:
        recording = floor.record(recorded, _opening(), orders, size)
        return floor.replay(replayed, recording)


def measure_library(world: World, plan: Plan, *, functions: bool) -> Sample:
    url = world.databases.create()
    try:
        done = eventsourced.run("save", url, threads=THREADS, seconds=plan.seconds, functions=functions)
    finally:
        world.databases.drop(url)
    return Sample(
        rate=done.operations / done.seconds,
        p50=done.latencies[len(done.latencies) // 2],
        p99=done.latencies[len(done.latencies) * 99 // 100],
        cpu={"server": done.cpu_seconds / done.operations},
    )


def measure_per_request(world: World, plan: Plan) -> Sample:
    with _database(world) as url, _bodies(world, plan) as bodies:
        opening = _opening()
        floor.store(url, opening)
        server = Contender("per_request", world.folder, url)
        world.start(server)
        try:
            sample = h2load.measure(
                world.target(server, METHOD),
                bodies,
                in_flight=plan.in_flight,
                seconds=plan.seconds,
                warm_up=plan.warm_up,
                once=True,
            )
        finally:
            world.stop(server)
        orders = _count(url, "customer_order") - len(_ORDERS_BEFORE)
        _check_stored(url, orders, sample, plan)
        assert _count(url, "receipt") == orders + len(opening), "an order and no receipt, or the other way round"
    return sample


def _opening() -> list[Message]:
    """With some orders: on empty tables PostgreSQL would plan for few rows, and keep those plans."""
    return [*shop.registrations(), *shop.additions(), *map(shop.order, _ORDERS_BEFORE)]


@contextmanager
def _bodies(world: World, plan: Plan) -> Iterator[Path]:
    path = world.bodies(new_orders(round(_MOST_A_SECOND * (plan.warm_up + plan.seconds))))
    try:
        yield path
    finally:
        path.unlink()


@contextmanager
def _database(world: World) -> Iterator[str]:
    """A migrated write database, without a shop."""
    url = world.databases.create("write")
    try:
        yield url
    finally:
        world.databases.drop(url)


def _check_stored(url: str, orders: float, sample: Sample, plan: Plan) -> None:
    """What was acknowledged is in the database, with all its lines; what was placed to warm up comes on top."""
    assert orders >= sample.rate * plan.seconds * 0.9, f"{orders} orders are stored, {sample.rate}/s were acknowledged"
    lines, all_orders = _counts(url, "order_line", "customer_order")
    assert lines == shop.LINES * all_orders, f"{lines} lines of {all_orders} orders"


def _count(url: str, table: str) -> int:
    [count] = _counts(url, table)
    return count


def _counts(url: str, *tables: str) -> Sequence[int]:
    """At one moment: what was called when the load ended may still be stored."""
    counts = ", ".join(f"(SELECT count(*) FROM {SCHEMA}.{table})" for table in tables)
    with psycopg.connect(url) as connection:
        [row] = connection.execute(f"SELECT {counts}").fetchall()
    return tuple(map(int, row))
