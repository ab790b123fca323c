"""Redis, or Valkey: a node that may come back with what it had once.

It may keep its data on a disk and on replicas, and what comes back from there may be old. So the epochs of such a node
end with what it is: the process that runs, and the history of its data as replication knows it. After a start, a
failover, or a turn as another one's replica it is another one, and nobody reads what was stored there before. A node
whose data are replaced under a connection, by such a turn or by FLUSHALL, says so on it, and that ends the connection.

The names of a cluster's parts are not nodes: it moves keys among them by itself.
"""

import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import blake2b
from secrets import token_bytes
from typing import Any, cast

from hiredis import HiredisError, PushNotification, Reader, ReplyError, pack_command

from tandem.read_store.node import (
    COMMANDS_TOGETHER,
    IDLE_SECONDS,
    MAX_VALUE_BYTES,
    NEVER,
    NOT_STORED,
    RECEIVE_BYTES,
    LoginSettings,
    NodeAddress,
    NodeError,
    NodeStats,
    NodeTlsSettings,
    leave_time_outs_to_kernel,
)

# Of a reader that has not all of a reply yet.
_NOT_YET = object()

# No key begins so. Who tracks it is told of nothing but that all keys are gone, as before a replica takes another's.
_NO_KEY = "-"

# What an empty entry begins with, as a placeholder is, before eight random bytes: one can be told from another then.
# No other entry begins so, or it has this and a number too. None is stored as no bytes at all.
_NUMBERED = b"\0"
_NUMBERED_BYTES = 9

_REPLACE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3]) end"

# Nothing was done, and the connection is as good as before.
_REFUSAL = "OOM command not allowed"

Command = tuple[str | bytes, ...]

# Its stub has it take one word alone.
packed: Callable[[Command], bytes] = cast("Any", pack_command)
"""A command as it is sent."""


