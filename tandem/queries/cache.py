"""The cache as a reader sees it: read many, and fill what is missing under a lease.

A node that fails is a miss, never an error: the connection is closed, and the node is not asked for a while.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from prometheus_client import Counter

from tandem.queries.settings import CacheSettings
from tandem.read_store.cache import (
    LEASE_SECONDS,
    PLACEHOLDER,
    CacheEpochs,
    Ring,
    encode_entry,
    key_prefix,
)
from tandem.read_store.node import NodeClient, NodeError
from tandem.runtime.telemetry import log

NODE_FAILURES = Counter("tandem_cache_node_failures_total", "Failures of a cache node as readers met them", ["node"])

# KeyError is how an answer is met that was not asked for.
_FAILURES = (OSError, NodeError, KeyError)

REFUSED = Counter(
    "tandem_cache_entries_refused_total",
    "Entries that were not stored for their keys, or not with our secret",
    ["node"],
)


class Lookup(NamedTuple):
    """entries: what is stored for the rows, without its signature, by their ids as they were asked for; `decode_entry`
    reads it.

    asked: how many were; those at nodes that are fenced off or fail are not.
    """

    entries: dict[str, bytes]
    asked: int


class Lease(NamedTuple):
    """The right to fill an entry, as long as nobody else has written it.

    It is good on the connection that took it: after a start a node may count its cas values anew.
    """

    node: str
    name: str
    cas: bytes
    client: NodeClient


class _Asked(NamedTuple):
    """What a node was asked for, on which connection. names: keys and the rows that they are of."""

    node: str
    client: NodeClient
    names: dict[str, str]


class Resting:
    """Which nodes failed lately. The caches of a server share it: what one of them waited for, the others need not.

    For any thread.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """seconds: how long a node is not asked after it failed."""
        self._seconds = seconds
        self._clock = clock
        self._until: dict[str, float] = {}

    def is_resting(self, node: str) -> bool:
        return node in self._until and self._clock() < self._until[node]

    def failed(self, node: str) -> None:
        self._until[node] = self._clock() + self._seconds

    def last(self, node: str) -> float | None:
        """The same until the node fails again; None before the first failure."""
        return self._until.get(node)


