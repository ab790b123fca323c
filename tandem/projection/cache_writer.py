"""The fenced cache, from the writer's side. See tandem.read_store.cache for what an epoch is."""

import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from prometheus_client import Gauge

from tandem.projection.settings import CacheSettings
from tandem.read_store.cache import (
    CacheEpochs,
    Ring,
    Signer,
    decode_entry,
    encode_entry,
    key_prefix,
    new_epoch,
)
from tandem.read_store.node import NEVER, NodeClient, NodeError
from tandem.runtime.supervised import SupervisedThread
from tandem.runtime.telemetry import log

FENCED = Gauge("tandem_cache_fenced_nodes", "Nodes of the cache that readers must not read")

# memcached takes values of 1 MiB with their key and header unless it is told otherwise. Without an entry, readers go to
# the database for it.
_MAX_VALUE_BYTES = 1_000_000

# Between an epoch and its mark, where they are handed over. The version before takes both for an epoch, an unused one.
_MARKED = "."

_Failure = (OSError, NodeError)


class NodeNow(NamedTuple):
    """A node as an operator sees it. state: "SERVING", "FENCED", or "STANDBY" while another projector writes the views.

    entries, bytes, max_bytes, evictions: as the node says them; 0 where it does not, and `problem` says why. max_bytes
    is 0 too where it has no limit.
    """

    node: str
    state: str
    entries: int = 0
    bytes: int = 0
    max_bytes: int = 0
    evictions: int = 0
    problem: str = ""


class Cached(NamedTuple):
    """An entry as readers find it. value: None for none. fenced: nobody reads the node."""

    value: bytes | None = None
    fenced: bool = False


