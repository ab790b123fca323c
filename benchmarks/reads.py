"""Reads: Tandem, the most that its transport can do, the same in Go, and joins."""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import Message

from benchmarks import shop
from benchmarks.contenders import go_twin, joins_tables
from benchmarks.contenders.child import Contender
from benchmarks.load import h2load
from benchmarks.load.compiled import NotInstalled
from benchmarks.load.h2load import send
from benchmarks.measure import Figure, Result, Sample, Spread, alternate, at_least, at_most, p50, p99, ratios
from benchmarks.plan import Plan
from benchmarks.world import QUERIES, World
from commerce.query.v1 import query_service_pb2 as queries
from commerce.query.v1.query_service_pb2_grpc import QueryServiceStub
from tandem.cli.child import Child
from tests.support.catalogue import catalogue

TANDEM = "Tandem"
LIMIT = "empty handler"
TRANSPORT = "the transport alone"
JOINS = "joins, grpc.aio"
GRPCIO = "Tandem on grpcio"
UNCACHED = "Tandem without memcached"
GO = {
    go_twin.POOL: "Go, pooled connections",
    go_twin.TOGETHER: "Go, calls share connections",
    go_twin.STOCK: "Go, gomemcache as it comes",
}
FORGETFUL = "Tandem, remembering no search"

# Orders in a BatchGetOrderDetails.
BATCH = 100
# Of those under way at once.
BATCHES = 16
# Of each kind of list request: more than a run sends would only take longer to write down.
REQUESTS = 20_000
# Before the first turn, for each second that a turn takes.
SEARCHES_BEFORE = 10_000
# For a turn: at 3,000 a second as many as a warm-up and a turn send.
SEARCHES = 8_000


@dataclass(frozen=True)
class Servers:
    """go: the twins by how they ask memcached; where there are none, no_go says why."""

    tandem: Child
    limit: Child
    transport: Child
    joins: Child
    grpcio: Child
    uncached: Child
    forgetful: Child
    go: Mapping[str, Child]
    no_go: str = ""


def run(world: World, plan: Plan) -> list[Result]:
    """All scenarios of reads, one after the other, on servers that stay the same."""
    with serving(world) as servers:
        check_answers(servers)
        return [
            cached(world, plan, servers),
            one_in_flight(world, plan, servers),
            uncached(world, plan, servers),
            batches(world, plan, servers),
            recent(world, plan, servers),
            search(world, plan, servers),
        ]


@contextmanager
def serving(world: World) -> Iterator[Servers]:
    """Tandem's query server as it is in the world, and the others."""
    world.say("joins: copying the data into its tables")
    joins_tables.fill(world.stack.write_url)
    order = queries.GetOrderDetailsRequest(order_id=shop.order_id(0))
    answer = world.stack.queries.GetOrderDetails(order)
    file = world.folder / "answer"
    file.write_bytes(answer.SerializeToString())
    go, no_go = _go_twins(world, answer.as_of)
    servers = Servers(
        tandem=world.stack.query_server,
        limit=Contender("empty", world.folder, "--answer", str(file)),
        transport=Contender("empty", world.folder, "--answer", str(file), "--at-once"),
        joins=Contender("joins", world.folder, world.stack.write_url),
        grpcio=world.stack.new_query_server(SERVER__TRANSPORT="grpcio"),
        uncached=world.stack.new_query_server(CACHE__ENABLED="false"),
        forgetful=world.stack.new_query_server(SEARCH__REMEMBERED_MIB="0"),
        go=go,
        no_go=no_go,
    )
    others = [servers.limit, servers.transport, servers.joins, servers.grpcio, servers.uncached, servers.forgetful]
    others += go.values()
    world.start(*others)
    try:
        yield servers
    finally:
        for it in others:
            world.stop(it)


def _go_twins(world: World, as_of: str) -> tuple[dict[str, Child], str]:
    """None where they cannot be built, and why."""
    node = world.node.address
    prefix = go_twin.announced_prefix(world.stack.read_url, "order_details", node)
    try:
        return {it: go_twin.GoTwin(world.folder, store=it, memcached=node, prefix=prefix, as_of=as_of) for it in GO}, ""
    except NotInstalled as error:
        return {}, str(error)


def cached(world: World, plan: Plan, servers: Servers) -> Result:
    calls = _Calls(world, plan, "GetOrderDetails", world.order_requests(world.orders), plan.in_flight)
    samples = calls.alternate(
        {
            LIMIT: servers.limit,
            TANDEM: servers.tandem,
            **{GO[it]: twin for it, twin in servers.go.items() if it != go_twin.STOCK},
            JOINS: servers.joins,
        },
        seldom={
            TRANSPORT: servers.transport,
            GRPCIO: servers.grpcio,
            **{GO[it]: twin for it, twin in servers.go.items() if it == go_twin.STOCK},
        },
    )
    bars = [
        at_least("rate, times the empty handler", ratios(samples, TANDEM, LIMIT), 0.8),
        at_least("rate, times joins", ratios(samples, TANDEM, JOINS), 20),
        at_most("p99, times the empty handler", ratios(samples, TANDEM, LIMIT, p99), 1.5),
    ]
    figures = []
    if servers.go:
        twin, other = GO[go_twin.POOL], GO[go_twin.TOGETHER]
        bars.insert(0, at_least(f"rate, times {twin}", ratios(samples, TANDEM, twin), 1.2))
        figures = [Figure(f"rate, times {other}", Spread.of(ratios(samples, TANDEM, other)), "")]
    missing = [f"rate, times Go: {servers.no_go}"] if servers.no_go else []
    name = f"GetOrderDetails, cached, {plan.in_flight} in flight"
    return Result(name, samples, figures, bars, missing)


