"""memcached: a node that begins empty at each start, whatever it had."""

import select
import ssl
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pymemcache.client.base import Client
from pymemcache.exceptions import MemcacheError

from tandem.read_store.node import (
    COMMANDS_TOGETHER,
    IDLE_SECONDS,
    MAX_VALUE_BYTES,
    NOT_STORED,
    RECEIVE_BYTES,
    NodeAddress,
    NodeError,
    NodeStats,
    NodeTlsSettings,
    leave_time_outs_to_kernel,
)


class MemcachedClient(Client):  # type: ignore[misc]  # pymemcache has no types
    """A NodeClient: pymemcache's, but for many entries. It takes an answer line by line, which costs most of a read or
    a write.
    """

    node: str
    """Its name."""
    tls: NodeTlsSettings | None = None
    identity = ""

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
        # A look costs 0.4 µs.
        if self._unanswered or time.monotonic() < self._idle_from or self.sock is None:
            return False
        return bool(self._events.poll(0))

    def ask(self, keys: Iterable[str]) -> "MemcachedClient":
        self._send(b"get %b\r\n" % " ".join(keys).encode("ascii"))
        self._unanswered += 1
        return self

    def answer(self) -> dict[str, bytes]:
        assert self._unanswered, "nothing was asked for"
        try:
            return self._entries()
        except ValueError as error:
            self.close()
            raise NodeError(f"not memcached's words: {error}") from error
        except Exception:
            self.close()
            raise

    def ask_with_cas(self, keys: Iterable[str]) -> dict[str, tuple[bytes, bytes]]:
        self._send(b"gets %b\r\n" % " ".join(keys).encode("ascii"))
        self._unanswered += 1
        numbers: dict[str, bytes] = {}
        try:
            return {key: (entry, numbers[key]) for key, entry in self._entries(numbers).items()}
        except ValueError as error:
            self.close()
            raise NodeError(f"not memcached's words: {error}") from error
        except Exception:
            self.close()
            raise

    def store(self, entries: Mapping[str, bytes], expire: int) -> None:
        # Each is answered: without answers (noreply) nobody could tell that one was missed.
        commands = [_storing(b"set", key, entry, expire) for key, entry in entries.items()]
        lines = self._execute(commands, b"STORED")
        if lines.count(b"STORED") < len(lines):
            refused = [key for key, line in zip(entries, lines, strict=True) if line != b"STORED"]
            NOT_STORED.labels(self.node).inc(len(refused))
            # What was stored before is old now.
            self.remove(refused)

    def add_missing(self, entries: Mapping[str, bytes], expire: int) -> set[str]:
        commands = [_storing(b"add", key, entry, expire) for key, entry in entries.items()]
        lines = self._execute(commands, b"STORED", b"NOT_STORED")
        return {key for key, line in zip(entries, lines, strict=True) if line == b"STORED"}

    def replace_unchanged(self, entries: Mapping[str, tuple[bytes, bytes]], expire: int) -> None:
        commands = [_storing(b"cas", key, entry, expire, b" " + cas) for key, (entry, cas) in entries.items()]
        lines = self._execute(commands, b"STORED", b"EXISTS", b"NOT_FOUND")
        NOT_STORED.labels(self.node).inc(sum([line.startswith(_REFUSAL) for line in lines]))

    def remove(self, keys: Sequence[str]) -> list[bool]:
        lines = self._execute([b"delete %b\r\n" % key.encode("ascii") for key in keys], b"DELETED", b"NOT_FOUND")
        if any(line.startswith(_REFUSAL) for line in lines):
            self.close()
            raise NodeError("entries were not deleted")
        return [line == b"DELETED" for line in lines]

    def stats(self) -> NodeStats:
        said = self._asked(super().stats)
        return NodeStats(*(int(said[it]) for it in (b"curr_items", b"bytes", b"limit_maxbytes", b"evictions")))

    def ping(self) -> None:
        self._asked(super().version)

    def _asked(self, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except (MemcacheError, ValueError) as error:
            self.close()
            raise NodeError(str(error) or type(error).__name__) from error

    def _connect(self) -> None:
        self.tls_context = self.tls.context() if self.tls is not None else None
        super()._connect()
        self._events = select.poll()
        self._events.register(self.sock, select.POLLIN)
        if isinstance(self.sock, ssl.SSLSocket):
            return
        leave_time_outs_to_kernel(self.sock, self.timeout)

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
        for start in range(0, len(commands), COMMANDS_TOGETHER):
            together = commands[start : start + COMMANDS_TOGETHER]
            self._send(b"".join(together))
            try:
                lines += self._lines(len(together), answers)
            except Exception:
                self.close()
                raise
        return lines

    def _lines(self, count: int, known: Sequence[bytes]) -> list[bytes]:
        began = time.monotonic()
        self._idle_from = began + IDLE_SECONDS
        answer = self._receive()
        while (missing := count - answer.count(b"\r\n")) > 0:
            answer += self._receive_more(began)
        *lines, rest = answer.split(b"\r\n")
        if missing or rest:
            raise NodeError(f"more than {count} answers: {answer[-200:]!r}")
        for line in lines if lines.count(known[0]) < count else ():
            if line not in known and not line.startswith(_REFUSAL):
                raise NodeError(f"not done: {line[:200]!r}")
        return lines

    def _entries(self, numbers: dict[str, bytes] | None = None) -> dict[str, bytes]:
        """VALUE <key> <flags> <size> [<cas>], the entry on a line of its own, and so on, and END.

        numbers: takes the cas of each entry, where it was asked for.
        """
        found: dict[str, bytes] = {}
        began = time.monotonic()
        self._idle_from = began + IDLE_SECONDS
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
                    raise NodeError(f"{len(self._following)} bytes after the last answer")
                return found
            if numbers is None:
                word, key, _, size = line.split(b" ")
            else:
                word, key, _, size, cas = line.split(b" ")
                numbers[key.decode("ascii")] = cas
            length = int(size)
            if word != b"VALUE" or not 0 <= length <= MAX_VALUE_BYTES:
                raise NodeError(repr(line[:200]))
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
        received: bytes = self.sock.recv(RECEIVE_BYTES)
        if not received:
            raise NodeError("it closed the connection")
        return received


# Nothing was done, and the connection is as good as before.
_REFUSAL = b"SERVER_ERROR "


def _storing(word: bytes, key: str, entry: bytes, expire: int, cas: bytes = b"") -> bytes:
    return b"%b %b 0 %d %d%b\r\n%b\r\n" % (word, key.encode("ascii"), expire, len(entry), cas, entry)


def memcached_client(node: str, address: NodeAddress, timeout: float, tls: NodeTlsSettings | None) -> MemcachedClient:
    """timeout: in seconds, for connecting and for each answer.

    pymemcache's defaults are not ours: it would wait for ever, delay small packets, and call an `add` that was
    refused a success (default_noreply).
    """
    client = MemcachedClient(
        address.path or (address.host, address.port),
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
