"""Growth: the same reads and writes with a few orders, and with a hundred times as many.

The larger shop is a copy of the smaller one's databases with copies of its orders. Both run at once, and take turns.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import psycopg

from benchmarks import shop
from benchmarks.copies import copy_id, copy_orders
from benchmarks.load import h2load
from benchmarks.measure import Result, Sample, alternate, at_least, ratios
from benchmarks.plan import Plan
from benchmarks.world import QUERIES, World, beside
from commerce.query.v1 import query_service_pb2 as queries
from tandem.testing.stack import Side
from tests.support.stack import Databases

FACTOR = 100
# Readers put so many missing entries into the cache at once (CACHE__MAX_FILLS): more would miss some.
_FILLING = 32
# Orders a second, roughly: only how long a turn takes depends on it.
_EXPECTED_RATE = 2_000


def run(world: World, plan: Plan) -> list[Result]:
    few, many = plan.grown // FACTOR, plan.grown
    with growing(world, few) as (small, large):
        names = {f"{few:,} orders": small, f"{many:,} orders": large}
        reads = {
            name: _read_bodies(it, orders, plan.orders // 2)
            for (name, it), orders in zip(names.items(), (few, many), strict=True)
        }
        for name, it in names.items():
            _fill_cache(it, reads[name])
        smaller, larger = names
        read = alternate(
            {name: partial(_read, it, plan, reads[name][0]) for name, it in names.items()},
            plan.rounds,
        )
        placed = alternate({name: partial(_place, it, plan) for name, it in names.items()}, plan.rounds)
    text = "rate at least 0.85 of that with fewer"
    return [
        Result(f"{what}, growth", samples, bars=[at_least(text, ratios(samples, larger, smaller), 0.85)])
        for what, samples in (("GetOrderDetails, cached", read), ("PlaceOrder", placed))
    ]


@contextmanager
def growing(world: World, orders: int) -> Iterator[tuple[World, World]]:
    """A shop with so many orders, and a copy of it with FACTOR times as many; both are running."""
    with ExitStack() as exits:
        small = World(world.folder, world.say, world.postgres, world.node, world.databases)
        exits.enter_context(beside(small, orders))
        for service in small.stack.services:
            service.stop()
        copies = _Copies(small)
        large = World(world.folder, world.say, world.postgres, world.node, copies)
        exits.callback(large.stack.stop)
        world.say(f"copying {orders:,} orders {FACTOR - 1} times")
        copy_orders(large.stack.write_url, large.stack.read_url, FACTOR - 1)
        large.orders = small.orders
        world.say("copied")
        for it in (small, large):
            it.stack.start()
        _check(large, orders)
        yield small, large


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


def _check(large: World, orders: int) -> None:
    """Reads some orders and their copies through the query server. AssertionError where a copy is not one."""
    stub = large.stack.queries
    for number in range(0, orders, max(1, orders // 20)):
        original = stub.GetOrderDetails(queries.GetOrderDetailsRequest(order_id=shop.order_id(number))).order_details
        for copy in (1, FACTOR - 1):
            name = copy_id(original.order_id, copy)
            other = stub.GetOrderDetails(queries.GetOrderDetailsRequest(order_id=name)).order_details
            assert other.order_id == name
            other.order_id = original.order_id
            assert other == original
    customer = shop.customer_id(0)
    page = stub.ListRecentOrders(queries.ListRecentOrdersRequest(customer_id=customer, page_size=100))
    assert all(order.customer_id == customer for order in page.orders)
    assert len({order.order_id for order in page.orders}) == len(page.orders)


def _read_bodies(world: World, orders: int, most: int) -> tuple[Path, int]:
    """Requests for different orders out of so many, and their number: at most `most`, as all are read once before."""
    dice = random.Random("growth")
    numbers: Sequence[int] = dice.sample(range(orders), min(orders, most))
    ids = [_id(number, world.orders) for number in numbers]
    return world.bodies(queries.GetOrderDetailsRequest(order_id=it) for it in ids), len(ids)


def _id(number: int, placed: int) -> str:
    """Of order `number` when the first `placed` were placed and the others are copies."""
    copy, original = divmod(number, placed)
    return copy_id(shop.order_id(original), copy) if copy else shop.order_id(original)


def _fill_cache(world: World, bodies: tuple[Path, int]) -> None:
    path, count = bodies
    target = world.target(world.stack.query_server, QUERIES + "GetOrderDetails")
    h2load.send(target, path, count, in_flight=_FILLING)


def _read(world: World, plan: Plan, bodies: Path) -> Sample:
    target = world.target(world.stack.query_server, QUERIES + "GetOrderDetails")
    return h2load.measure(target, bodies, in_flight=plan.in_flight, seconds=plan.seconds, warm_up=plan.warm_up)


def _place(world: World, plan: Plan) -> Sample:
    """Places as many orders as take about the plan's time, all of them new; their views are waited for."""
    return world.place_orders(round(plan.seconds * _EXPECTED_RATE), in_flight=plan.in_flight)
