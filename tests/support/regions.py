"""Two regions on one machine: network namespaces with a cable between them, each with stores and services of its own.

    near    PostgreSQL (write and read), memcached, command server, projector, query server; NATS and the relay
      │     a proxy that delays what passes, in near; what the far region drops of what comes and goes
    far     PostgreSQL (read), memcached, a projector that follows the stream, query servers

Each region has loopback, so all that is said of 127.0.0.1 holds inside. What reaches servers from outside are Unix
sockets, which are no matter of networks; what has to be done inside is done by a thread that is.
"""

import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import grpc
import psycopg
from sqlalchemy import select

from commerce.command.v1.command_service_pb2 import ChangeShippingAddressRequest
from commerce.command.v1.command_service_pb2_grpc import CommandServiceStub
from commerce.projection.v1.projection_service_pb2_grpc import ProjectionServiceStub
from commerce.query.v1.query_service_pb2 import WatchOrderDetailsRequest
from commerce.query.v1.query_service_pb2_grpc import QueryServiceStub
from shop.cli import SHOP
from shop.views import VIEWS
from tandem.cli.child import Child
from tandem.cli.embedded import Memcached, Postgres
from tandem.cli.services import store_settings
from tandem.read_store.tables import written_columns
from tandem.runtime.database import create_database_engine
from tandem.runtime.settings import DatabaseSettings
from tandem.testing.ports import free_port
from tandem.testing.stack import CHANNEL_OPTIONS, PATIENCE, end_node, up_to, wait_until
from tests.support.builders import add_product, address, identity, place_order, register_customer
from tests.support.delaying import DelayingProxy
from tests.support.forking import Forked, ForkedService, enter_network
from tests.support.nats import NatsServer
from tests.support.stack import Databases

P = ParamSpec("P")
T = TypeVar("T")
Row = tuple[Any, ...]

# Alembic migrates one database of a process at a time.
_MIGRATING = threading.Lock()


def missing() -> str:
    """Why regions cannot be made on this machine; empty where they can."""
    if os.geteuid() != 0:
        return "regions are network namespaces, which need root"
    for program, package in (("ip", "iproute2"), ("iptables", "iptables")):
        if shutil.which(program) is None:
            return f"the program {program} is missing (make iptables, or apt-get install {package})"
    name = f"tandem-try-{os.getpid()}"
    try:
        _run("ip", "netns", "add", name)
        try:
            # What is lost by chance is a module of the kernel's.
            _run(*_inside(name), "iptables", "-A", "INPUT", *_by_chance(0.5), "-j", "DROP")
        finally:
            _run("ip", "netns", "del", name)
    except subprocess.CalledProcessError as error:
        return f"network namespaces with iptables cannot be made here: {error.stderr.strip()}"
    return ""


