"""Query servers by number, behind one Envoy: over one read database, and over a streaming replica of it. Then what many
more would take, computed from what was measured.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil
import psycopg
from pymemcache.client.base import Client

from benchmarks import shop
from benchmarks.load import h2load
from benchmarks.load.compiled import NotInstalled, bodies_library
from benchmarks.load.compiled import h2load as h2load_program
from benchmarks.load.h2load import Target
from benchmarks.measure import Sample
from benchmarks.processor import cpu_seconds
from benchmarks.scale.needs import Costs, needs
from benchmarks.scale.tables import Table
from benchmarks.world import COMMANDS, QUERIES, World, beside
from commerce.command.v1.command_service_pb2_grpc import CommandServiceStub
from commerce.query.v1 import query_service_pb2 as queries
from commerce.query.v1.query_service_pb2_grpc import QueryServiceStub
from shop.cli import ENVOY
from tandem.cli.embedded import Memcached, Postgres, memcached_path
from tandem.cli.mesh import MISSING, Envoy, MeshConfig, envoy_path
from tandem.cli.services import Service
from tandem.read_store.tables import CHANNEL
from tandem.testing.ports import free_port
from tandem.testing.stack import wait_until
from tests.support.replicas import Standby
from tests.support.stack import Databases

SERVERS = (1, 2, 4, 8)
# Orders whose entries the cache has lost, and orders whose entries it has.
COLD, HOT = 3_000, 3_000
IN_FLIGHT = 64
SECONDS, WARM_UP = 1.5, 0.5
# Orders a second while announcements are counted, and for how long.
ORDERS, ORDERING_SECONDS = 200.0, 4.0
# Reads with a token of a write just before.
TOKENS = 40
LISTENERS, NOTIFICATIONS = 100, 300

_POSTGRES = {"max_connections": "500", "shared_buffers": "512MB", "max_wal_size": "4GB", "checkpoint_timeout": "30min"}
_STANDBY = {"max_connections": "500", "shared_buffers": "256MB"}
CACHED, MISSED, LISTED = "GetOrderDetails, cached", "GetOrderDetails, not cached", "ListRecentOrders"


def missing() -> str | None:
    """Why it cannot run here; None where it can."""
    try:
        h2load_program()
        bodies_library()
    except NotInstalled as error:
        return str(error)
    if memcached_path() is None:
        return "memcached is not installed: apt-get install memcached"
    return MISSING if envoy_path() is None else None


def run(folder: Path, say: Callable[[str], None]) -> Iterator[Table]:
    # PostgreSQL's user must pass through it, to the copy for the replica.
    folder.chmod(0o711)
    postgres = Postgres(folder / "data", free_port(), settings=_POSTGRES)
    nodes = [Memcached(free_port(), megabytes=256) for _ in range(2)]
    with ExitStack() as exits:
        for child in (postgres, *nodes):
            exits.callback(child.stop)
            child.start()
        world = World(folder, say, postgres, nodes[0], Databases(postgres), nodes=nodes[1:])
        world = exits.enter_context(beside(world, COLD))
        world.stack.query_server.stop()
        for node in nodes:
            with _asking(node) as client:
                client.flush_all(noreply=False)
        placed = world.place_orders(HOT)
        yield from _Bench(world, say, placed, nodes).tables(exits)


class _Bench:
    """The scenario in a world with orders, of which the later half is cached."""

    def __init__(self, world: World, say: Callable[[str], None], placed: Sample, nodes: Sequence[Memcached]) -> None:
        self._world = world
        self._nodes = nodes
        self._say = say
        self._placed = placed
        self._replicas: list[psutil.Process] = []
        hot = [shop.order_id(number) for number in range(COLD, COLD + HOT)]
        cold = [shop.order_id(number) for number in range(COLD)]
        buyers = [shop.customer_id(number) for number in range(shop.CUSTOMERS)]
        self._loads = {
            CACHED: ("GetOrderDetails", world.bodies(queries.GetOrderDetailsRequest(order_id=it) for it in hot)),
            MISSED: ("GetOrderDetails", world.bodies(queries.GetOrderDetailsRequest(order_id=it) for it in cold)),
            LISTED: (
                "ListRecentOrders",
                world.bodies(queries.ListRecentOrdersRequest(customer_id=it) for it in buyers),
            ),
        }

    def tables(self, exits: ExitStack) -> Iterator[Table]:
        stack, postgres = self._world.stack, self._world.postgres
        # No reader brings an entry: what is not cached stays so.
        servers = [stack.new_query_server(CACHE__MAX_FILLS="0") for _ in range(max(SERVERS))]
        rows, connected, samples = self._by_number(servers, {"database": postgres})
        yield _calls("one read database", rows)
        yield _connections(connected, ["database"])
        announced = self._announcements(servers)
        latency = {"the primary": self._token_latency(servers[0])}
        for server in servers:
            self._world.stop(server)

        self._say("making a replica")
        standby = Standby(postgres, self._world.folder / "replica", _STANDBY)
        exits.callback(standby.stop)
        standby.follow()
        self._replicas.append(psutil.Process(standby.pid))
        replica_url = stack.read_url.replace(postgres.address, standby.address)
        at_replica = {"DATABASE__URL": replica_url, "PRIMARY_DATABASE__URL": stack.read_url, "CACHE__MAX_FILLS": "0"}
        servers = [stack.new_query_server(**at_replica) for _ in range(max(SERVERS))]
        rows, connected, _ = self._by_number(servers, {"primary": postgres, "replica": standby})
        yield _calls("a streaming replica of the read database", rows)
        yield _connections(connected, ["primary", "replica"])
        # Of connections that listen there is one more.
        pooled = servers[0].metric("tandem_pool_size") + 1
        latency["a replica"] = self._token_latency(servers[0])
        _configure(postgres, "wal_writer_flush_after", "0")
        latency["a replica, with wal_writer_flush_after = 0 at its primary"] = self._token_latency(servers[0])
        yield Table(
            f"ListRecentOrders with the token of an order that was placed just before, {TOKENS} times, one at a time: "
            "ms from the receipt to the answer",
            ("rows are read at", "median", "90 %", "longest"),
            [(where, *(f"{1000 * it:.1f}" for it in spread)) for where, spread in latency.items()],
        )
        costs = self._costs(samples, connected, announced, pooled)
        yield Table(
            f"Announcements, at {announced.orders:,.0f} orders/s, to {max(SERVERS)} query servers",
            (
                "announcements/s",
                "bytes of each",
                "µs of each query server for each",
                "µs of PostgreSQL for each listener",
            ),
            [
                (
                    f"{announced.rate:,.0f}",
                    f"{announced.size:,.0f}",
                    f"{1e6 * announced.heard:,.0f}",
                    f"{1e6 * announced.sent:,.0f}",
                )
            ],
            [
                f"The last is of {LISTENERS} sessions that listen and {NOTIFICATIONS} notifications of 500 bytes, "
                "without anything else."
            ],
        )
        yield needs(costs, query_servers=100, command_servers=3)

    def _by_number(
        self, servers: Sequence[Service], databases: dict[str, Postgres]
    ) -> tuple[list[tuple[str, int, Sample]], dict[int, dict[str, int]], dict[str, Sample]]:
        """Starts more and more of the servers, and leaves them running."""
        rows: list[tuple[str, int, Sample]] = []
        connected: dict[int, dict[str, int]] = {}
        running: list[Service] = []
        for count in SERVERS:
            for server in servers[len(running) : count]:
                self._world.start(server)
                running.append(server)
            envoy = self._envoy(running)
            try:
                for name in self._loads:
                    sample = self._measure(name, running, envoy)
                    self._say(f"{name}, {count} servers: {sample.rate:,.0f}/s")
                    rows.append((name, count, sample))
            finally:
                envoy.stop()
            connected[count] = {where: _sessions(it) for where, it in databases.items()}
            connected[count]["memcached"] = sum(map(_node_connections, self._nodes))
        # What a server costs that is as busy as it can be: on few processors many of them are not.
        alone = {name: sample for name, count, sample in rows if count == SERVERS[0]}
        return sorted(rows, key=lambda it: list(self._loads).index(it[0])), connected, alone

    def _envoy(self, running: Sequence[Service]) -> Envoy:
        port = free_port()
        behind = {"command": [self._world.stack.command_server.address], "query": [it.address for it in running]}
        config = MeshConfig(ENVOY, port=port, servers=behind).without_identity()
        folder = self._world.folder / f"envoy-{len(running)}-{port}"
        envoy = Envoy(config, port, folder, folder.with_suffix(".log"))
        envoy.start()
        return envoy

    def _measure(self, name: str, running: Sequence[Service], envoy: Envoy) -> Sample:
        method, bodies = self._loads[name]
        target = Target(
            envoy.address,
            QUERIES + method,
            [psutil.Process(it.pid) for it in running],
            [*self._world.stores, *self._replicas],
            apart={"Envoy": [psutil.Process(envoy.pid)]},
        )
        return h2load.measure(target, bodies, in_flight=IN_FLIGHT, seconds=SECONDS, warm_up=WARM_UP)

    def _announcements(self, servers: Sequence[Service]) -> "_Announced":
        """While orders are placed and nobody reads."""
        world, stack = self._world, self._world.stack
        most = int(ORDERS * (ORDERING_SECONDS + 1)) + 200
        bodies = world.bodies(map(shop.order, range(world.orders, world.orders + most)))
        target = world.target(stack.command_server, COMMANDS + "PlaceOrder")
        processes = [psutil.Process(it.pid) for it in servers]
        with psycopg.connect(stack.read_url, autocommit=True) as heard:
            heard.execute(f"LISTEN {CHANNEL}")
            idle = _spent_in(processes, 2.0)
            list(heard.notifies(timeout=0.1))
            before, began = cpu_seconds(processes), time.monotonic()
            placed = h2load.measure(
                target, bodies, in_flight=IN_FLIGHT, seconds=ORDERING_SECONDS, warm_up=0.0, once=True, rate=ORDERS
            )
            seconds, spent = time.monotonic() - began, cpu_seconds(processes) - before
            payloads = [it.payload for it in heard.notifies(timeout=0.2)]
        world.orders += most
        each = max(0.0, spent - idle * seconds) / len(payloads) / len(servers)
        size = statistics.mean(len(it.encode()) for it in payloads)
        sent = _notifying(stack.read_url, world.postgres)
        return _Announced(placed.rate, len(payloads) / seconds, size, each, sent, placed)

    def _token_latency(self, server: Service) -> tuple[float, float, float]:
        """Median, nine of ten, and the longest."""
        stack = self._world.stack
        taken = []
        with (
            grpc.insecure_channel(stack.command_server.address) as to_commands,
            grpc.insecure_channel(server.address) as to_queries,
        ):
            commands, reads = CommandServiceStub(to_commands), QueryServiceStub(to_queries)
            for number in range(self._world.orders, self._world.orders + TOKENS):
                order = shop.order(number)
                receipt = commands.PlaceOrder(order, timeout=10).receipt
                began = time.perf_counter()
                wanted = queries.ListRecentOrdersRequest(customer_id=order.customer_id)
                wanted.consistency.at_least_as_fresh = receipt.consistency_token
                answer = reads.ListRecentOrders(wanted, timeout=10)
                taken.append(time.perf_counter() - began)
                if answer.orders[0].order_id != order.order_id:
                    raise RuntimeError("a read with a token lacks the order that it stands for")
        self._world.orders += TOKENS
        taken.sort()
        return taken[len(taken) // 2], taken[len(taken) * 9 // 10], taken[-1]

    def _costs(
        self, samples: dict[str, Sample], connected: dict[int, dict[str, int]], announced: "_Announced", pooled: float
    ) -> Costs:
        few, many = SERVERS[0], SERVERS[-1]
        stack = self._world.stack

        def each(where: str) -> float:
            return (connected[many][where] - connected[few][where]) / (many - few)

        with psycopg.connect(stack.write_url, autocommit=True) as connection:
            [(own,)] = connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'tandem-command%'"
            ).fetchall()
        return Costs(
            cached=samples[CACHED].cpu,
            listed=samples[LISTED].cpu,
            order=self._placed.cpu,
            at_primary=each("primary"),
            at_replica=each("replica"),
            pooled=pooled,
            at_nodes=each("memcached") / len(stack.nodes),
            nodes=len(stack.nodes),
            of_command_server=own,
            announcements=announced.rate,
            announcement_bytes=announced.size,
            announcement_heard=announced.heard,
            announcement_sent=announced.sent,
        )


@dataclass(frozen=True)
class _Announced:
    """orders, rate: a second. size: in bytes. heard, sent: processor seconds of a query server, and of PostgreSQL for a
    listener, for each. placed: what the orders cost.
    """

    orders: float
    rate: float
    size: float
    heard: float
    sent: float
    placed: Sample


def _spent_in(processes: Sequence[psutil.Process], seconds: float) -> float:
    """Processor seconds a second."""
    before, began = cpu_seconds(processes), time.monotonic()
    time.sleep(seconds)
    return (cpu_seconds(processes) - before) / (time.monotonic() - began)


def _notifying(url: str, postgres: Postgres) -> float:
    """Processor seconds of PostgreSQL for one session that listens, for one notification of 500 bytes."""
    server = [psutil.Process(postgres.pid)]
    spent = []
    with ExitStack() as exits:
        speaker = exits.enter_context(psycopg.connect(url, autocommit=True))
        for listeners in (0, LISTENERS):
            for _ in range(listeners):
                session = exits.enter_context(psycopg.connect(url, autocommit=True))
                session.execute("LISTEN scale_test")
            before = cpu_seconds(server)
            for _ in range(NOTIFICATIONS):
                speaker.execute("SELECT pg_notify('scale_test', repeat('x', 500))")
                # One after the other, as batches are: those that come together wake a session once.
                time.sleep(0.005)
            spent.append(cpu_seconds(server) - before)
    return max(0.0, spent[1] - spent[0]) / NOTIFICATIONS / LISTENERS


def _configure(postgres: Postgres, name: str, value: str) -> None:
    with psycopg.connect(postgres.url("postgres"), autocommit=True) as connection:
        connection.execute(f"ALTER SYSTEM SET {name} = '{value}'")
        connection.execute("SELECT pg_reload_conf()")
        is_set = "SELECT setting = %s FROM pg_settings WHERE name = %s"
        wait_until(lambda: connection.execute(is_set, (value, name)).fetchone() == (True,), f"{name} is {value}")


def _sessions(postgres: Postgres) -> int:
    """Of query servers, at a server of databases."""
    with psycopg.connect(postgres.url("postgres"), autocommit=True) as connection:
        [(count,)] = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'tandem-query%'"
        ).fetchall()
    return int(count)


def _node_connections(node: Memcached) -> int:
    """Without the one that asks. Of all that are there, the projector's too."""
    with _asking(node) as client:
        return int(client.stats()[b"curr_connections"]) - 1


