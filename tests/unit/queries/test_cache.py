"""A node that fails is not asked for a while, by all caches of a server."""

import math
import socket
from collections.abc import Callable, Generator, Iterator

import pytest

from tandem.cli.embedded import Memcached
from tandem.queries.cache import Cache, Resting
from tandem.queries.settings import CacheSettings
from tandem.read_store.cache import Ring, Signer, key_prefix
from tandem.read_store.memcached import MemcachedClient
from tandem.read_store.nodes import node_client

ROW = "0" * 32
SECONDS = 5.0


class Node:
    """Takes connections, and hangs unless it is told what to say."""

    def __init__(self, listening: socket.socket) -> None:
        self._listening = listening
        self._taken: list[socket.socket] = []
        self.name = "127.0.0.1:{1}".format(*listening.getsockname())

    def connections(self) -> int:
        """How many were made so far."""
        while True:
            try:
                self._taken.append(self._listening.accept()[0])
            except BlockingIOError:
                return len(self._taken)

    def say_to_first(self, answer: bytes) -> None:
        """On the connection that was made first, as the answer to what is asked there next."""
        self.connections()
        self._taken[0].sendall(answer)

    def close(self) -> None:
        for it in (self._listening, *self._taken):
            it.close()


@pytest.fixture
def node() -> Iterator[Node]:
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setblocking(False)
    node = Node(listening)
    yield node
    node.close()


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cache() -> Iterator[Cache]:
    """Of nodes that answer, also on a busy machine."""
    cache = Cache(CacheSettings(timeout=10), Resting(SECONDS))
    yield cache
    cache.close()


@pytest.fixture
def caches(clock: Clock) -> Iterator[tuple[Cache, Cache]]:
    settings = CacheSettings(timeout=0.25)
    resting = Resting(SECONDS, clock)
    one, other = Cache(settings, resting), Cache(settings, resting)
    yield one, other
    for it in (one, other):
        it.close()


def asked(cache: Cache, node: Node) -> int:
    return cache.look_up("order_details", {node.name: "epoch"}, [ROW]).asked


def connected(node: Node) -> MemcachedClient:
    client = node_client(node.name, timeout=0.05)
    assert isinstance(client, MemcachedClient)
    client._connect()
    return client


def signed(row: str, entry: bytes) -> dict[str, bytes]:
    key = key_prefix("order_details", "epoch") + row
    return {key: Signer().sign(key, entry)}


def test_a_node_that_hangs_is_waited_for_once_by_all_caches(
    node: Node, caches: tuple[Cache, Cache], clock: Clock
) -> None:
    one, other = caches
    assert [asked(it, node) for it in (one, other, one)] == [0, 0, 0]
    assert node.connections() == 1

    clock.now += SECONDS
    assert [asked(it, node) for it in (other, one)] == [0, 0]
    assert node.connections() == 2


def test_a_connection_from_before_another_caches_failure_is_not_used_again(
    node: Node, caches: tuple[Cache, Cache], clock: Clock
) -> None:
    one, other = caches
    # As if it had been made when all was well.
    client = connected(node)
    one._clients[node.name], one._made_after[node.name] = client, None
    assert asked(other, node) == 0

    clock.now += SECONDS
    node.say_to_first(b"END\r\n")
    # On the old connection there would be an answer.
    assert asked(one, node) == 0
    assert client.sock is None


def test_what_is_looked_up_together_is_answered_one_after_the_other(
    memcached_nodes: Callable[[int], list[Memcached]], cache: Cache
) -> None:
    nodes = [it.address for it in memcached_nodes(2)]
    epochs: dict[str, str | None] = dict.fromkeys(nodes, "epoch")
    rows = [f"{number:032x}" for number in range(12)]
    ring = Ring(nodes)
    for row in rows:
        client = node_client(ring.node_of(row), timeout=10)
        client.store(signed(row, row.encode()), 60)
        client.close()
    wanted = [rows[:5], [], [ROW, "f" * 32], rows[5:], rows]
    found = list(cache.look_up_each("order_details", epochs, wanted))
    assert [it.entries for it in found] == [{row: row.encode() for row in some if row in rows} for some in wanted]
    assert [it.asked for it in found] == [len(some) for some in wanted]


def test_answers_that_nobody_reads_are_not_taken_for_others(
    memcached_nodes: Callable[[int], list[Memcached]], cache: Cache
) -> None:
    [node] = memcached_nodes(1)
    client = node_client(node.address, timeout=10)
    client.store(signed(ROW, b"before"), 60)
    left = cache.look_up_each("order_details", {node.address: "epoch"}, [[ROW], [ROW]])
    assert isinstance(left, Generator)
    assert next(left).entries == {ROW: b"before"}
    left.close()
    client.store(signed(ROW, b"after"), 60)
    client.close()
    assert cache.look_up("order_details", {node.address: "epoch"}, [ROW]).entries == {ROW: b"after"}


def test_a_node_that_hangs_is_waited_for_once_by_all_that_is_looked_up_together(
    node: Node, caches: tuple[Cache, Cache]
) -> None:
    found = list(caches[0].look_up_each("order_details", {node.name: "epoch"}, [[ROW]] * 5))
    assert [it.asked for it in found] == [0] * 5
    assert node.connections() == 1


def test_an_entry_that_was_not_asked_for_is_a_failure_of_the_node(node: Node, caches: tuple[Cache, Cache]) -> None:
    cache, _ = caches
    client = connected(node)
    cache._clients[node.name], cache._made_after[node.name] = client, None
    other = key_prefix("order_details", "epoch") + "f" * 32
    node.say_to_first(b"VALUE %b 0 1\r\nx\r\nEND\r\n" % other.encode())
    # Nobody looks yet whether the node has closed it, or has said something.
    client._idle_from = math.inf
    assert cache.look_up("order_details", {node.name: "epoch"}, [ROW]) == ({}, 0)
    assert client.sock is None
