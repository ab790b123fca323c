"""memcached as a reader sees it: read many, and fill what is missing under a lease.

A node that fails is a miss, never an error: the connection is closed, and the node is left alone for a while.
"""

import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Concatenate, NamedTuple, ParamSpec, TypeVar

from google.protobuf.message import DecodeError
from prometheus_client import Counter
from pymemcache.exceptions import MemcacheError

from query_server.settings import CacheSettings
from tandem.read_store.cache import (
    LEASE_SECONDS,
    PLACEHOLDER,
    CacheEpochs,
    NodeClient,
    Ring,
    decode_entry,
    encode_entry,
    key_prefix,
    node_client,
)
from tandem.runtime.telemetry import log

NODE_FAILURES = Counter(
    "tandem_cache_node_failures_total", "Failures of a memcached node as readers met them", ["node"]
)

# KeyError and ValueError are how pymemcache meets an answer that it did not ask for; it closes the connection then.
_FAILURES = (OSError, MemcacheError, ValueError, KeyError)

P = ParamSpec("P")
T = TypeVar("T")


class Lookup(NamedTuple):
    """entries: what is stored for the rows, by their ids as they were asked for; `entry_value` reads it.

    asked: how many were; those at nodes that are fenced off or fail are not.
    """

    entries: dict[str, bytes]
    asked: int


class Lease(NamedTuple):
    """The right to fill an entry, as long as nobody else has written it.

    It is good on the connection that took it: after a restart memcached counts its cas values anew.
    """

    node: str
    name: str
    cas: bytes
    client: NodeClient


class Cache:
    """A reader's connections, one to each node. For one thread at a time."""

    def __init__(self, settings: CacheSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._clients: dict[str, NodeClient] = {}
        self._resting_until: dict[str, float] = {}
        self._ring = Ring([])

    async def start(self) -> None:
        """Nothing connects before the first use."""

    async def stop(self) -> None:
        for client in self._clients.values():
            client.close()
        self._clients.clear()

    def look_up(self, view: str, epochs: CacheEpochs, rows: Iterable[str]) -> Lookup:
        """Reads the entries of `rows` under the epochs that were announced. rows: ids in 32 hexadecimal digits."""
        found: dict[str, bytes] = {}
        asked = 0
        for node, names in self._by_node(view, epochs, rows).items():
            entries = self._try(node, NodeClient.get_many, list(names))
            if entries is not None:
                asked += len(names)
                for name, entry in entries.items():
                    found[names[name]] = entry
        return Lookup(found, asked)

    def lease(self, view: str, epochs: CacheEpochs, keys: Iterable[uuid.UUID]) -> dict[uuid.UUID, Lease]:
        """Places placeholders for entries that are not there, at most `max_fills`; a lease for each one placed.

        Read the database after this, not before: the projector's write of a newer row ends the lease. A plain `add` of
        the value would not do: it succeeds where a newer entry was set and evicted in between.
        """
        leases: dict[uuid.UUID, Lease] = {}
        by_digits = {key.hex: key for key in islice(keys, self._settings.max_fills)}
        for node, names in self._by_node(view, epochs, by_digits).items():
            placed = [
                name for name in names if self._try(node, NodeClient.add, name, PLACEHOLDER, expire=LEASE_SECONDS)
            ]
            entries = self._try(node, NodeClient.gets_many, placed) if placed else None
            for name, (value, cas) in (entries or {}).items():
                if value == PLACEHOLDER:
                    leases[by_digits[names[name]]] = Lease(node, name, cas, self._clients[node])
        return leases

    def fill(self, leases: Mapping[uuid.UUID, Lease], values: Mapping[uuid.UUID, bytes]) -> None:
        """Stores values under their leases. A placeholder without a value expires."""
        for key, (node, name, cas, client) in leases.items():
            value = values.get(key)
            if value is not None and self._clients.get(node) is client:
                self._try(node, NodeClient.cas, name, encode_entry(value), cas, expire=self._settings.entry_seconds)

    def _by_node(self, view: str, epochs: CacheEpochs, rows: Iterable[str]) -> dict[str, dict[str, str]]:
        """For each node that is not fenced off, memcached's keys and the rows that they are of."""
        nodes = list(epochs)
        if self._ring.nodes != nodes:
            self._ring = Ring(nodes)
        by_node: dict[str, list[str]] = {node: [] for node in nodes}
        if len(nodes) == 1:
            by_node[nodes[0]].extend(rows)
        else:
            for row in rows:
                by_node[self._ring.node_of_digits(row)].append(row)
        prefixes = {node: key_prefix(view, epoch) for node, epoch in epochs.items() if epoch is not None}
        return {node: {prefixes[node] + row: row for row in rows} for node, rows in by_node.items() if node in prefixes}

    def _try(
        self, node: str, command: Callable[Concatenate[NodeClient, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T | None:
        """What the node answers; None when it fails or is left alone."""
        if self._clock() < self._resting_until.get(node, 0.0):
            return None
        try:
            if node not in self._clients:
                self._clients[node] = node_client(node, timeout=self._settings.timeout)
            return command(self._clients[node], *args, **kwargs)
        except _FAILURES as error:
            self._resting_until[node] = self._clock() + self._settings.rest_seconds
            failed = self._clients.pop(node, None)
            if failed is not None:
                failed.close()
            NODE_FAILURES.labels(node).inc()
            log.warning("a cache node failed", node=node, error=repr(error)[:200])
            return None


def entry_value(entry: bytes) -> bytes | None:
    """The view's bytes; None when the entry is a placeholder, or is not one of ours."""
    try:
        return decode_entry(entry)
    except DecodeError:
        return None