def one_in_flight(world: World, plan: Plan, servers: Servers) -> Result:
    calls = _Calls(world, plan, "GetOrderDetails", world.order_requests(world.orders), 1)
    twins = {GO[it]: twin for it, twin in servers.go.items() if it == go_twin.POOL}
    samples = calls.alternate({TANDEM: servers.tandem, LIMIT: servers.limit, **twins})
    bar = at_most("p50, times the empty handler", ratios(samples, TANDEM, LIMIT, p50), 1.3)
    return Result("GetOrderDetails, cached, one in flight", samples, bars=[bar])


def uncached(world: World, plan: Plan, servers: Servers) -> Result:
    calls = _Calls(world, plan, "GetOrderDetails", world.order_requests(world.orders), plan.in_flight)
    samples = calls.alternate({UNCACHED: servers.uncached, JOINS: servers.joins})
    bar = at_least("rate, times joins", ratios(samples, UNCACHED, JOINS), 10)
    return Result(f"GetOrderDetails without memcached, {plan.in_flight} in flight", samples, bars=[bar])


def batches(world: World, plan: Plan, servers: Servers) -> Result:
    """Rates in calls, and the bar in orders: against single reads that took their turns with the batches."""
    ids = world.random_orders(world.orders)
    requests = (
        queries.BatchGetOrderDetailsRequest(order_ids=ids[first : first + BATCH])
        for first in range(0, len(ids) - BATCH + 1, BATCH)
    )
    single = _Calls(world, plan, "GetOrderDetails", world.order_requests(world.orders), plan.in_flight)
    batch = _Calls(world, plan, "BatchGetOrderDetails", world.bodies(requests), BATCHES)
    singles = "Tandem, single gets"
    samples = alternate(
        {
            TANDEM: lambda: batch.measure(TANDEM, servers.tandem),
            singles: lambda: single.measure(singles, servers.tandem),
            JOINS: lambda: batch.measure(JOINS, servers.joins),
        },
        plan.side_rounds,
    )
    orders = [BATCH * ratio for ratio in ratios(samples, TANDEM, singles)]
    bar = at_least("orders a second, times those of single gets", orders, 8)
    return Result(
        f"BatchGetOrderDetails of {BATCH}, {BATCHES} in flight (single gets: {plan.in_flight})", samples, bars=[bar]
    )


def recent(world: World, plan: Plan, servers: Servers) -> Result:
    requests = (
        queries.ListRecentOrdersRequest(customer_id=shop.customer_id(number * 7 % shop.CUSTOMERS))
        for number in range(REQUESTS)
    )
    calls = _Calls(world, plan, "ListRecentOrders", world.bodies(requests), plan.in_flight)
    samples = calls.alternate({TANDEM: servers.tandem, JOINS: servers.joins}, rounds=plan.side_rounds)
    bar = at_least("rate, times joins", ratios(samples, TANDEM, JOINS), 10)
    return Result(f"ListRecentOrders, first page, {plan.in_flight} in flight", samples, bars=[bar])


def search(world: World, plan: Plan, servers: Servers) -> Result:
    """Each turn goes on with other draws, the same for all: what comes again in it is what is asked for often.

    Tandem has been asked for some seconds before the first. Beside it, one that remembers nothing searches as if no
    query had come before: each search is the first of its query, or the first after a product's text changed.
    """
    before = list(searches(round(SEARCHES_BEFORE * plan.seconds), turn=-1))
    target = world.target(servers.tandem, QUERIES + "SearchProducts")
    send(target, world.bodies(before), len(before), in_flight=plan.in_flight)
    known = {it.query for it in before}
    again = [sum(it.query in known for it in searches(SEARCHES, turn)) / SEARCHES for turn in range(plan.side_rounds)]
    turns = [
        _Calls(world, plan, "SearchProducts", world.bodies(searches(SEARCHES, turn)), plan.in_flight)
        for turn in range(plan.side_rounds)
    ]
    rounds = [
        calls.alternate({TANDEM: servers.tandem, FORGETFUL: servers.forgetful, JOINS: servers.joins}, rounds=1)
        for calls in turns
    ]
    samples = {name: [sample for found in rounds for sample in found[name]] for name in rounds[0]}
    bar = at_least("rate, times joins", ratios(samples, TANDEM, JOINS), 3)
    return Result(
        f"SearchProducts, first page, {plan.in_flight} in flight",
        samples,
        figures=[Figure("asked before the first turn", Spread.of([100 * it for it in again]), "%")],
        bars=[bar],
    )