class CacheWriter:
    """Writes entries, and fences a node as soon as a write to it may have been missed. For one thread.

    A value that a node does not take is deleted there, and misses nothing: readers go to the database for it.

    Epochs are per view and node: `epochs[view][node]`, None while the node is fenced.
    """

    def __init__(self, nodes: tuple[str, ...], settings: CacheSettings) -> None:
        """Raises SettingsError when the secret cannot be read."""
        self._settings = settings
        self._signer = settings.signer()
        self._ring = Ring(list(nodes))
        self._clients: dict[str, NodeClient] = {}
        # By node, of its connection: what the node is, and the key of what was stored there first.
        self._identities: dict[str, str] = {}
        self._marks: dict[str, str] = {}
        self._down: set[str] = set()
        # What the prober has found out: which of these answer, and which others are not what they were.
        self._answering: set[str] = set()
        self._changed: set[str] = set()
        self._stop = threading.Event()
        self._prober = SupervisedThread("cache-prober", self._probe)
        self.epochs: dict[str, CacheEpochs] = {}

    @property
    def nodes(self) -> list[str]:
        return self._ring.nodes

    def begin(self, view: str, handed_over: CacheEpochs | None) -> bool:
        """Begins to write a view; says whether all nodes go on with the epochs that were handed over.

        handed_over: what `end` returned at a clean stop; None begins new epochs. An epoch goes on only if its mark is
        there, and nobody else can take that then: the stop was the last one, whatever a database that was restored
        says. And only if the nodes are the same in the same order: else keys belong to other nodes than before.
        """
        left = handed_over if handed_over is not None and list(handed_over) == self.nodes else {}
        self.epochs[view] = epochs = dict.fromkeys(self.nodes)
        kept = [node for node in self.nodes if self._go_on(view, node, left.get(node))]
        for node in self.nodes:
            if node not in self._down and node not in kept:
                epochs[node] = self._new_epoch(node)
        return bool(self.nodes) and kept == self.nodes

    def end(self, view: str) -> CacheEpochs:
        """Gives a view up; returns its epochs for the next projector, each with the mark that is left at its node."""
        left: CacheEpochs = {}
        for node, epoch in self.epochs[view].items():
            left[node] = None
            if epoch is not None:
                prefix = key_prefix(view, epoch)
                try:
                    mark = self._leave_mark(self._connection(node), prefix)
                except _Failure as error:
                    self._fence(node, error)
                else:
                    left[node] = epoch + _MARKED + mark.removeprefix(prefix)
        del self.epochs[view]
        return left

    def write(self, changed: Mapping[str, Mapping[bytes, bytes | None]]) -> None:
        """Stores the entries of each view, deletes those of None; each node is asked once.

        A node that fails is fenced and the others are written.
        """
        entries: defaultdict[str, dict[str, bytes]] = defaultdict(dict)
        gone: defaultdict[str, list[str]] = defaultdict(list)
        sign = self._signer.sign
        for view, values in changed.items():
            prefixes = {node: key_prefix(view, epoch) for node, epoch in self.epochs[view].items() if epoch is not None}
            for key, value in values.items() if prefixes else ():
                digits = key.hex()
                node = self._ring.node_of(digits)
                if node not in prefixes:
                    continue
                name = prefixes[node] + digits
                if value is None or len(value) > _MAX_VALUE_BYTES:
                    gone[node].append(name)
                else:
                    entries[node][name] = sign(name, encode_entry(value))
        for node in entries.keys() | gone.keys():
            try:
                self._write_to(node, entries[node], gone[node])
            except _Failure as error:
                self._fence(node, error)

    def look(self, view: str, key: bytes) -> "Cached | None":
        """What readers find for a row of a view that is ours; None without a cache. For any thread, a person asks.

        On a connection of its own. Raises OSError and NodeError.
        """
        epochs = self.epochs.get(view)
        if not epochs:
            return None
        digits = key.hex()
        node = self._ring.node_of(digits)
        epoch = epochs[node]
        if epoch is None:
            return Cached(fenced=True)
        name = key_prefix(view, epoch) + digits
        client = self._settings.connection(node)
        try:
            found = self._signer.unsigned(client.ask([name]).answer(), {name: digits})
        finally:
            client.close()
        return Cached(decode_entry(found[digits]) if digits in found else None)

    def look_at_nodes(self) -> list[NodeNow]:
        """For any thread, a person asks. On connections of its own, each for a time-out at most."""
        return [self._look_at(it) for it in self.nodes]

    def _look_at(self, node: str) -> NodeNow:
        state = "FENCED" if node in self._down else "SERVING" if self.epochs else "STANDBY"
        try:
            client = self._settings.connection(node)
            try:
                return NodeNow(node, state, *client.stats())
            finally:
                client.close()
        except _Failure as error:
            return NodeNow(node, state, problem=str(error) or type(error).__name__)

    def read(self, view: str, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The values of the entries that are there and that readers take, by key. A node that fails is fenced."""
        found: dict[bytes, bytes] = {}
        for node, names in names_by_node(self._ring, view, self.epochs[view], keys).items():
            try:
                found |= values_of(self._signer, self._connection(node).ask(names).answer(), names)
            except _Failure as error:
                self._fence(node, error)
        return found

    def revive(self) -> bool:
        """Gives new epochs to fenced nodes that answer again, and fences those that are not what they were; True if
        there were any.
        """
        changed = self._changed - self._down
        self._changed -= changed
        for node in changed:
            self._fence(node, NodeError("it is not what it was"))
        back = self._down & self._answering
        for node in back:
            self._down.discard(node)
            self._answering.discard(node)
            for epochs in self.epochs.values():
                if node not in self._down:
                    epochs[node] = self._new_epoch(node)
            if node not in self._down:
                log.info("cache node is back, under a new epoch", node=node)
        FENCED.set(len(self._down))
        return bool(back or changed)

    def start(self) -> None:
        if self.nodes:
            self._prober.start()

    def stop(self) -> None:
        self._stop.set()
        self._prober.join()
        for client in self._clients.values():
            client.close()
        self._clients.clear()

    def _write_to(self, node: str, entries: Mapping[str, bytes], gone: Sequence[str]) -> None:
        client = self._connection(node)
        client.store(entries, self._settings.entry_seconds)
        client.remove(gone)

    def _go_on(self, view: str, node: str, left: str | None) -> bool:
        """Whether the node is as it was left, and ours alone from now on: then its epoch is the view's."""
        epoch, _, mark = (left or "").partition(_MARKED)
        if not mark or node in self._down:
            return False
        try:
            client = self._connection(node)
            taken = epoch.endswith(client.identity) and client.remove([key_prefix(view, epoch) + mark]) == [True]
        except _Failure as error:
            self._fence(node, error)
            return False
        if taken:
            self.epochs[view][node] = epoch
        return taken

    def _connection(self, node: str) -> NodeClient:
        """Where the node's entries go, one after the other. Raises OSError and NodeError.

        A node may end a connection that is idle. All that was sent on it was answered, so another one may follow, if it
        leads to the same entries: not to a node that took the address over, and whose entries may be back one day. The
        mark that the connection before left there says so.
        """
        client, mark = self._clients.get(node), self._marks.get(node)
        if client is not None:
            if not client.was_closed():
                return client
            client.close()
        client = self._clients[node] = self._settings.connection(node)
        if mark is not None and (client.identity != self._identities[node] or client.remove([mark]) == [False]):
            raise NodeError("it closed the connection, and what was there is not")
        self._identities[node] = client.identity
        self._marks[node] = self._leave_mark(client, "tandem:")
        return client

    def _new_epoch(self, node: str) -> str | None:
        """None where the node fails: it is fenced then."""
        try:
            return new_epoch(self._connection(node).identity)
        except _Failure as error:
            self._fence(node, error)
            return None

    def _leave_mark(self, client: NodeClient, prefix: str) -> str:
        """An entry that is not found in any other state of the node, and that one alone can remove. Returns its key."""
        key = prefix + new_epoch()
        # A connection may live for longer than any entry does.
        client.store({key: b""}, NEVER)
        return key

    def _fence(self, node: str, error: Exception) -> None:
        log.warning("cache node is fenced off", node=node, error=repr(error))
        self._answering.discard(node)
        self._down.add(node)
        for epochs in self.epochs.values():
            epochs[node] = None
        FENCED.set(len(self._down))
        # What was sent may still arrive: under an epoch that nobody reads.
        self._marks.pop(node, None)
        client = self._clients.pop(node, None)
        if client is not None:
            client.close()

    def _probe(self) -> None:
        """On a thread of its own: a node that hangs would otherwise hold the views up for its time-out each time."""
        watching: dict[str, NodeClient] = {}
        while not self._stop.wait(self._settings.probe_seconds):
            for node in self.nodes:
                if node in self._down:
                    if self._answers(node):
                        self._answering.add(node)
                elif (known := self._identities.get(node)) and self._is_another(node, known, watching):
                    self._changed.add(node)
        for client in watching.values():
            client.close()

    def _answers(self, node: str) -> bool:
        try:
            client = self._settings.connection(node)
            try:
                client.ping()
            finally:
                client.close()
        except _Failure:
            return False
        return True

    def _is_another(self, node: str, known: str, watching: dict[str, NodeClient]) -> bool:
        """Whether a node that can be another one is, by a connection that is kept; one that does not answer may be."""
        try:
            client = watching.get(node)
            if client is None:
                client = watching[node] = self._settings.connection(node)
            client.ping()
            return client.identity != known and self._identities.get(node) == known
        except _Failure:
            # The next connection says what there is.
            if (failed := watching.pop(node, None)) is not None:
                failed.close()
            return False


class EntryReader:
    """Reads entries as `CacheWriter.read` does, on connections of its own. For one thread.

    It passes over nodes that fail, for a while.
    """

    def __init__(self, nodes: tuple[str, ...], settings: CacheSettings) -> None:
        """Raises SettingsError when the secret cannot be read."""
        self._settings = settings
        self._signer = settings.signer()
        self._ring = Ring(list(nodes))
        self._clients: dict[str, NodeClient] = {}
        self._rests_until: dict[str, float] = {}

    def read(self, view: str, epochs: CacheEpochs, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The values of the entries that are there and that readers take, by key."""
        found: dict[bytes, bytes] = {}
        for node, names in names_by_node(self._ring, view, epochs, keys).items() if epochs else ():
            if time.monotonic() < self._rests_until.get(node, 0.0):
                continue
            try:
                if node not in self._clients:
                    self._clients[node] = self._settings.connection(node)
                client = self._clients[node]
                found |= values_of(self._signer, client.ask(names).answer(), names)
            except _Failure as error:
                log.debug("a cache node cannot be compared", node=node, error=repr(error))
                self._rests_until[node] = time.monotonic() + self._settings.probe_seconds
        return found

    def close(self) -> None:
        for client in self._clients.values():
            client.close()


def names_by_node(ring: Ring, view: str, epochs: CacheEpochs, keys: Sequence[bytes]) -> dict[str, dict[str, bytes]]:
    """The names of rows' entries at each node that is not fenced, each with the row's key."""
    names: defaultdict[str, dict[str, bytes]] = defaultdict(dict)
    for key in keys:
        node = ring.node_of(key.hex())
        epoch = epochs.get(node)
        if epoch is not None:
            names[node][key_prefix(view, epoch) + key.hex()] = key
    return names


def values_of(signer: Signer, answer: Mapping[str, bytes], names: Mapping[str, bytes]) -> dict[bytes, bytes]:
    """The values in a node's answer that were stored for their keys, by the rows' keys; placeholders have none."""
    entries = signer.unsigned(answer, {name: key.hex() for name, key in names.items()})
    values = {bytes.fromhex(row): decode_entry(entry) for row, entry in entries.items()}
    return {key: value for key, value in values.items() if value is not None}
