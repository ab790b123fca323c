"""PlaceOrder, three lines, fsync on: Tandem against the SQL alone, libraries, and no batches.

All have the same PostgreSQL server and take turns on it:

- Tandem: its command server alone, as the others have no views to fill; the projector is stopped, and catches up
  between turns. Once more with the projector following, on the same processors.
- The floor: the same SQL in batches of the mean size that Tandem had, nothing around it; see contenders.floor. With one
  order in flight it is a transaction for each.
- `eventsourcing`: aggregates that hold the same, from 16 threads; see contenders.eventsourced. Once more with its
  stored procedure, which its users do not get by default.
- Protean: aggregates of the same, by commands from 16 threads, where it can be installed; see contenders.protean. No
  bar is about it.
- A transaction a request: grpc.aio and SQLAlchemy, under the same load; see contenders.per_request.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psycopg

from benchmarks import shop
from benchmarks.contenders import eventsourced, floor, protean
from benchmarks.contenders.child import Contender
from benchmarks.load import h2load
from benchmarks.load.compiled import NotInstalled
from benchmarks.measure import Bar, Figure, Result, Sample, Spread, alternate, at_least, at_most, p50, ratios
from benchmarks.plan import Plan
from benchmarks.world import COMMANDS, World
from commerce.command.v1.command_service_pb2 import PlaceOrderRequest
from tandem.feed.table import SCHEMA
from tests.support.stack import Databases

METHOD = COMMANDS + "PlaceOrder"
TANDEM = "Tandem"
FOLLOWED = "Tandem, projector following"
FLOOR = "the SQL alone"
BARE = "one transaction of the SQL"
LIBRARY = "eventsourcing, 16 threads"
PROCEDURE = "eventsourcing, stored procedure"
PROTEAN = "Protean, 16 threads"
PER_REQUEST = "a transaction a request"
THREADS = 16

# More than any contender can place: each body is sent once, and there must be enough of them.
_MOST_A_SECOND = 15_000
# The floor is as fast as that, roughly, beside Tandem: only how long its turn takes depends on it.
_FLOOR_TIMES = 1.5
# Of those that are sent one after the other, in a turn's second.
_ONE_BY_ONE = 500
# The world numbers its own orders from 0 on, and relies on having all of them.
_numbers = itertools.count(1_000_000_000)
_ORDERS_BEFORE = range(2_000_000_000, 2_000_002_000)


def run(world: World, plan: Plan) -> list[Result]:
    with opened_shop(world) as opened:
        return [in_flight(world, plan, opened), one_in_flight(world, plan, opened)]


def in_flight(world: World, plan: Plan, opened: "Opened") -> Result:
    tandem, followed, floor_ = Tandem(world, plan), Tandem(world, plan), Floor(opened)
    missing = []
    others: dict[str, Callable[[], Sample]] = {}
    try:
        protean.environment()
    except NotInstalled as error:
        missing.append(f"Protean: {error}")
    else:
        others[PROTEAN] = lambda: measure_protean(world, plan)
    samples = alternate(
        {
            TANDEM: tandem.place_orders_alone,
            FLOOR: lambda: floor_.measure(
                max(1, round(tandem.batch_sizes[-1])), round(_FLOOR_TIMES * tandem.rates[-1] * plan.seconds)
            ),
            FOLLOWED: followed.place_orders,
            LIBRARY: lambda: measure_library(world, plan, functions=False),
            PROCEDURE: lambda: measure_library(world, plan, functions=True),
        },
        plan.rounds,
        seldom={PER_REQUEST: lambda: measure_per_request(world, plan, opened), **others},
        seldom_rounds=plan.side_rounds,
        say=plan.say,
    )
    figures = [Figure("commands in a transaction, mean", Spread.of(tandem.batch_sizes), "")]
    name = f"PlaceOrder, {shop.LINES} lines, {plan.in_flight} in flight"
    return Result(name, samples, figures, bars(samples), missing)


def bars(samples: Mapping[str, Sequence[Sample]]) -> list[Bar]:
    asked = {FLOOR: 0.7, LIBRARY: 5.0, PROCEDURE: 1.5, PER_REQUEST: 5.0}
    return [
        *(at_least(f"rate, times {other}", ratios(samples, TANDEM, other), limit) for other, limit in asked.items()),
        at_least("projector following, times without", ratios(samples, FOLLOWED, TANDEM), 0.85),
    ]


def one_in_flight(world: World, plan: Plan, opened: "Opened") -> Result:
    tandem, floor_ = Tandem(world, replace(plan, in_flight=1)), Floor(opened)
    samples = alternate(
        {
            TANDEM: tandem.place_orders_alone,
            BARE: lambda: floor_.measure(1, round(_ONE_BY_ONE * plan.seconds)),
        },
        plan.rounds,
        say=plan.say,
    )
    bar = at_most(f"p50, times {BARE}", ratios(samples, TANDEM, BARE, p50), 1.3)
    return Result(f"PlaceOrder, {shop.LINES} lines, one in flight", samples, bars=[bar])


def new_orders(count: int) -> list[PlaceOrderRequest]:
    """Orders that nobody has placed."""
    return [shop.order(number) for number in itertools.islice(_numbers, count)]


def new_bodies(count: int, body: Callable[[int], bytes] = shop.order_body) -> Iterator[bytes]:
    """The same, serialised. body: makes one of its number, with ids at random or in the order of time."""
    return map(body, itertools.islice(_numbers, count))


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
            self._world.wait_for_followers()

    def place_orders(self) -> Sample:
        """One turn; the views have all of its orders at the end. AssertionError when some were not stored."""
        sample = self.place_orders_beside()
        self._world.wait_for_followers()
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


class Floor:
    """Sends the SQL alone, to a new database in each turn."""

    def __init__(self, opened: "Opened") -> None:
        self._opened = opened
        self._recording: floor.Recording | None = None

    def measure(self, size: int, orders: int) -> Sample:
        """In batches of this size, or nearly: what was recorded for a tenth more or less is sent again."""
        recording = self._recording
        if recording is None or not 0.9 <= recording.batch_size / size <= 1.1:
            with self._opened.copy() as url:
                recording = self._recording = floor.record(url, new_orders(-(-orders // size) * size), size)
        with self._opened.copy() as url:
            return floor.replay(url, recording)


def measure_library(world: World, plan: Plan, *, functions: bool) -> Sample:
    url = world.databases.create()
    try:
        done = eventsourced.run("save", url, threads=THREADS, seconds=plan.seconds, functions=functions)
    finally:
        world.databases.drop(url)
    return _to_sample(done)


def measure_protean(world: World, plan: Plan) -> Sample:
    url = world.databases.create()
    try:
        done = protean.place_orders(url, threads=THREADS, seconds=plan.seconds)
        placed = done.pop("placed")
        with psycopg.connect(url) as connection:
            tables = ('"order"', "outbox", "order_line")
            counts = [connection.execute(f"SELECT count(*) FROM {it}".encode()).fetchone() for it in tables]
        assert counts == [(placed,), (placed,), (shop.LINES * placed,)], f"{counts} are stored of {placed} orders"
    finally:
        world.databases.drop(url)
    return _to_sample(eventsourced.Done(**done))


def _to_sample(done: eventsourced.Done) -> Sample:
    return Sample(
        rate=done.operations / done.seconds,
        p50=done.latencies[len(done.latencies) // 2],
        p99=done.latencies[len(done.latencies) * 99 // 100],
        cpu={"server": done.cpu_seconds / done.operations},
    )


def measure_per_request(world: World, plan: Plan, opened: "Opened") -> Sample:
    with opened.copy() as url, _bodies(world, plan) as bodies:
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
        assert _count(url, "receipt") == orders + opened.commands, "an order and no receipt, or the other way round"
    return sample


@contextmanager
def _bodies(world: World, plan: Plan) -> Iterator[Path]:
    path = world.bodies(new_bodies(round(_MOST_A_SECOND * (plan.warm_up + plan.seconds))))
    try:
        yield path
    finally:
        path.unlink()


class Opened:
    """A write database with a shop and some orders, to be copied. commands: how many made it.

    With some orders: on empty tables PostgreSQL would plan for few rows, and keep those plans.
    """

    def __init__(self, databases: Databases) -> None:
        self._databases = databases
        self.url = databases.create("write")
        opening = [*shop.registrations(), *shop.additions(), *map(shop.order, _ORDERS_BEFORE)]
        self.commands = len(opening)
        floor.store(self.url, opening)

    @contextmanager
    def copy(self) -> Iterator[str]:
        """Its URL, while the block runs."""
        template = self.url.rsplit("/", 1)[1]
        url = self._databases.copy(template, f"{template}_{next(_numbers)}")
        try:
            yield url
        finally:
            self._databases.drop(url)


@contextmanager
def opened_shop(world: World) -> Iterator[Opened]:
    opened = Opened(world.databases)
    try:
        yield opened
    finally:
        world.databases.drop(opened.url)


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
