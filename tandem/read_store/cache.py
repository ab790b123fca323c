"""The cache's keys, entries and nodes, as projector and query_server both see them.

A key names the view, the node's epoch and the row. An epoch is a random word that belongs to one writer at one node for
as long as that writer has missed nothing: when a write fails, or another projector takes the view over without a clean
hand-over, the epoch ends, and what was stored under it can never be read again, whoever writes it, and however late.
So an older entry cannot replace a newer one: within an epoch there is one writer, on one connection, in order.
"""

import secrets
import time
from collections.abc import Iterable, Mapping, Sequence

from google.protobuf.message import DecodeError
from pymemcache.client.base import Client
from pymemcache.client.rendezvous import RendezvousHash
from pymemcache.exceptions import MemcacheUnexpectedCloseError, MemcacheUnknownError

from tandem.internal.v1.stored_pb2 import CacheEntry

CacheEpochs = dict[str, str | None]
"""Node ("host:port") to its epoch; None while the node is fenced off. The order is that of the setting."""

PLACEHOLDER: bytes = CacheEntry().SerializeToString()
"""What a reader stores while it fills a missing entry: an entry without a value."""

# CacheEntry's field `value`: its number, and that bytes follow behind their length.
_VALUE_TAG = (CacheEntry.DESCRIPTOR.fields_by_name["value"].number << 3) | 2

# A batch of usual entries in one piece.
_RECEIVE_BYTES = 65_536

# Their answers must fit the connection's buffers: nobody takes them until all are sent.
_STORED_TOGETHER = 1_000

# The socket's time-out is for each piece of an answer. One that comes in many has as long as so many of them.
_PIECES = 10

LEASE_SECONDS = 3
"""How long a placeholder lives: longer than a read of the database takes, short enough that a reader that died costs
little."""


def new_epoch() -> str:
    """A word that no earlier epoch had, also when the read database was restored from a backup: 64 random bits."""
    return secrets.token_hex(8)


def key_prefix(view: str, epoch: str) -> str:
    """What memcached's keys begin with; the row's id in 32 hexadecimal digits follows: at most 80 bytes in all."""
    return f"{view}:{epoch}:"


def encode_entry(value: bytes) -> bytes:
    """A CacheEntry with this value. Most are written by hand: a message of one field takes several times as long."""
    size = len(value)
    if size < 1 << 7:
        return bytes((_VALUE_TAG, size)) + value
    if size < 1 << 14:
        return bytes((_VALUE_TAG, (size & 0x7F) | 0x80, size >> 7)) + value
    return CacheEntry(value=value).SerializeToString()


def decode_entry(raw: bytes) -> bytes | None:
    """The view's bytes; None for a placeholder, and what is not one of ours."""
    try:
        entry = CacheEntry.FromString(raw)
    except DecodeError:
        return None
    return entry.value if entry.HasField("value") else None


class Ring:
    """Which node a key belongs to, over all configured nodes, whether they are up or not.

    A key never moves because its node is away: moving it back later would bring old values back to life.
    """

    def __init__(self, nodes: list[str]) -> None:
        self.nodes = nodes
        self._hash = RendezvousHash(nodes)

    def node_of(self, digits: str) -> str:
        """digits: the row's id in 32 hexadecimal digits."""
        if len(self.nodes) == 1:
            return self.nodes[0]
        node: str = self._hash.get_node(digits)
        return node


def parse_node(node: str) -> tuple[str, int]:
    """("host", port) of "host:port". Raises ValueError."""
    host, separator, port = node.rpartition(":")
    if not separator or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"{node!r} is not host:port")
    return host.strip("[]"), int(port)


