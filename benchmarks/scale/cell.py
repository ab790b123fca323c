"""The limit of one cell: what its parts take on this machine, for an order, an event, a follower and a watcher.

Written to costs.json beside this module too, with the machine: `cells` computes with it.
"""

import asyncio
import json
import os
import platform
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import psycopg

from benchmarks import feed, watches
from benchmarks.load import h2load
from benchmarks.measure import Sample
from benchmarks.plan import Plan
from benchmarks.reads import SEARCHES, searches
from benchmarks.rebuild import feed_head, rebuild
from benchmarks.scale.tables import Table
from benchmarks.world import QUERIES, World, open_world
from benchmarks.writes import Tandem
from tandem.cli.embedded import memcached_path
from tests.support.stack import Stack

T = TypeVar("T")

COSTS = Path(__file__).with_name("costs.json")
ORDERS = 20_000
STREAMS = 500
"""Followers, and watchers, that are open at once."""
CONNECTIONS = 4
CALLERS = (64, 256)
"""Orders in flight."""


@dataclass(frozen=True)
class Load:
    """Of calls: how many a second, in seconds the median and the 99th percentile, and processor seconds a call."""

    rate: float
    p50: float
    p99: float
    server: float
    stores: float

    @classmethod
    def of(cls, sample: Sample) -> "Load":
        return cls(sample.rate, sample.p50, sample.p99, sample.cpu["server"], sample.cpu["stores"])


@dataclass(frozen=True)
class Costs:
    """What one cell takes. orders: by how many are in flight. batches: how many of those are in one transaction.

    events: how many a second all views take in together, and the projector's processor seconds for one. write_bytes,
    read_bytes: of an order in either database, with its part of the feed, of receipts and of indexes. follower_bytes,
    watcher_bytes: of memory. follower_cpu, watcher_cpu: processor seconds for a message.
    """

    machine: str
    orders: dict[int, Load]
    batches: dict[int, float]
    read: Load
    search: Load
    events: float
    event_cpu: float
    write_bytes: float
    read_bytes: float
    follower_bytes: float
    follower_cpu: float
    watcher_bytes: float
    watcher_cpu: float


def missing() -> str | None:
    return None if memcached_path() else "memcached is not installed"


def run(folder: Path, say: Callable[[str], None]) -> Iterator[Table]:
    costs = measure(folder, say)
    COSTS.write_text(json.dumps(asdict(costs), indent=2) + "\n", encoding="utf-8")
    say(f"written: {COSTS.name}")
    yield table(costs)


def recorded() -> Costs:
    """Those of the last run. Raises FileNotFoundError where there was none."""
    found = json.loads(COSTS.read_text(encoding="utf-8"))
    orders = {int(calls): Load(**it) for calls, it in found.pop("orders").items()}
    batches = {int(calls): it for calls, it in found.pop("batches").items()}
    read, search = (Load(**found.pop(name)) for name in ("read", "search"))
    return Costs(orders=orders, batches=batches, read=read, search=search, **found)


def measure(folder: Path, say: Callable[[str], None]) -> Costs:
    plan = Plan(orders=ORDERS, rounds=1, seconds=4.0, warm_up=1.0, grown=0, say=say)
    orders: dict[int, Load] = {}
    batches: dict[int, float] = {}
    with open_world(folder, ORDERS, say) as world:
        sizes = [database_bytes(url) for url in (world.stack.write_url, world.stack.read_url)]
        world.tidy()
        placed = world.orders
        for calls in CALLERS:
            tandem = Tandem(world, replace(plan, in_flight=calls))
            orders[calls] = Load.of(tandem.place_orders())
            batches[calls] = tandem.batch_sizes[-1]
            say(f"{calls} in flight: {orders[calls].rate:,.0f} orders/s")
        read = call(world, plan, "GetOrderDetails", world.order_requests(placed))
        search = call(world, plan, "SearchProducts", world.bodies(searches(SEARCHES, turn=0)))
        say(f"{read.rate:,.0f} reads/s, {search.rate:,.0f} searches/s")
        views = rebuild(world.stack, feed_head(world.stack))
        say(f"{views.rate:,.0f} events/s")
        watcher = in_a_stack(world, "watchers", lambda stack: watches.measure(stack, STREAMS, CONNECTIONS))
        follower = in_a_stack(world, "followers", lambda stack: feed.watch(stack, STREAMS, CONNECTIONS))
    return Costs(
        machine=f"{os.cpu_count()} processors ({platform.machine()}), Python {platform.python_version()}",
        orders=orders,
        batches=batches,
        read=read,
        search=search,
        events=views.rate,
        event_cpu=views.cpu["server"],
        write_bytes=sizes[0] / placed,
        read_bytes=sizes[1] / placed,
        follower_bytes=follower.bytes_each,
        follower_cpu=follower.message_cpu_seconds,
        watcher_bytes=watcher.bytes_per_watcher,
        watcher_cpu=watcher.message_cpu_seconds,
    )


def call(world: World, plan: Plan, method: str, bodies: Path) -> Load:
    """A query, with as many in flight as the plan says."""
    sample = h2load.measure(
        world.target(world.stack.query_server, QUERIES + method),
        bodies,
        in_flight=plan.in_flight,
        seconds=plan.seconds,
        warm_up=plan.warm_up,
    )
    return Load.of(sample)


def in_a_stack(world: World, name: str, measuring: Callable[[Stack], Coroutine[Any, Any, T]]) -> T:
    """What another, empty stack on the same PostgreSQL server takes for streams."""
    folder = world.folder / name
    folder.mkdir()
    settings = {"PROJECTOR": {"FEED_SERVICE__MAX_SUBSCRIBERS": str(STREAMS)}}
    stack = Stack(world.databases, folder, settings=settings)
    try:
        return asyncio.run(measuring(stack.start()))
    finally:
        stack.stop()


def database_bytes(url: str) -> int:
    with psycopg.connect(url) as connection:
        found = connection.execute("SELECT pg_database_size(current_database())").fetchone()
    assert found is not None
    return int(found[0])


def table(costs: Costs) -> Table:
    few, many = (costs.orders[calls] for calls in CALLERS)
    rows = [
        (f"orders of three lines, {CALLERS[0]} in flight, all views following", f"{few.rate:,.0f}/s", micro(few)),
        (f"the same, {CALLERS[1]} in flight", f"{many.rate:,.0f}/s", micro(many)),
        ("events into all views", f"{costs.events:,.0f}/s", f"{1e6 * costs.event_cpu:.0f} µs of the projector"),
        ("cached reads", f"{costs.read.rate:,.0f}/s", micro(costs.read)),
        ("searches", f"{costs.search.rate:,.0f}/s", micro(costs.search)),
        ("a follower of the feed", "", stream(costs.follower_bytes, costs.follower_cpu)),
        ("a watcher", "", stream(costs.watcher_bytes, costs.watcher_cpu)),
        ("an order in the write database", "", f"{costs.write_bytes / 1024:.1f} KiB"),
        ("an order in the read database", "", f"{costs.read_bytes / 1024:.1f} KiB"),
    ]
    return Table(f"One cell on {costs.machine}", ("what", "rate", "each takes"), rows)


def micro(load: Load) -> str:
    return f"{1e6 * load.server:.0f} + {1e6 * load.stores:.0f} µs of servers and stores"


def stream(kept: float, message: float) -> str:
    return f"{kept / 1024:.0f} KiB, {1e6 * message:.0f} µs a message"