class RedisClient:
    """A NodeClient."""

    def __init__(
        self,
        node: str,
        address: NodeAddress,
        *,
        timeout: float,
        tls: NodeTlsSettings | None,
        login: LoginSettings | None,
    ) -> None:
        self._node = node
        self._address = address
        self._timeout = timeout
        self._tls = tls
        self._login = login
        self._socket: socket.socket | None = None
        self._reader = Reader()
        self._events = select.poll()
        # The keys of each `ask` that is not answered.
        self._asked: deque[tuple[str, ...]] = deque()
        self._identity = ""
        # When it has been asked nothing for long enough to look, on the clock of time.monotonic().
        self._idle_from = 0.0

    @property
    def identity(self) -> str:
        if self._socket is None:
            self._connect()
        return self._identity

    def close(self) -> None:
        self._asked.clear()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def was_closed(self) -> bool:
        if self._asked or self._socket is None or time.monotonic() < self._idle_from:
            return False
        # What it says without being asked ends the connection too.
        return bool(self._events.poll(0)) or (isinstance(self._socket, ssl.SSLSocket) and self._socket.pending() > 0)

    def ask(self, keys: Iterable[str]) -> "RedisClient":
        names = tuple(keys)
        if f"{self.identity}:" not in names[0]:
            self.close()
            raise NodeError("it is not what it was when the epoch began: it started anew, or another one is the node")
        self._send(packed(("MGET", *names)))
        self._asked.append(names)
        return self

    def answer(self) -> dict[str, bytes]:
        return {key: value if value[0] else value[_NUMBERED_BYTES:] for key, value in self._values() if value}

    def ask_with_cas(self, keys: Iterable[str]) -> dict[str, tuple[bytes, bytes]]:
        self.ask(keys)
        return {key: (value if value[0] else value[_NUMBERED_BYTES:], value) for key, value in self._values() if value}

    def store(self, entries: Mapping[str, bytes], expire: int) -> None:
        replies = self._execute([("SET", key, _stored(entry), *_life(expire)) for key, entry in entries.items()])
        if replies.count(b"OK") < len(replies):
            refused = [key for key, reply in zip(entries, replies, strict=True) if reply != b"OK"]
            NOT_STORED.labels(self._node).inc(len(refused))
            # What was stored before is old now.
            self.remove(refused)

    def add_missing(self, entries: Mapping[str, bytes], expire: int) -> set[str]:
        replies = self._execute([("SET", key, _stored(entry), "NX", *_life(expire)) for key, entry in entries.items()])
        return {key for key, reply in zip(entries, replies, strict=True) if reply == b"OK"}

    def replace_unchanged(self, entries: Mapping[str, tuple[bytes, bytes]], expire: int) -> None:
        replies = self._execute(
            [("EVAL", _REPLACE, "1", key, cas, _stored(entry), str(expire)) for key, (entry, cas) in entries.items()]
        )
        NOT_STORED.labels(self._node).inc(sum([isinstance(reply, ReplyError) for reply in replies]))

    def remove(self, keys: Sequence[str]) -> list[bool]:
        replies = self._execute([("DEL", key) for key in keys])
        if any(isinstance(reply, ReplyError) for reply in replies):
            self.close()
            raise NodeError("entries were not deleted")
        return [reply == 1 for reply in replies]

    def stats(self) -> NodeStats:
        memory, counts, entries = self._execute([("INFO", "memory"), ("INFO", "stats"), ("DBSIZE",)])
        said = _fields(memory) | _fields(counts)
        return NodeStats(entries, *(int(said[it]) for it in ("used_memory", "maxmemory", "evicted_keys")))

    def ping(self) -> None:
        if self._identity_now() != self.identity:
            self.close()
            raise NodeError("it is not what it was")

    def _connect(self) -> None:
        host, port, path = self._address.host, self._address.port, self._address.path
        # Read before there is a socket to be closed.
        context = self._tls.context() if self._tls else ssl.create_default_context() if self._address.tls else None
        login = self._login.read() if self._login is not None else None
        if path:
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.settimeout(self._timeout)
        try:
            if self._socket is not None:
                self._socket.connect(path)
            else:
                self._socket = socket.create_connection((host, port), self._timeout)
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if context is not None and not path:
                self._socket = context.wrap_socket(self._socket, server_hostname=host)
            else:
                leave_time_outs_to_kernel(self._socket, self._timeout)
            self._events = select.poll()
            self._events.register(self._socket, select.POLLIN)
            self._reader = Reader(notEnoughData=_NOT_YET)
            self._greet(login)
        except Exception:
            self.close()
            raise

    def _greet(self, login: tuple[str, str] | None) -> None:
        hello: Command = ("HELLO", "3", *(("AUTH", *login) if login is not None else ()))
        # It is told of what happens to the data before it looks what they are.
        tracking: Command = ("CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", _NO_KEY)
        asked = [hello, tracking, ("INFO", "server"), ("INFO", "replication")]
        self._send(b"".join(map(packed, asked)))
        greeting, *others = self._replies(len(asked))
        if isinstance(greeting, ReplyError):
            # A server that does not know HELLO repeats all that it was told.
            problem = str(greeting).split(" ", 1)[0]
            raise NodeError(f"it refuses who connects ({problem}): see CACHE__LOGIN__…; it must be Redis 6 or newer")
        mode = greeting[b"mode"].decode()
        if mode != "standalone":
            raise NodeError(f"it runs as {mode}, which is not supported: a node is a server of its own")
        for it in others:
            if isinstance(it, ReplyError):
                raise NodeError(str(it)[:200])
        _, server, replication = others
        self._identity = _identity_of(server, replication)

    def _identity_now(self) -> str:
        return _identity_of(*self._execute([("INFO", "server"), ("INFO", "replication")]))

    def _execute(self, commands: Sequence[Command]) -> list[Any]:
        """What the node replies to each command; a ReplyError for one that it has no room for."""
        replies: list[Any] = []
        for start in range(0, len(commands), COMMANDS_TOGETHER):
            together = commands[start : start + COMMANDS_TOGETHER]
            self._send(b"".join(map(packed, together)))
            replies += self._replies(len(together))
        for it in replies:
            if isinstance(it, ReplyError) and _REFUSAL not in str(it):
                self.close()
                raise NodeError(str(it)[:200])
        return replies

    def _values(self) -> Iterable[tuple[str, bytes | None]]:
        """The answer to what was asked for first."""
        assert self._asked, "nothing was asked for"
        names = self._asked[0]
        [values] = self._replies(1, len(names))
        if type(values) is not list or len(values) != len(names) or not _VALUES.issuperset(map(type, values)):
            self.close()
            raise NodeError(f"no answer to what was asked for: {str(values)[:200]}")
        self._asked.popleft()
        return zip(names, values, strict=True)

    def _send(self, commands: bytes) -> None:
        if self._socket is None:
            self._connect()
        assert self._socket is not None
        try:
            self._socket.sendall(commands)
        except Exception:
            self.close()
            raise

    def _replies(self, count: int, values: int = 0) -> list[Any]:
        """values: how many entries they have at most."""
        began = time.monotonic()
        self._idle_from = began + IDLE_SECONDS
        replies: list[Any] = []
        reader, most = self._reader, (count + values) * MAX_VALUE_BYTES
        try:
            while len(replies) < count:
                reply = reader.gets()
                if reply is _NOT_YET:
                    received = self._receive(began)
                    reader.feed(received)
                    most -= len(received)
                    if most < 0:
                        raise NodeError("its answer is larger than any can be")
                elif type(reply) is PushNotification:
                    raise NodeError("its data were replaced")
                else:
                    replies.append(reply)
        except (HiredisError, MemoryError) as error:
            self.close()
            raise NodeError(f"not Redis's words: {error}") from error
        except Exception:
            self.close()
            raise
        return replies

    def _receive(self, began: float) -> bytes:
        """More of what was begun to be read then. The time-out bounds it as a whole."""
        if time.monotonic() - began > self._timeout:
            raise TimeoutError(f"the answer was not there after {self._timeout} s")
        assert self._socket is not None
        received = self._socket.recv(RECEIVE_BYTES)
        if not received:
            raise NodeError("it closed the connection")
        return received


# What a key has in an answer: an entry, or nothing.
_VALUES = frozenset((bytes, type(None)))


def _stored(entry: bytes) -> bytes:
    return entry if entry[:1] > _NUMBERED else _NUMBERED + token_bytes(_NUMBERED_BYTES - 1) + entry


def _life(expire: int) -> Command:
    return () if expire == NEVER else ("EX", str(expire))


def _fields(info: bytes) -> dict[str, str]:
    """Of an answer to INFO: lines of name:value, and others."""
    return dict(it.split(":", 1) for it in info.decode().splitlines() if ":" in it)


def _identity_of(server: bytes, replication: bytes) -> str:
    """Of the answers to INFO. Raises NodeError for a replica, and for what does not say what it is."""
    said = _fields(server) | _fields(replication)
    if said.get("role") != "master":
        raise NodeError("it is a replica: a node is a primary, by an address that leads there after a failover too")
    try:
        words = f"{said['run_id']} {said['master_replid']}"
    except KeyError as error:
        raise NodeError(f"it does not say its {error}, by which a start and a failover are noticed") from None
    return "-" + blake2b(words.encode(), digest_size=8).hexdigest()  # as long as NodeAddress has it