class Cache:
    """A reader's connections, one to each node. For one thread at a time."""

    def __init__(self, settings: CacheSettings, resting: Resting) -> None:
        """Raises SettingsError when the secret cannot be read."""
        self._settings = settings
        self._signer = settings.signer()
        self._resting = resting
        self._clients: dict[str, NodeClient] = {}
        # The node's last failure when the connection was made: one from before a later failure is not trusted.
        self._made_after: dict[str, float | None] = {}
        self._ring = Ring([])
        # What was announced last, and for each view what keys begin with at each node that may be read.
        self._epochs: CacheEpochs = {}
        self._prefixes: dict[str, dict[str, str]] = {}

    def close(self) -> None:
        for client in self._clients.values():
            client.close()
        self._clients.clear()

    def look_up(self, view: str, epochs: CacheEpochs, rows: Iterable[str]) -> Lookup:
        """Reads the entries of `rows` under the epochs that were announced. Rows are ids in 32 hexadecimal digits."""
        return self._read(self._ask(view, epochs, rows))

    def look_up_each(self, view: str, epochs: CacheEpochs, wanted: Iterable[Iterable[str]]) -> Iterator[Lookup]:
        """As `look_up` for each of them, all under the same epochs. Nodes are asked for the next before an answer is
        read, and work on it meanwhile: one ahead, so that what nobody reads yet cannot fill the connection.
        """
        ahead: list[_Asked] | None = None
        try:
            for rows in wanted:
                before, ahead = ahead, self._ask(view, epochs, rows)
                if before is not None:
                    yield self._read(before)
            if ahead is not None:
                last, ahead = ahead, None
                yield self._read(last)
        finally:
            # Whoever asked reads no more. The answers would be taken for those to what is asked for next.
            if ahead is not None:
                for it in ahead:
                    self._close(it.node)

    def _ask(self, view: str, epochs: CacheEpochs, rows: Iterable[str]) -> list[_Asked]:
        asked = []
        for node, names in self._by_node(view, epochs, rows).items():
            if names and (client := self._connection(node)) is not None:
                try:
                    client.ask(names)
                except _FAILURES as error:
                    self._failed(node, error)
                else:
                    asked.append(_Asked(node, client, names))
        return asked

    def _read(self, asked: Sequence[_Asked]) -> Lookup:
        found: dict[str, bytes] = {}
        count = 0
        for node, client, names in asked:
            if self._clients.get(node) is not client:
                # It failed when more was asked for.
                continue
            try:
                answer = client.answer()
                entries = self._signer.unsigned(answer, names)
            except _FAILURES as error:
                self._failed(node, error)
                continue
            if len(entries) < len(answer):
                REFUSED.labels(node).inc(len(answer) - len(entries) - list(answer.values()).count(PLACEHOLDER))
            count += len(names)
            found |= entries
        return Lookup(found, count)

    def lease(self, view: str, epochs: CacheEpochs, rows: Iterable[str]) -> dict[str, Lease]:
        """Places placeholders for entries that are not there, at most `max_fills`; a lease for each one placed, and for
        each entry that is not signed, which is to be replaced.

        Read the database after this, not before: the projector's write of a newer row ends the lease. A plain `add` of
        the value would not do: it succeeds where a newer entry was set and evicted in between.
        """
        leases: dict[str, Lease] = {}
        for node, names in self._by_node(view, epochs, islice(rows, self._settings.max_fills)).items():
            if not names or (client := self._connection(node)) is None:
                continue
            try:
                placed = client.add_missing(dict.fromkeys(names, PLACEHOLDER), LEASE_SECONDS)
                entries = client.ask_with_cas(names)
                if not entries.keys() <= names.keys():
                    raise KeyError("it answered with what it was not asked for")
            except _FAILURES as error:
                self._failed(node, error)
                continue
            for name, (entry, cas) in entries.items():
                if name in placed if entry == PLACEHOLDER else not self._signer.unsigned({name: entry}, names):
                    leases[names[name]] = Lease(node, name, cas, client)
        return leases

    def fill(self, leases: Mapping[str, Lease], values: Mapping[str, bytes]) -> None:
        """Stores values under their leases. A placeholder without a value expires, and so does one whose value the node
        does not take.
        """
        by_node: dict[str, dict[str, tuple[bytes, bytes]]] = {}
        for row, (node, name, cas, client) in leases.items():
            value = values.get(row)
            if value is not None and self._clients.get(node) is client and not client.was_closed():
                by_node.setdefault(node, {})[name] = self._signer.sign(name, encode_entry(value)), cas
        for node, entries in by_node.items():
            try:
                self._clients[node].replace_unchanged(entries, self._settings.entry_seconds)
            except _FAILURES as error:
                self._failed(node, error)

    def _by_node(self, view: str, epochs: CacheEpochs, rows: Iterable[str]) -> dict[str, dict[str, str]]:
        """For each node that is not fenced off, the keys there and the rows that they are of."""
        if epochs is not self._epochs:
            self._epochs = epochs
            self._prefixes = {}
            if self._ring.nodes != list(epochs):
                self._ring = Ring(list(epochs))
        prefixes = self._prefixes.get(view)
        if prefixes is None:
            used = {node: epoch for node, epoch in epochs.items() if epoch is not None}
            prefixes = self._prefixes[view] = {node: key_prefix(view, epoch) for node, epoch in used.items()}
        if len(epochs) == 1:
            return {node: {prefix + row: row for row in rows} for node, prefix in prefixes.items()}
        by_node: dict[str, dict[str, str]] = {node: {} for node in prefixes}
        for row in rows:
            node = self._ring.node_of(row)
            if node in by_node:
                by_node[node][prefixes[node] + row] = row
        return by_node

    def _connection(self, node: str) -> NodeClient | None:
        """None while it rests."""
        if self._resting.is_resting(node):
            return None
        last_failure = self._resting.last(node)
        client = self._clients.get(node)
        if client is not None and (self._made_after[node] != last_failure or client.was_closed()):
            self._close(node)
            client = None
        if client is None:
            try:
                client = self._clients[node] = self._settings.connection(node)
            except _FAILURES as error:
                self._failed(node, error)
                return None
            self._made_after[node] = last_failure
        return client

    def _failed(self, node: str, error: Exception) -> None:
        self._resting.failed(node)
        self._close(node)
        NODE_FAILURES.labels(node).inc()
        log.warning("a cache node failed", node=node, error=repr(error)[:200])

    def _close(self, node: str) -> None:
        client = self._clients.pop(node, None)
        if client is not None:
            client.close()
