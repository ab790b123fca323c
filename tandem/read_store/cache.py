"""The cache's keys, entries and nodes, as projector and query_server both see them.

A key names the view, the node's epoch and the row. An epoch is a random word that belongs to one writer at one node for
as long as that writer has missed nothing: when a write fails, or another projector takes the view over without a clean
hand-over, the epoch ends, and what was stored under it can never be read again, whoever writes it, and however late.
So an older entry cannot replace a newer one: within an epoch there is one writer, on one connection, in order.

An entry is signed together with its key: what a node has there that was not stored there is no entry.
"""

import secrets
import select
import socket
import ssl
import struct
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self
from zlib import crc32

from google.protobuf.message import DecodeError
from prometheus_client import Counter
from pydantic import Field, SecretStr, model_validator
from pymemcache.client.base import Client
from pymemcache.client.rendezvous import RendezvousHash
from pymemcache.exceptions import MemcacheUnexpectedCloseError, MemcacheUnknownError

from tandem.internal.v1.stored_pb2 import CacheEntry
from tandem.runtime.settings import UNIX_SOCKET, Block
from tandem.runtime.signing import SecretSettings, mac_of

NOT_STORED = Counter(
    "tandem_cache_values_not_stored_total", "Values that a memcached node had no room for, or found too large", ["node"]
)

CacheEpochs = dict[str, str | None]
"""Node, as the setting names it, to its epoch; None while the node is fenced off. In the setting's order."""

PLACEHOLDER: bytes = CacheEntry().SerializeToString()
"""What a reader stores while it fills a missing entry: an entry without a value."""

# CacheEntry's field `value`: its number, and that bytes follow behind their length.
_VALUE_TAG = (CacheEntry.DESCRIPTOR.fields_by_name["value"].number << 3) | 2

# The same of its field `mac`, a fixed64, and the bytes of both.
_MAC_TAG = bytes(((CacheEntry.DESCRIPTOR.fields_by_name["mac"].number << 3) | 1,))
_MAC_BYTES = 8
_SIGNED_BYTES = len(_MAC_TAG) + _MAC_BYTES

# A batch of usual entries in one piece.
_RECEIVE_BYTES = 65_536

# Their answers must fit the connection's buffers: nobody takes them until all are sent.
_COMMANDS_TOGETHER = 1_000

# memcached's idle_timeout is in whole seconds.
_IDLE_SECONDS = 0.5

# Above the largest value that a projector stores.
_MAX_VALUE_BYTES = 1 << 20


NEVER = 0
"""As a time after which an entry expires."""

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


class NodeTlsSettings(Block):
    """TLS to the cache's nodes. The files are read again for each connection."""

    ca_file: Path = Field(
        description="PEM file with the authority of the nodes' certificates, which must name their hosts"
    )
    certificate_file: Path | None = Field(None, description="PEM file with a certificate to show to the nodes")
    key_file: Path | None = Field(None, description="PEM file with its private key")

    @model_validator(mode="after")
    def _can_be_used(self) -> Self:
        if (self.certificate_file is None) != (self.key_file is None):
            raise ValueError("set certificate_file and key_file, or neither")
        try:
            self.context()
        except OSError as error:
            files = ", ".join(str(it) for it in (self.ca_file, self.certificate_file, self.key_file) if it)
            raise ValueError(f"{files} cannot be used: {error}") from None
        return self

    def context(self) -> ssl.SSLContext:
        """Takes nobody but who shows a certificate of the authority, for the host that is connected to. Raises OSError.

        A Unix socket is not asked.
        """
        context = ssl.create_default_context(cafile=self.ca_file)
        if self.certificate_file is not None:
            # Without the password OpenSSL would ask the terminal for one.
            context.load_cert_chain(self.certificate_file, self.key_file, password=lambda: "")
        return context


class SharedCacheSettings(SecretSettings):
    """What projector and query servers say alike of the cache."""

    tls: NodeTlsSettings | None = Field(None, description="Speak TLS to the nodes")
    secret: SecretStr | None = Field(
        None,
        min_length=16,
        description="Signs the cache's entries, at the projector and at the query servers alike: what others write"
        " there is not read. Without one, what was changed by accident is still found",
    )

    def signer(self) -> "Signer":
        """Raises SettingsError when the secret's file cannot be used."""
        return Signer(*self.read("cache"))


class Signer:
    """Signs entries, and knows those that were signed for their keys with one of its secrets. For any thread.

    It cannot know an entry that was there before, under the same epoch, from the one that is to be there now.
    """

    def __init__(self, *secrets: str) -> None:
        """The first one signs."""
        self._mac, *self._others = [mac_of(it, _MAC_BYTES) for it in secrets] or [_checksum]

    def sign(self, key: str, entry: bytes) -> bytes:
        return entry + _MAC_TAG + self._mac(key.encode("ascii") + entry)

    def unsigned(self, signed: Mapping[str, bytes], rows: Mapping[str, str]) -> dict[str, bytes]:
        """The entries of those that were signed for these keys, by the keys' rows. Raises KeyError for a key of no row.

        Each takes 0.5 µs, with a secret 1 µs.
        """
        mac, others = self._mac, self._others
        found = {}
        for key, it in signed.items():
            row, entry = rows[key], it[:-_SIGNED_BYTES]
            if it.endswith(mac(key.encode("ascii") + entry)) or (
                others and any(it.endswith(other(key.encode("ascii") + entry)) for other in others)
            ):
                found[row] = entry
        return found