class NodeClient(Client):  # type: ignore[misc]  # pymemcache has no types
    """pymemcache's, but for many entries: it takes an answer line by line, which costs most of a read or a write."""

    # Of `ask`: how many are not answered, and what was received behind the answer that was read last.
    _unanswered = 0
    _following = b""
    # After that no more of an answer is waited for; 0 while it has come in one piece.
    _more_until = 0.0

    def close(self) -> None:
        self._unanswered, self._following = 0, b""
        super().close()

    def ask(self, keys: Iterable[str]) -> "NodeClient":
        """Asks for entries, of at least one key; returns itself. It may ask again before it reads an answer, and do
        nothing else.

        Raises OSError and MemcacheError, and closes the connection then, as `answer` does.
        """
        if self.sock is None:
            self._connect()
        try:
            self.sock.sendall(b"get %b\r\n" % " ".join(keys).encode("ascii"))
        except Exception:
            self.close()
            raise
        self._unanswered += 1
        return self

    def answer(self) -> dict[str, bytes]:
        """The entries that are there, by key: of what was asked for first of all that is not answered."""
        assert self._unanswered, "nothing was asked for"
        try:
            return self._entries()
        except Exception:
            self.close()
            raise

    def store(self, entries: Mapping[str, bytes], expire: int) -> None:
        """Stores all entries, by key, for so many seconds.

        Raises OSError and MemcacheError, and closes the connection then.

        Each is answered: without answers (noreply) nobody could tell that one was missed.
        """
        commands = [
            b"set %b 0 %d %d\r\n%b\r\n" % (key.encode("ascii"), expire, len(entry), entry)
            for key, entry in entries.items()
        ]
        if self.sock is None:
            self._connect()
        try:
            for start in range(0, len(commands), _STORED_TOGETHER):
                self._store(commands[start : start + _STORED_TOGETHER])
        except Exception:
            self.close()
            raise

    def _store(self, commands: Sequence[bytes]) -> None:
        self.sock.sendall(b"".join(commands))
        wanted = b"STORED\r\n" * len(commands)
        answer = b""
        self._more_until = 0.0
        while answer != wanted:
            answer += self._receive_more()
            if not wanted.startswith(answer):
                raise MemcacheUnknownError(f"not all entries were stored: {answer[-200:]!r}")

    def _entries(self) -> dict[str, bytes]:
        """VALUE <key> <flags> <size>, the entry on a line of its own, and so on, and END."""
        found: dict[str, bytes] = {}
        self._more_until = 0.0
        answer = self._following or self._receive()
        position = 0
        while True:
            end = answer.find(b"\r\n", position)
            if end < 0:
                answer += self._receive_more()
                continue
            line = answer[position:end]
            if line == b"END":
                self._unanswered -= 1
                self._following = answer[end + 2 :]
                if self._following and not self._unanswered:
                    raise MemcacheUnknownError(f"{len(self._following)} bytes after the last answer")
                return found
            word, key, _, size = line.split(b" ")
            if word != b"VALUE":
                raise MemcacheUnknownError(repr(line[:200]))
            position = end + 2 + int(size)
            while len(answer) < position + 2:
                answer += self._receive_more()
            found[key.decode("ascii")] = answer[end + 2 : position]
            position += 2

    def _receive_more(self) -> bytes:
        now = time.monotonic()
        if not self._more_until:
            self._more_until = now + _PIECES * self.timeout
        elif now > self._more_until:
            raise TimeoutError("an answer came in pieces, for too long")
        return self._receive()

    def _receive(self) -> bytes:
        received: bytes = self.sock.recv(_RECEIVE_BYTES)
        if not received:
            raise MemcacheUnexpectedCloseError
        return received


def node_client(node: str, *, timeout: float) -> NodeClient:
    """A connection to one memcached node, for one thread. `timeout` in seconds, for connecting and for each answer.

    pymemcache's defaults are not ours: it would wait for ever, delay small packets, and call an `add` that was
    refused a success (default_noreply).
    """
    return NodeClient(
        parse_node(node),
        connect_timeout=timeout,
        timeout=timeout,
        no_delay=True,
        default_noreply=False,
        ignore_exc=False,
        allow_unicode_keys=False,
    )
