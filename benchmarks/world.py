"""What all scenarios share: one PostgreSQL, one memcached, Tandem, and a shop with orders."""

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import psycopg
from google.protobuf.message import Message

from benchmarks import shop
from benchmarks.load.h2load import Target, send, write_bodies
from benchmarks.measure import Sample
from commerce.query.v1.query_service_pb2 import GetOrderDetailsRequest
from tandem.cli.child import Child
from tandem.cli.embedded import Memcached, Postgres
from tandem.cli.services import Service
from tandem.testing.ports import free_port
from tandem.testing.stack import wait_until
from tests.support.stack import Databases, Stack

COMMANDS = "/commerce.command.v1.CommandService/"
QUERIES = "/commerce.query.v1.QueryService/"

# As production has them but for what its size of memory would change: every commit is on the disk when it is
# acknowledged. Checkpoints come as seldom as their pages' size suggests, so that none falls into one contender's turn.
POSTGRES = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "shared_buffers": "1GB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "30min",
}
# The entries of as many orders as are read, and the products'.
_CACHE_MEGABYTES = 2048
# Waiting for a view that is far behind.
_PATIENCE = 300.0


class World:
    """Use `open_world`. orders: how many were placed here; they have the numbers below that. factor: how many times as
    many there are, with copies.
    """

    def __init__(
        self,
        folder: Path,
        say: Callable[[str], None],
        postgres: Postgres,
        node: Memcached,
        databases: Databases,
        *,
        lite: bool = False,
        nodes: Sequence[Memcached] = (),
        service: type[Service] = Service,
    ) -> None:
        """postgres, node: running, and stopped by who started them. databases: those of the stack come from there.

        lite: CQRS lite, both sides in one database and no cache. nodes: more of them, as `node`. service: what runs the
        services.
        """
        self.folder = folder
        self.say = say
        self.postgres = postgres
        self.node = node
        self.databases = databases
        # Processes of their own: a fork shares its parent's memory and has nothing to import.
        self.stack = Stack(databases, folder, service=service, nodes=[] if lite else [node, *nodes], lite=lite)
        self.orders = 0
        self.factor = 1
        self._numbers = itertools.count()
        self._others: list[Child] = []

    @property
    def stores(self) -> list[psutil.Process]:
        return [psutil.Process(it.pid) for it in (self.postgres, self.node, *self.stack.nodes[1:])]

    def target(self, server: Child, method: str, *headers: str) -> Target:
        """method: with its service, such as QUERIES + "GetOrderDetails". headers: as in "name: value"."""
        return Target(server.address, method, [psutil.Process(server.pid)], self.stores, headers)

    def bodies(self, messages: Iterable[Message | bytes]) -> Path:
        """A file of them, for the load generator. Bytes are a message that is serialised already."""
        path = self.folder / f"bodies-{next(self._numbers)}"
        return write_bodies(path, (it if isinstance(it, bytes) else it.SerializeToString() for it in messages))

    def start(self, *children: Child) -> None:
        """Starts other servers, all at once, which are stopped with the world at the latest."""
        for child in children:
            self._others.append(child)
            child.launch()
        for child in children:
            child.wait_until_serving()

    def stop(self, child: Child) -> None:
        """Stops one that `start` started."""
        self._others.remove(child)
        child.stop()

    def close(self) -> None:
        """Stops all but the stores."""
        for child in self._others:
            child.stop()
        self.stack.stop()

    def open_shop(self) -> None:
        commands = self.stack.command_server
        for method, requests in (("RegisterCustomer", shop.registrations()), ("AddProduct", shop.additions())):
            messages = list(requests)
            send(self.target(commands, COMMANDS + method), self.bodies(messages), len(messages), in_flight=128)
        self.wait_for_followers()

    def place_orders(self, count: int, *, in_flight: int = 128) -> Sample:
        """The next `count` orders, through the command server; waits until all views have them."""
        bodies = map(shop.order_body, range(self.orders, self.orders + count))
        sample = self.place_others(bodies, count, in_flight=in_flight)
        self.orders += count
        return sample

    def place_others(self, orders: Iterable[bytes], count: int, *, in_flight: int) -> Sample:
        """As `place_orders`, orders that are none of its own: `count` requests, serialised."""
        bodies = self.bodies(orders)
        target = self.target(self.stack.command_server, COMMANDS + "PlaceOrder")
        sample = send(target, bodies, count, in_flight=in_flight)
        bodies.unlink()
        self.wait_for_followers()
        return sample

    def wait_for_followers(self) -> None:
        """Until all views and reactions have all of the feed: what follows from a turn is in no other one."""
        with (
            psycopg.connect(self.stack.write_url, autocommit=True) as write,
            psycopg.connect(self.stack.read_url, autocommit=True) as read,
        ):

            def caught_up() -> bool:
                [head] = write.execute("SELECT position FROM tandem_write.feed_head").fetchall()
                stopped = read.execute("SELECT error FROM tandem_read.projection WHERE error IS NOT NULL").fetchall()
                if stopped:
                    raise RuntimeError(f"views that cannot go on: {stopped}")
                behind = [
                    database.execute(f"SELECT count(*) FROM {table} WHERE position < %s", head).fetchall()
                    for database, table in ((read, "tandem_read.projection"), (write, "tandem_write.reaction"))
                ]
                return behind == [[(0,)], [(0,)]]

            wait_until(caught_up, "all views and reactions have all events", _PATIENCE)

    def tidy(self) -> None:
        """What a database does by itself after a while: statistics, and pages known to be visible to all."""
        for url in {self.stack.write_url, self.stack.read_url}:
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("VACUUM ANALYZE")
                connection.execute("CHECKPOINT")

    def random_orders(self, count: int) -> Sequence[str]:
        """Ids of `count` different orders among all, in no order."""
        return [shop.order_id(number) for number in random.Random("keys").sample(range(self.orders), count)]

    def order_requests(self, count: int) -> Path:
        """Bodies for GetOrderDetails: `count` different orders."""
        return self.bodies(GetOrderDetailsRequest(order_id=it) for it in self.random_orders(count))


@contextmanager
def open_world(
    folder: Path,
    orders: int,
    say: Callable[[str], None],
    *,
    lite: bool = False,
    service: type[Service] = Service,
    postgres: Mapping[str, str] = POSTGRES,
) -> Iterator[World]:
    """Everything started, a shop with customers and products, and so many orders. Stopped at the end.

    postgres: the server's settings.
    """
    server, node = (
        Postgres(folder / "data", free_port(), settings=dict(postgres)),
        Memcached(free_port(), megabytes=_CACHE_MEGABYTES),
    )
    try:
        server.start()
        node.start()
        with beside(World(folder, say, server, node, Databases(server), lite=lite, service=service), orders) as world:
            yield world
    finally:
        node.stop()
        server.stop()


@contextmanager
def beside(world: World, orders: int) -> Iterator[World]:
    """Starts a world whose stores run already, and makes its shop and its orders."""
    try:
        world.stack.start()
        world.open_shop()
        world.say(f"placing {orders:,} orders")
        placed = world.place_orders(orders)
        world.say(f"placed {orders:,} orders, {placed.rate:,.0f}/s")
        world.tidy()
        yield world
    finally:
        world.close()