def searches(count: int, turn: int) -> Iterable[queries.SearchProductsRequest]:
    """Drawn from some 11,000 queries as people ask: the n-th of them comes an n-th as often as the first (Zipf)."""
    dice = random.Random("queries")
    asked = list(two_words())
    dice.shuffle(asked)
    weights = [1 / number for number in range(1, len(asked) + 1)]
    for query in random.Random(f"turn {turn}").choices(asked, weights, k=count):
        yield queries.SearchProductsRequest(query=query)


def two_words() -> Iterable[str]:
    """Two words of a product's name, each pair once: brand and material, brand and thing, both words of a thing.

    Of each word there are hundreds of products, and of both a few, or some dozens. Without those that have a stop word,
    which joins does not look for.
    """
    names = [product.name.split() for product in catalogue()]
    pairs = dict.fromkeys((it[one], it[other]) for it in names for one, other in ((0, 1), (0, -1), (-2, -1)))
    return (" ".join(pair) for pair in pairs if not {"and", "Can"} & {*pair})


class _Calls:
    """One RPC with its bodies, and how many of it are under way."""

    def __init__(self, world: World, plan: Plan, method: str, bodies: Path, in_flight: int) -> None:
        self._world = world
        self._plan = plan
        self._method = method
        self._bodies = bodies
        self._in_flight = in_flight

    def measure(self, name: str, server: Child) -> Sample:
        sample = h2load.measure(
            self._world.target(server, QUERIES + self._method),
            self._bodies,
            in_flight=self._in_flight,
            seconds=self._plan.seconds,
            warm_up=self._plan.warm_up,
        )
        self._plan.say(
            f"{self._method}, {self._in_flight} in flight, {name}: {sample.rate:,.0f}/s, p50 {1e3 * sample.p50:.2f} ms"
        )
        return sample

    def alternate(
        self,
        servers: Mapping[str, Child],
        *,
        seldom: Mapping[str, Child] | None = None,
        rounds: int | None = None,
    ) -> dict[str, list[Sample]]:
        """rounds: as many as the plan says, unless given. seldom: those that take fewer turns."""
        often, less = (
            {name: self._measurer(name, it) for name, it in some.items()} for some in (servers, seldom or {})
        )
        return alternate(often, rounds or self._plan.rounds, seldom=less, seldom_rounds=self._plan.side_rounds)

    def _measurer(self, name: str, server: Child) -> Callable[[], Sample]:
        return lambda: self.measure(name, server)


def check_answers(servers: Servers) -> None:
    """AssertionError when the contenders do not tell the same of some orders, lists and products."""
    with ExitStack() as exits:
        stubs = {
            server.name: QueryServiceStub(exits.enter_context(grpc.insecure_channel(server.address)))
            for server in (servers.tandem, servers.joins)
        }
        tandem, joins = stubs.values()
        for number in range(10):
            one = queries.GetOrderDetailsRequest(order_id=shop.order_id(number))
            _agree(tandem.GetOrderDetails(one).order_details, joins.GetOrderDetails(one).order_details)
            some = queries.BatchGetOrderDetailsRequest(order_ids=[shop.order_id(number + it) for it in range(9)])
            for ours, theirs in zip(
                tandem.BatchGetOrderDetails(some).order_details,
                joins.BatchGetOrderDetails(some).order_details,
                strict=True,
            ):
                _agree(ours, theirs)
            page = queries.ListRecentOrdersRequest(customer_id=shop.customer_id(number))
            # Orders of one batch were placed at the same time: joins has them by id, Tandem as they came.
            lists = [
                sorted(stub.ListRecentOrders(page).orders, key=lambda it: (-it.placed_at.ToNanoseconds(), it.order_id))
                for stub in stubs.values()
            ]
            for ours_, theirs_ in zip(*lists, strict=True):
                _agree(ours_, theirs_)
        for request in searches(10, turn=0):
            ours_found, theirs_found = tandem.SearchProducts(request), joins.SearchProducts(request)
            _agree(ours_found.facets, theirs_found.facets)
            if ours_found.facets.total_count <= len(ours_found.hits):
                # All are on the first page, in whichever order.
                found = [sorted(it.product.product_id for it in each.hits) for each in (ours_found, theirs_found)]
                assert found[0] == found[1], request

    for twin in servers.go.values():
        _check_bytes(servers.tandem, twin)


def _check_bytes(tandem: Child, twin: Child) -> None:
    """AssertionError when the two do not answer with the same bytes."""
    method = QUERIES + "GetOrderDetails"
    with grpc.insecure_channel(tandem.address) as one, grpc.insecure_channel(twin.address) as other:
        calls: list[Any] = [it.unary_unary(method) for it in (one, other)]
        for number in range(50):
            request = queries.GetOrderDetailsRequest(order_id=shop.order_id(number)).SerializeToString()
            ours, theirs = (call(request, timeout=10) for call in calls)
            assert ours == theirs, f"Tandem answers\n{ours!r}\nand {twin.name}\n{theirs!r}"


def _agree(ours: Message, theirs: Message) -> None:
    assert ours == theirs, f"Tandem answers\n{ours}\nand joins\n{theirs}"