@contextmanager
def _asking(node: Memcached) -> Iterator[Client]:
    client = Client(node.address, timeout=2)
    try:
        yield client
    finally:
        client.close()


def _calls(over: str, rows: Sequence[tuple[str, int, Sample]]) -> Table:
    return Table(
        f"Query servers behind one Envoy over {over}: calls a second, calls for each processor second of the servers,"
        f" and µs of a processor for each call, {IN_FLIGHT} calls in flight",
        (
            "calls",
            "servers",
            "calls/s",
            "calls a processor second",
            "µs servers",
            "µs Envoy",
            "µs stores",
            "µs generator",
        ),
        [
            (
                name,
                str(count),
                f"{sample.rate:,.0f}",
                f"{1 / sample.cpu['server']:,.0f}",
                *(f"{1e6 * sample.cpu[who]:,.0f}" for who in ("server", "Envoy", "stores", "load")),
            )
            for name, count, sample in rows
        ],
    )


def _connections(connected: dict[int, dict[str, int]], databases: Sequence[str]) -> Table:
    columns = [*databases, "memcached"]
    titles = [*(f"PostgreSQL, {it}" for it in databases), "memcached, two nodes together"]
    return Table(
        "Connections while so many query servers run",
        ("servers", *titles),
        [(str(count), *(str(found[it]) for it in columns)) for count, found in connected.items()],
        [
            "PostgreSQL's are those of query servers, as these calls need them; memcached's those of the projector and "
            "of the nodes themselves too."
        ],
    )