class Region:
    """A network namespace, with a thread in it.

    folder: for what runs there, short enough for the names of Unix sockets.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.namespace = f"tandem-{name}-{os.getpid()}"
        self.folder = folder / name
        # PostgreSQL's user must pass through it.
        self.folder.mkdir(mode=0o711)
        _run("ip", "netns", "add", self.namespace)
        _run("ip", "-n", self.namespace, "link", "set", "lo", "up")
        # It stays: the kernel ends children with the thread that started them.
        self._thread = ThreadPoolExecutor(1, name, initializer=enter_network, initargs=(self.namespace,))
        self.services: list[RegionService] = []
        self._channels: dict[int, grpc.Channel] = {}

    def run(self, function: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
        """Calls a function on the thread that is in the region, and threads that it starts are too."""
        return self.begin(function, *arguments, **options).result()

    def begin(self, function: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> "Future[T]":
        """As `run`, and does not wait for it. There is one thread."""
        return self._thread.submit(function, *arguments, **options)

    def service(self, section: str, settings: Mapping[str, str]) -> "RegionService":
        """A service, not started, that callers from anywhere on this machine reach by a Unix socket."""
        made = RegionService(self, section, settings)
        self.services.append(made)
        return made

    def channel(self, service: "RegionService") -> grpc.Channel:
        """The same one each time; closed with the region."""
        if service.port not in self._channels:
            self._channels[service.port] = grpc.insecure_channel(service.address, CHANNEL_OPTIONS)
        return self._channels[service.port]

    def close(self) -> None:
        """Ends what is in it. AssertionError for a service that did not stop well."""
        for channel in self._channels.values():
            channel.close()
        running = [it for it in self.services if it.exit_code() is None]
        for it in running:
            it.ask_to_stop()
        codes = [(it.name, it.stop(), it.log_tail(60)) for it in running]
        bad = [f"{name} in {self.name} ended with {code}:\n{log}" for name, code, log in codes if code != 0]
        assert not bad, "\n".join(bad)

    def remove(self) -> None:
        self._thread.shutdown()
        _run("ip", "netns", "del", self.namespace)


class RegionService(ForkedService):
    """A service in a region."""

    def __init__(self, region: Region, section: str, settings: Mapping[str, str]) -> None:
        port = free_port()
        super().__init__(
            section,
            module=SHOP.modules[section],
            port=port,
            log=region.folder / f"{section}-{port}.log",
            settings={"SERVER__HOST": f"unix:{region.folder}/{section}-{port}.sock", **settings},
            environment={key: it for key, it in os.environ.items() if not key.startswith("TANDEM_")},
            metrics_port=free_port(),
        )
        self._region = region

    def launch(self) -> None:
        process: Any = Forked(self.name, self.log, self._environment, namespace=self._region.namespace)
        self._process = process

    def metric(self, name: str, **labels: str) -> float:
        return self._region.run(super().metric, name, **labels)


class Line:
    """The cable from one region to another, as packets take it. All that is changed is of the far region."""

    def __init__(self, near: Region, far: Region) -> None:
        # 10.214.0.1 in one, 10.214.0.2 in the other: nobody else is in either.
        self.near_address, self.far_address = "10.214.0.1", "10.214.0.2"
        self._far = far
        _run(
            *("ip", "-n", near.namespace, "link", "add", "line", "type", "veth"),
            *("peer", "name", "line", "netns", far.namespace),
        )
        for region, own in ((near, self.near_address), (far, self.far_address)):
            _run("ip", "-n", region.namespace, "addr", "add", f"{own}/30", "dev", "line")
            _run("ip", "-n", region.namespace, "link", "set", "line", "up")

    def cut(self) -> None:
        """Nothing passes any more, neither way, and nobody is told."""
        self._drop()

    def lose(self, share: float) -> None:
        """Of what passes, each way, so much is lost: 0.1 is every tenth packet, by chance."""
        self._drop(*_by_chance(share))

    def mend(self) -> None:
        """All passes again; also where all does."""
        _run(*_inside(self._far.namespace), "iptables", "-F")

    def _drop(self, *which: str) -> None:
        for chain, side in (("INPUT", "-i"), ("OUTPUT", "-o")):
            _run(*_inside(self._far.namespace), "iptables", "-A", chain, side, "line", *which, "-j", "DROP")


class Watch(threading.Thread):
    """Follows an order at a query server, and comes back with what it was told last where its stream ends.

    shown: versions of the order, in the order in which they came. ends: why streams ended.
    """

    def __init__(self, queries: QueryServiceStub, order_id: str) -> None:
        super().__init__(daemon=True)
        self._queries = queries
        self.order_id = order_id
        self.shown: list[int] = []
        self.ends: list[str] = []
        self._leaving = threading.Event()
        self._call: Any = None
        self.start()

    def run(self) -> None:
        request = WatchOrderDetailsRequest(order_id=self.order_id)
        request.heartbeat_interval.FromSeconds(1)
        while not self._leaving.is_set():
            self._call = self._queries.WatchOrderDetails(request)
            try:
                for message in self._call:
                    request.resume_from = message.as_of
                    if message.WhichOneof("event") == "order_details":
                        self.shown.append(message.order_details.version)
            except grpc.RpcError as error:
                if not self._leaving.is_set():
                    self.ends.append(str(error))
                    self._leaving.wait(0.1)

    def leave(self) -> None:
        self._leaving.set()
        if self._call is not None:
            self._call.cancel()
        self.join()

    def only_went_forward(self) -> bool:
        return self.shown == sorted(set(self.shown))


class Writes:
    """Opens a shop in the near region; while it is going on, changes its orders' addresses and places new orders.

    rate: of commands in a second, at most. orders: whose addresses change. versions: theirs, as they are acknowledged.
    count: of commands that were. token: of the last one's receipt.
    """

    def __init__(self, commands: CommandServiceStub, *, orders: int, rate: float = 100.0) -> None:
        self._commands = commands
        self._pause = 1 / rate
        self._error: BaseException | None = None
        commands.RegisterCustomer(register_customer())
        commands.AddProduct(add_product(stock=1_000_000))
        placed = [commands.PlaceOrder(place_order(number)) for number in range(1, orders + 1)]
        self.versions = {it.order_id: it.receipt.version for it in placed}
        self.token = placed[-1].receipt.consistency_token
        self.count = 0
        self._placed = orders

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """While the block runs. Raises what goes wrong."""
        stopping = threading.Event()

        def write_on() -> None:
            due = time.monotonic()
            try:
                while not stopping.wait(max(0.0, due - time.monotonic())):
                    self.write()
                    due = max(due + self._pause, time.monotonic() - 1.0)
            except BaseException as error:
                self._error = error

        thread = threading.Thread(target=write_on, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stopping.set()
            thread.join()
            if self._error is not None:
                raise self._error

    def write(self) -> None:
        """One command."""
        self.count += 1
        if self.count % 2:
            self._placed += 1
            receipt = self._commands.PlaceOrder(place_order(self._placed), timeout=PATIENCE).receipt
        else:
            order_id = list(self.versions)[self.count // 2 % len(self.versions)]
            request = ChangeShippingAddressRequest(
                request_id=identity("change", self.count),
                order_id=order_id,
                address=address(street=f"Obere Str. {self.count}"),
            )
            receipt = self._commands.ChangeShippingAddress(request, timeout=PATIENCE).receipt
            self.versions[order_id] = receipt.version
        self.token = receipt.consistency_token

    def more(self, count: int) -> None:
        """Waits until so many more were acknowledged."""
        wanted = self.count + count
        wait_until(lambda: self.count > wanted or self._error is not None, "commands are acknowledged")


class Regions:
    """near, far: with the services by name. line: between them. See `two_regions`."""

    def __init__(self, folder: Path, *, round_trip: float, far_query_servers: int, postgres: Mapping[str, str]) -> None:
        self._exits = ExitStack()
        with self._exits as exits:
            self.near, self.far = Region("near", folder), Region("far", folder)
            for it in (self.near, self.far):
                exits.callback(it.remove)
            self.line = Line(self.near, self.far)
            self._postgres = postgres
            far_stores = self.far.begin(self._stores, self.far, ["read"])
            self.write_url, self.near_url, near_nodes = self.near.run(self._stores, self.near, ["write", "read"])
            self.far_url, far_nodes = far_stores.result()
            self.nats = NatsServer(self.near.folder, "nats")
            self._start_in(self.near, self.nats)
            self._proxy: DelayingProxy | None = None
            self._proxy_port = free_port()
            self.set_round_trip(round_trip)
            exits.callback(lambda: self._proxy and self._proxy.stop())

            near = store_settings(self.write_url, self.near_url, near_nodes)
            self.command_server = self.near.service("command", near["command"])
            self.projector = self.near.service("projector", near["projector"])
            self.query_server = self.near.service("query", near["query"])
            self.relay = self.near.service(
                "relay",
                {
                    **near["relay"],
                    "NATS__SERVERS": json.dumps([self.nats.url]),
                    "NATS__REPLICAS": "1",
                    # So that the far views can be compared with the near ones.
                    "RELAY__PERSONAL_DATA": "opened",
                },
            )
            self.far_projector = self.far.service(
                "projector",
                {
                    "READ_DATABASE__URL": self.far_url,
                    "CACHE_NODES": json.dumps(far_nodes),
                    "BROKER__SERVERS": json.dumps([f"nats://{self.line.near_address}:{self._proxy_port}"]),
                },
            )
            self.far_query_servers = [
                self.far.service("query", {"DATABASE__URL": self.far_url}) for _ in range(far_query_servers)
            ]
            for region in (self.near, self.far):
                exits.callback(region.close)
                for service in region.services:
                    service.launch()
            for service in (*self.near.services, *self.far.services):
                service.wait_until_serving()
            self._exits = exits.pop_all()

    def close(self) -> None:
        self.line.mend()
        self._exits.close()

    # Whom a caller calls.

    @property
    def commands(self) -> CommandServiceStub:
        return CommandServiceStub(self.near.channel(self.command_server))

    @property
    def near_queries(self) -> QueryServiceStub:
        return QueryServiceStub(self.near.channel(self.query_server))

    def far_queries(self, number: int = 0) -> QueryServiceStub:
        return QueryServiceStub(self.far.channel(self.far_query_servers[number]))

    @property
    def far_projections(self) -> ProjectionServiceStub:
        return ProjectionServiceStub(self.far.channel(self.far_projector))

    def set_round_trip(self, seconds: float) -> None:
        """How long it is to be from now on. Connections break, as they do when a line is changed."""
        if self._proxy is not None:
            self._proxy.stop()
        log = self.near.folder / "proxy.log"
        self._proxy = DelayingProxy(self.line.near_address, self._proxy_port, self.nats.port, seconds / 2, log)
        self.near.run(self._proxy.start)

    # What is stored.

    def head(self) -> int:
        """Of the feed."""
        return int(self._value(self.near, self.write_url, "SELECT position FROM tandem_write.feed_head"))

    def far_position(self) -> int:
        """Where the far view is that is the furthest behind; 0 while not all have begun."""
        found = "SELECT CASE WHEN count(*) < %s THEN 0 ELSE min(position) END FROM tandem_read.projection"
        return int(self._value(self.far, self.far_url, found, len(VIEWS)))

    def near_position(self) -> int:
        found = "SELECT CASE WHEN count(*) < %s THEN 0 ELSE min(position) END FROM tandem_read.projection"
        return int(self._value(self.near, self.near_url, found, len(VIEWS)))

    def caught_up(self, seconds: float = PATIENCE) -> None:
        """Waits until all views of both regions are where the feed is."""
        head = self.head()
        wait_until(lambda: self.near_position() >= head, "the near views are where the feed is", seconds)
        wait_until(lambda: self.far_position() >= head, "the far views are where the feed is", seconds)

    def views(self) -> tuple[dict[str, list[Row]], dict[str, list[Row]]]:
        """All that projectors wrote of all rows, by view: near and far."""
        return self.near.run(_rows, self.near_url), self.far.run(_rows, self.far_url)

    def _value(self, region: Region, url: str, query: Any, *values: object) -> Any:
        def ask() -> Any:
            with psycopg.connect(url, autocommit=True) as connection:
                row = connection.execute(query, values).fetchone()
            assert row is not None
            return row[0]

        return region.run(ask)

    def _start_in(self, region: Region, child: Child) -> None:
        region.run(child.start)
        self._exits.callback(lambda: child.exit_code() is None and child.stop())

    def _stores(self, region: Region, sides: Collection[Any]) -> Sequence[Any]:
        """URLs of a database for each side, then the addresses of the cache's nodes. In the region."""
        postgres = Postgres(region.folder / "data", free_port(), settings={"fsync": "off", **self._postgres})
        postgres.start()
        self._exits.callback(postgres.stop)
        with _MIGRATING:
            databases = Databases(postgres)
            urls = [databases.create(it) for it in sides]
        nodes = [Memcached(free_port()) for _ in range(up_to(1))]
        for node in nodes:
            node.start()
            self._exits.callback(end_node, node)
        return *urls, [it.address for it in nodes]


@contextmanager
def two_regions(
    folder: Path,
    *,
    round_trip: float = 0.0,
    far_query_servers: int = 1,
    postgres: Mapping[str, str] | None = None,
) -> Iterator[Regions]:
    """Two regions that serve. AssertionError at the end for a service that did not stop well.

    folder: with a short name, through which PostgreSQL's user may pass. round_trip: in seconds, of the line.
    postgres: settings of both servers, over fsync=off.
    """
    regions = Regions(folder, round_trip=round_trip, far_query_servers=far_query_servers, postgres=postgres or {})
    try:
        yield regions
    finally:
        regions.close()


def _rows(url: str) -> dict[str, list[Row]]:
    engine = create_database_engine(DatabaseSettings(url=url), name="test", pool_size=1)
    try:
        with engine.connect() as connection:
            return {
                view: [tuple(row) for row in connection.execute(select(*written_columns(VIEWS[view])).order_by("key"))]
                for view in VIEWS
            }
    finally:
        engine.dispose()


def _inside(namespace: str) -> Sequence[str]:
    return "nsenter", f"--net=/run/netns/{namespace}"


def _by_chance(share: float) -> Sequence[str]:
    return "-m", "statistic", "--mode", "random", "--probability", str(share)


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True)
