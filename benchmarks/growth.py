"""Growth: the same reads and writes with a few orders, and with many times as many.

The larger shop is a copy of the smaller one's databases with copies of its orders. Both run at once, and take turns.

`python -m benchmarks.growth --orders 10000000` (make bench-growth) is a run of its own, against ten thousand orders and
with two rows more: reads without memcached and lists.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import psutil
import psycopg

from benchmarks import report, shop
from benchmarks.copies import copy_id, copy_orders, has_room
from benchmarks.load import h2load
from benchmarks.load.compiled import installed
from benchmarks.measure import Figure, Result, Sample, Spread, alternate, at_least, ratios
from benchmarks.plan import Plan, progress
from benchmarks.world import POSTGRES, QUERIES, World, beside, open_world
from benchmarks.writes import new_bodies
from commerce.query.v1 import query_service_pb2 as queries
from tandem.cli.child import Child
from tandem.testing.stack import Side
from tests.support.stack import Databases

BAR = 0.85
FEW = 10_000
# Readers put so many missing entries into the cache at once (CACHE__MAX_FILLS): more would miss some.
_FILLING = 32
# Orders a second, roughly: only how long a turn takes depends on it.
_EXPECTED_RATE = 2_000
# Different orders that are read, at most: all of them are read once before.
_MOST_READ = 50_000
# Each customer has more than that in both shops, so that a page is as long.
_PAGE = 5
# Copies are made without them, and what made them is no part of a shop's work: it need not be in the log.
_BULK = {"wal_level": "minimal", "max_wal_senders": "0", "autovacuum": "off"}


def run(world: World, plan: Plan) -> list[Result]:
    small = World(world.folder, world.say, world.postgres, world.node, world.databases)
    with beside(small, plan.grown // plan.factor), growing(small, plan.factor) as shops:
        return [cached(shops, plan), *placing(shops, plan)]


def main() -> int:
    """The exit code says whether everything was measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--orders", type=int, default=10_000_000, help=f"against {FEW:,} (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=90, help="for the copies, at most (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where its databases are meanwhile; a temporary one otherwise")
    parser.add_argument("--output", type=Path, default=report.RESULTS, help="the folder for the JSON")
    arguments = parser.parse_args()
    if not installed():
        return 1
    say = progress()
    factor = max(2, arguments.orders // FEW)
    rounds = arguments.rounds
    plan = Plan(orders=FEW, rounds=rounds, side_rounds=rounds, seconds=2.0, warm_up=0.5, grown=factor * FEW, say=say)
    with (
        tempfile.TemporaryDirectory(prefix="tandem-growth-", dir=arguments.folder) as folder,
        open_world(Path(folder), plan.orders, say, postgres={**POSTGRES, **_BULK}) as small,
        growing(small, factor, most_seconds=60 * arguments.minutes) as shops,
    ):
        results = [cached(shops, plan), missed(shops, plan), listed(shops, plan), *placing(shops, plan)]
    took = report.Took.of(results, began=psutil.Process().create_time(), ended=time.time())
    arguments.output.mkdir(parents=True, exist_ok=True)
    report.write_json(arguments.output / "growth.json", results, took, quick=False)
    sys.stdout.write(report.table(results, took) + "\n")
    return 0


Shops = Mapping[str, World]
"""The smaller one and the larger one, by their names."""


def cached(shops: Shops, plan: Plan) -> Result:
    bodies = {name: _read_bodies(it) for name, it in shops.items()}
    for name, it in shops.items():
        _fill_cache(it, bodies[name])
    turns = {
        name: partial(_read, it, plan, it.stack.query_server, "GetOrderDetails", bodies[name][0])
        for name, it in shops.items()
    }
    return _result("GetOrderDetails, cached", alternate(turns, plan.rounds, say=plan.say))


def missed(shops: Shops, plan: Plan) -> Result:
    """Of the same orders as `cached`: which of them PostgreSQL has in memory is so for both."""
    with _more_servers(shops, CACHE__ENABLED="false") as servers:
        turns = {
            name: partial(_read, it, plan, servers[name], "GetOrderDetails", _read_bodies(it)[0])
            for name, it in shops.items()
        }
        return _result("GetOrderDetails without memcached", alternate(turns, plan.rounds, say=plan.say))


def listed(shops: Shops, plan: Plan) -> Result:
    requests = [
        queries.ListRecentOrdersRequest(customer_id=shop.customer_id(number * 7 % shop.CUSTOMERS), page_size=_PAGE)
        for number in range(shop.CUSTOMERS)
    ]
    turns = {
        name: partial(_read, it, plan, it.stack.query_server, "ListRecentOrders", it.bodies(requests))
        for name, it in shops.items()
    }
    return _result(f"ListRecentOrders, a page of {_PAGE}", alternate(turns, plan.rounds, say=plan.say))


def placing(shops: Shops, plan: Plan) -> list[Result]:
    """Of callers that follow docs/clients.md, with the bar, and of callers that choose ids at random, without one.

    The first make their request_id a UUIDv7 and leave order_id out, as the table there has it, so that the server
    chooses another. The second choose both.

    One data set serves both, since to make it takes most of the time. All of its orders and receipts have random ids,
    which are before any UUIDv7 (shop.py). What an order costs depends on the pages of an index that it is put into. At
    random it is any page of those for so many random ids, as in a shop in which all callers do so. In the order of time
    it is the last page, of an index as large and as high as if all did that; nobody looks at the pages before it. (In
    the index of each customer's orders it is the last page of that customer.) Those come first, before the others have
    filled PostgreSQL's memory with pages that are still to be written.
    """

    def measured(body: Callable[[int], bytes], rounds: int) -> dict[str, list[Sample]]:
        return alternate({name: partial(_place, it, plan, body) for name, it in shops.items()}, rounds, say=plan.say)

    timed, random_ = measured(shop.timed_order_body, plan.rounds), measured(shop.order_body, plan.side_rounds)
    return [
        _result("PlaceOrder, ids in the order of time", timed),
        _result("PlaceOrder, ids at random", random_, limit=None),
    ]


def _result(what: str, samples: Mapping[str, Sequence[Sample]], *, limit: float | None = BAR) -> Result:
    """limit: of the ratio, which is shown without a bar where there is none."""
    smaller, larger = samples
    text, values = f"rate with {larger}, times that with {smaller}", ratios(samples, larger, smaller)
    if limit is None:
        return Result(f"{what}, growth", samples, [Figure(text, Spread.of(values), "")])
    return Result(f"{what}, growth", samples, bars=[at_least(text, values, limit)])


@contextmanager
def _more_servers(shops: Shops, **settings: str) -> Iterator[Mapping[str, Child]]:
    """Another query server for each."""
    servers = {name: it.stack.new_query_server(**settings) for name, it in shops.items()}
    for name, it in shops.items():
        it.start(servers[name])
    yield servers
    for name, it in shops.items():
        it.stop(servers[name])


@contextmanager
def growing(small: World, factor: int, *, most_seconds: float = float("inf")) -> Iterator[Shops]:
    """A shop, and a copy of it with `factor` times as many orders; both are running.

    Raises OSError where the disk has no room for it, and TimeoutError where the copies would take longer than that.
    """
    with ExitStack() as exits:
        small.wait_for_followers()
        for service in small.stack.services:
            service.stop()
        large = World(small.folder, small.say, small.postgres, small.node, _Copies(small))
        exits.callback(large.close)
        large.orders, large.factor = small.orders, factor
        names = {f"{it.factor * it.orders:,} orders": it for it in (small, large)}
        urls = large.stack.write_url, large.stack.read_url
        if not has_room(small.folder, *urls, factor * small.orders, small.say):
            raise OSError(f"{small.folder} has no room for so many orders")
        small.say(f"copying {small.orders:,} orders {factor - 1} times")
        copy_orders(*urls, factor - 1, small.say, most_seconds=most_seconds)
        for it in names.values():
            it.stack.start()
        _check(large)
        yield names


class _Copies(Databases):
    """Gives the databases of another world, copied."""

    def __init__(self, world: World) -> None:
        super().__init__(world.postgres)
        self._urls = {"write": world.stack.write_url, "read": world.stack.read_url}

    def create(self, *sides: Side) -> str:
        [side] = sides
        template = self._urls[side].rsplit("/", 1)[1]
        url = self.copy(template, f"{template}_grown")
        if side == "read":
            # The entries in the cache are the original's, and so are the words that name them.
            with psycopg.connect(url) as connection:
                connection.execute("UPDATE tandem_read.projection SET cache_epochs = NULL")
        return url


def _check(large: World) -> None:
    """Reads some orders and their copies through the query server. AssertionError where a copy is not one."""
    stub = large.stack.queries
    for number in range(0, large.orders, max(1, large.orders // 20)):
        original = stub.GetOrderDetails(queries.GetOrderDetailsRequest(order_id=shop.order_id(number))).order_details
        for copy in (1, large.factor - 1):
            name = copy_id(original.order_id, copy)
            other = stub.GetOrderDetails(queries.GetOrderDetailsRequest(order_id=name)).order_details
            assert other.order_id == name
            other.order_id = original.order_id
            assert other == original
    customer = shop.customer_id(0)
    page = stub.ListRecentOrders(queries.ListRecentOrdersRequest(customer_id=customer, page_size=100))
    assert all(order.customer_id == customer for order in page.orders)
    assert len({order.order_id for order in page.orders}) == len(page.orders)


def _read_bodies(world: World) -> tuple[Path, int]:
    """Requests for different orders out of all, and their number."""
    placed, orders = world.orders, world.factor * world.orders
    numbers = random.Random("growth").sample(range(orders), min(orders, _MOST_READ))
    ids = [_id(number, placed) for number in numbers]
    return world.bodies(queries.GetOrderDetailsRequest(order_id=it) for it in ids), len(ids)


def _id(number: int, placed: int) -> str:
    """Of order `number` when the first `placed` were placed and the others are copies."""
    copy, original = divmod(number, placed)
    return copy_id(shop.order_id(original), copy) if copy else shop.order_id(original)


def _fill_cache(world: World, bodies: tuple[Path, int]) -> None:
    path, count = bodies
    target = world.target(world.stack.query_server, QUERIES + "GetOrderDetails")
    h2load.send(target, path, count, in_flight=_FILLING)


def _read(world: World, plan: Plan, server: Child, method: str, bodies: Path) -> Sample:
    target = world.target(server, QUERIES + method)
    return h2load.measure(target, bodies, in_flight=plan.in_flight, seconds=plan.seconds, warm_up=plan.warm_up)


def _place(world: World, plan: Plan, body: Callable[[int], bytes]) -> Sample:
    """Places as many orders as take about the plan's time, all of them new."""
    count = round(plan.seconds * _EXPECTED_RATE)
    return world.place_others(new_bodies(count, body), count, in_flight=plan.in_flight)


if __name__ == "__main__":
    sys.exit(main())