def _checksum(signed: bytes) -> bytes:
    return crc32(signed).to_bytes(_MAC_BYTES, "little")


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


def parse_node(node: str) -> tuple[str, int] | str:
    """("host", port) of "host:port", the path of "unix:/path". Raises ValueError."""
    if node.startswith(UNIX_SOCKET):
        path = node.removeprefix(UNIX_SOCKET)
        if not path.startswith("/"):
            raise ValueError(f"{node!r} is not unix:/path")
        return path
    host, separator, port = node.rpartition(":")
    if not separator or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"{node!r} is not host:port, nor unix:/path")
    return host.strip("[]"), int(port)


class NodeClient(Client):  # type: ignore[misc]  # pymemcache has no types
    """pymemcache's, but for many entries: it takes an answer line by line, which costs most of a read or a write.

    What raises OSError, MemcacheError or ValueError has closed the connection: nobody knows what else it would say.
    """

    node: str
    """Its name."""
    tls: NodeTlsSettings | None = None

    # Of `ask`: how many are not answered, and what was received behind the answer that was read last.
    _unanswered = 0
    _following = b""
    # When it has been asked nothing for long enough to look, on the clock of time.monotonic().
    _idle_from = 0.0
    _events: select.poll

    def close(self) -> None:
        self._unanswered, self._following = 0, b""
        super().close()

    def was_closed(self) -> bool:
        """Whether the node has ended the connection while it was asked nothing, as it does after its `idle_timeout`.

        All that was sent before was answered. Looks after a pause alone: a look costs 0.4 µs.
        """
        if self._unanswered or time.monotonic() < self._idle_from or self.sock is None:
            return False
        return bool(self._events.poll(0))

    def ask(self, keys: Iterable[str]) -> "NodeClient":
        """Asks for entries, of at least one key; returns itself. It may ask again before it reads an answer, and do
        nothing else.
        """
        self._send(b"get %b\r\n" % " ".join(keys).encode("ascii"))
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

    def ask_with_cas(self, keys: Iterable[str]) -> dict[str, tuple[bytes, bytes]]:
        """As `ask` and `answer`, each with the number by which `replace_unchanged` knows that it is still there."""
        self._send(b"gets %b\r\n" % " ".join(keys).encode("ascii"))
        self._unanswered += 1
        numbers: dict[str, bytes] = {}
        try:
            return {key: (entry, numbers[key]) for key, entry in self._entries(numbers).items()}
        except Exception:
            self.close()
            raise

    def store(self, entries: Mapping[str, bytes], expire: int) -> None:
        """Stores all entries, by key, for so many seconds. Those that the node does not take are deleted instead.

        Each is answered: without answers (noreply) nobody could tell that one was missed.
        """
        commands = [_storing(b"set", key, entry, expire) for key, entry in entries.items()]
        lines = self._execute(commands, b"STORED")
        if lines.count(b"STORED") < len(lines):
            refused = [key for key, line in zip(entries, lines, strict=True) if line != b"STORED"]
            NOT_STORED.labels(self.node).inc(len(refused))
            # What was stored before is old now.
            self.remove(refused)

    def add_missing(self, entries: Mapping[str, bytes], expire: int) -> set[str]:
        """Stores those entries whose keys have none; returns their keys."""
        commands = [_storing(b"add", key, entry, expire) for key, entry in entries.items()]
        lines = self._execute(commands, b"STORED", b"NOT_STORED")
        return {key for key, line in zip(entries, lines, strict=True) if line == b"STORED"}

    def replace_unchanged(self, entries: Mapping[str, tuple[bytes, bytes]], expire: int) -> None:
        """Stores those entries whose keys have what `ask_with_cas` found there. entries: each with that number."""
        commands = [_storing(b"cas", key, entry, expire, b" " + cas) for key, (entry, cas) in entries.items()]
        lines = self._execute(commands, b"STORED", b"EXISTS", b"NOT_FOUND")
        NOT_STORED.labels(self.node).inc(sum([line.startswith(_REFUSAL) for line in lines]))

    def remove(self, keys: Sequence[str]) -> list[bool]:
        """Deletes entries; says for each key whether there was one."""
        lines = self._execute([b"delete %b\r\n" % key.encode("ascii") for key in keys], b"DELETED", b"NOT_FOUND")
        if any(line.startswith(_REFUSAL) for line in lines):
            self.close()
            raise MemcacheUnknownError("entries were not deleted")
        return [line == b"DELETED" for line in lines]

    def _connect(self) -> None:
        """Leaves the time-out of each `send` and `recv` to the kernel. Python's own has a system call before each.

        With TLS it must be Python's own: it would begin again what the kernel has given up.
        """
        self.tls_context = self.tls.context() if self.tls is not None else None
        super()._connect()
        self._events = select.poll()
        self._events.register(self.sock, select.POLLIN)
        if isinstance(self.sock, ssl.SSLSocket):
            return
        seconds = struct.pack("@ll", int(self.timeout), int(self.timeout % 1 * 1_000_000))
        self.sock.settimeout(None)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, seconds)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, seconds)

    def _send(self, commands: bytes) -> None:
        if self.sock is None:
            self._connect()
        try:
            self.sock.sendall(commands)
        except Exception:
            self.close()
            raise

    def _execute(self, commands: Sequence[bytes], *answers: bytes) -> list[bytes]:
        """The lines with which the node answers the commands: one of `answers` each, or a refusal."""
        lines: list[bytes] = []
        for start in range(0, len(commands), _COMMANDS_TOGETHER):
            together = commands[start : start + _COMMANDS_TOGETHER]
            self._send(b"".join(together))
            try:
                lines += self._lines(len(together), answers)
            except Exception:
                self.close()
                raise
        return lines

    def _lines(self, count: int, known: Sequence[bytes]) -> list[bytes]:
        began = time.monotonic()
        self._idle_from = began + _IDLE_SECONDS
        answer = self._receive()
        while (missing := count - answer.count(b"\r\n")) > 0:
            answer += self._receive_more(began)
        *lines, rest = answer.split(b"\r\n")
        if missing or rest:
            raise MemcacheUnknownError(f"more than {count} answers: {answer[-200:]!r}")
        for line in lines if lines.count(known[0]) < count else ():
            if line not in known and not line.startswith(_REFUSAL):
                raise MemcacheUnknownError(f"not done: {line[:200]!r}")
        return lines

    def _entries(self, numbers: dict[str, bytes] | None = None) -> dict[str, bytes]:
        """VALUE <key> <flags> <size> [<cas>], the entry on a line of its own, and so on, and END.

        numbers: takes the cas of each entry, where it was asked for.
        """
        found: dict[str, bytes] = {}
        began = time.monotonic()
        self._idle_from = began + _IDLE_SECONDS
        answer = self._following or self._receive()
        position = 0
        while True:
            end = answer.find(b"\r\n", position)
            if end < 0:
                answer += self._receive_more(began)
                continue
            line = answer[position:end]
            if line == b"END":
                self._unanswered -= 1
                self._following = answer[end + 2 :]
                if self._following and not self._unanswered:
                    raise MemcacheUnknownError(f"{len(self._following)} bytes after the last answer")
                return found
            if numbers is None:
                word, key, _, size = line.split(b" ")
            else:
                word, key, _, size, cas = line.split(b" ")
                numbers[key.decode("ascii")] = cas
            length = int(size)
            if word != b"VALUE" or not 0 <= length <= _MAX_VALUE_BYTES:
                raise MemcacheUnknownError(repr(line[:200]))
            position = end + 2 + length
            while len(answer) < position + 2:
                answer += self._receive_more(began)
            found[key.decode("ascii")] = answer[end + 2 : position]
            position += 2

    def _receive_more(self, began: float) -> bytes:
        """What follows of an answer that was begun to be read then. `timeout` bounds it as a whole."""
        if time.monotonic() - began > self.timeout:
            raise TimeoutError(f"the answer was not there after {self.timeout} s")
        return self._receive()

    def _receive(self) -> bytes:
        received: bytes = self.sock.recv(_RECEIVE_BYTES)
        if not received:
            raise MemcacheUnexpectedCloseError
        return received


# Nothing was done, and the connection is as good as before.
_REFUSAL = b"SERVER_ERROR "


def _storing(word: bytes, key: str, entry: bytes, expire: int, cas: bytes = b"") -> bytes:
    return b"%b %b 0 %d %d%b\r\n%b\r\n" % (word, key.encode("ascii"), expire, len(entry), cas, entry)


def node_client(node: str, *, timeout: float, tls: NodeTlsSettings | None = None) -> NodeClient:
    """A connection to one memcached node, for one thread. `timeout` in seconds, for connecting and for each answer.

    Who is not who the certificates of `tls` say is a node that fails, as one that is away.

    pymemcache's defaults are not ours: it would wait for ever, delay small packets, and call an `add` that was
    refused a success (default_noreply).
    """
    client = NodeClient(
        parse_node(node),
        connect_timeout=timeout,
        timeout=timeout,
        no_delay=True,
        default_noreply=False,
        ignore_exc=False,
        allow_unicode_keys=False,
    )
    client.node = node
    client.tls = tls
    return client
