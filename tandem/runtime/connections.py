"""Bounds what a connection makes this process hold: answers that its caller does not take, requests that do not end.

The transports' libraries keep both in memory, whatever they come to, and say nothing of it. The kernel does (TCP_INFO):
of the bytes that were given to a library for a connection, those that the caller's machine has acknowledged are held no
more; of the bytes that came, those of the requests that the library has handed over are not held by it.

    unread      + what was given as answers     - what the caller's machine has acknowledged
    unfinished  + what came                     - what was handed over as requests, and what may have been headers

Neither falls below nothing, so that what else is sent and acknowledged (headers, pings) does not add up. What is
dropped because a call was cancelled is held by nobody: it is made up for by forgetting a part. A connection that holds
too much is closed, and when all together do, the one that holds most. Its calls end as those of any caller that has
gone.

For TCP on Linux. Of Unix sockets the kernel says less: what was written to all of them together (`UnixConnections`).
"""

import contextlib
import errno
import os
import re
import socket
import stat
import struct
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from prometheus_client import Counter, Gauge

from tandem.runtime.settings import UNIX_SOCKET, ServerSettings
from tandem.runtime.supervised import SupervisedThread
from tandem.runtime.telemetry import log

HELD = Gauge("tandem_held_bytes", "Bytes of unread answers and unfinished requests that connections make us hold")
CLOSED = Counter("tandem_connections_closed_total", "Connections closed because they made us hold too much")

COUNTED_BYTES = 1024
"""Smaller messages are not counted, so that they cost nothing: the number of calls of a connection bounds them."""

# A look at a connection takes 15 µs. All looks together take at most a hundredth of a processor; where more than this
# was given since the last look, a twentieth.
_PAUSE_SECONDS = 0.25
_LOOKS = 1 / 100
_EARLY_LOOKS = 1 / 20
_EARLY_BYTES = 32 * 1024 * 1024
# What the headers of a request may take: more are refused.
_HEADER_BYTES = 16 * 1024
# Calls that are cancelled leave a remainder in both numbers that is not held. It is forgotten at this rate, and of
# answers this part too: who takes seven eighths of what it asks for is not bounded.
_FORGOTTEN_BYTES_A_SECOND = 16 * 1024
_FORGOTTEN_OF_ANSWERS = 8
# Window updates and acknowledgements that a caller sends for what it takes are less than this part of it.
_UPDATES = 128
# linux/tcp.h: tcpi_bytes_acked and tcpi_bytes_received in struct tcp_info.
_ACKED_AND_RECEIVED = struct.Struct("=120xQQ")
# In /proc/…/io: what system calls that write were given, for sockets too.
_WRITTEN = re.compile(rb"^wchar: ([0-9]+)", re.MULTILINE)


class Connection:
    """What was exchanged with a caller: calls, and bytes of counted requests and answers.

    Transports add to `calls` and `requests`, each on one thread.
    """

    __slots__ = ("calls", "given", "missed", "requests", "seen", "unfinished", "unread")

    def __init__(self) -> None:
        self.given = 0
        self.requests = 0
        self.calls = 0
        self.seen: _Seen | None = None
        self.unread = 0.0
        self.unfinished = 0.0
        self.missed = 0

    @property
    def held(self) -> int:
        return int(self.unread + self.unfinished)

    def look(self, acked: int, received: int) -> None:
        """Compares with the last look what the kernel says of the connection."""
        if self.seen is not None and (acked < self.seen.acked or received < self.seen.received):
            # Another connection, from the same port.
            self.unread, self.unfinished, self.seen = 0.0, 0.0, None
            self.given = self.requests = self.calls = 0
        seen = _Seen(self.given, self.requests, self.calls, acked, received, time.monotonic())
        last, self.seen = self.seen or _Seen(0, 0, 0, 0, 0, seen.at), seen
        forgotten = (seen.at - last.at) * _FORGOTTEN_BYTES_A_SECOND
        taken = seen.acked - last.acked
        given = (seen.given - last.given) * (1 - 1 / _FORGOTTEN_OF_ANSWERS)
        # Answers to calls that are not counted, health and the like: they were not given by us, and were taken.
        uncounted = max(0.0, taken - (seen.given - last.given) - self.unread)
        self.unread = max(0.0, self.unread + given - taken - forgotten)
        more = seen.received - last.received - (seen.requests - last.requests) - uncounted
        if more > 0:
            more = max(0, more - (seen.calls - last.calls) * _HEADER_BYTES - taken // _UPDATES)
        self.unfinished = max(0.0, self.unfinished + more - forgotten)


class Sent:
    """What a stream has given to its connection."""

    def __init__(self, connections: "Connections", peer: str) -> None:
        self._connections = connections
        self._peer = peer
        self._latest = deque((0, 0), maxlen=2)

    def add(self, size: int) -> None:
        self._latest.append(size)
        self._connections.give(self._peer, size)

    def drop(self) -> None:
        """The caller has gone. The library drops what it still has of the stream, at most two messages."""
        self._connections.give(self._peer, -sum(self._latest))


class _Seen(NamedTuple):
    given: int
    requests: int
    calls: int
    acked: int
    received: int
    at: float


class Connections:
    """Of one server, by the names that its transport gives to peers."""

    def __init__(self, settings: ServerSettings) -> None:
        self._most_of_one = settings.max_held_bytes_per_connection
        self._most_of_all = settings.max_held_bytes
        self._port = 0
        self.by_peer: dict[str, Connection] = {}
        self._given = 0
        self._adding = threading.Lock()
        self._stopping = False
        self._early = threading.Event()
        self._thread = SupervisedThread("connections", self._run)

    def start(self, port: int) -> None:
        """port: of which the kernel knows the connections."""
        self._port = port
        self._thread.start()

    def stop(self) -> None:
        self._stopping = True
        self._early.set()
        self._thread.join()

    def of(self, peer: str) -> Connection:
        """From any thread."""
        connection = self.by_peer.get(peer)
        return connection if connection is not None else self.by_peer.setdefault(peer, Connection())

    def take(self, peer: str, size: int) -> None:
        """Counts a call and its request."""
        connection = self.of(peer)
        connection.calls += 1
        connection.requests += size

    def give(self, peer: str, size: int) -> None:
        """Counts an answer, from any thread."""
        with self._adding:
            self.of(peer).given += size
            self._given += size
            if self._given > _EARLY_BYTES:
                self._early.set()

    def _run(self) -> None:
        took = 0.0
        while not self._stopping:
            if not self._early.wait(max(_PAUSE_SECONDS, took / _LOOKS)):
                took = self._timed_look()
            elif not self._stopping:
                time.sleep(took / _EARLY_LOOKS)
                took = self._timed_look()

    def _timed_look(self) -> float:
        began = time.thread_time()
        self._given = 0
        self._early.clear()
        try:
            self._look()
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            log.warning("no descriptor is left to look at connections with")
        return time.thread_time() - began

    def _look(self) -> None:
        held = 0
        most: tuple[int, str] = (0, "")
        seen = set()
        for sock, peer in self._sockets():
            connection = self.of(peer)
            seen.add(peer)
            with contextlib.suppress(OSError):
                information = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                connection.look(*_ACKED_AND_RECEIVED.unpack_from(information))
            if connection.held > self._most_of_one:
                self._close(sock, peer, connection)
            else:
                held += connection.held
                most = max(most, (connection.held, peer))
        HELD.set(held)
        if held > self._most_of_all:
            for sock, peer in self._sockets():
                if peer == most[1]:
                    self._close(sock, peer, self.of(peer))
        for peer, connection in list(self.by_peer.items()):
            connection.missed = 0 if peer in seen else connection.missed + 1
            # One that was made since the look began is not there yet.
            if connection.missed > 1:
                self.by_peer.pop(peer, None)

    def _sockets(self) -> Iterator[tuple[socket.socket, str]]:
        """The server's connections, with the names of their peers. A socket is a duplicate, closed after its turn."""
        for sock in _all_sockets():
            try:
                if sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.getsockname()[1] != self._port:
                    continue
                host, port = sock.getpeername()[:2]
            except OSError:
                # It listens, or is closed.
                continue
            yield sock, self._name(host, port)

    def _name(self, host: str, port: int) -> str:
        """As transports name a peer: each has its own way with IPv6."""
        if ":" not in host:
            return f"ipv4:{host}:{port}"
        names = [f"ipv6:[{host}]:{port}", f"ipv6:%5B{host}%5D:{port}", f"ipv4:{host.removeprefix('::ffff:')}:{port}"]
        return next((it for it in names if it in self.by_peer), names[0])

    def _close(self, sock: socket.socket, peer: str, connection: Connection) -> None:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
        CLOSED.inc()
        log.warning(
            "a connection makes this server hold too much and is closed",
            peer=peer,
            unread_bytes=int(connection.unread),
            unfinished_bytes=int(connection.unfinished),
        )


class UnixConnections(Connections):
    """Of a server on a Unix socket: unread answers alone, and of all its callers together.

    What each thread has written is known to the kernel, and not to whom. So past `max_held_bytes` all connections are
    closed: which of them it is cannot be found out, and their callers make new ones.
    """

    def __init__(self, settings: ServerSettings) -> None:
        super().__init__(settings)
        self._path = settings.host.removeprefix(UNIX_SOCKET)
        self._writers: Sequence[Path] = ()
        self._all_callers = Connection()

    def count_what_is_written_by(self, threads: Iterable[int]) -> None:
        """Before the start; without it nothing is counted. threads: by their ids; they write to callers alone."""
        self._writers = [Path(f"/proc/self/task/{it}/io") for it in threads]
        try:
            self._written()
        except OSError as error:
            log.warning("what callers of a Unix socket do not read is not counted", error=str(error))
            self._writers = ()

    def of(self, peer: str) -> Connection:
        return self.by_peer.setdefault(peer, self._all_callers)

    def _look(self) -> None:
        if not self._writers:
            return
        every = self._all_callers
        # What came is not counted by the kernel: nothing of it is unfinished.
        every.look(self._written(), every.requests)
        HELD.set(every.held)
        if every.held > self._most_of_all:
            for sock in _all_sockets():
                with contextlib.suppress(OSError):
                    if sock.family == socket.AF_UNIX and sock.getsockname() == self._path and not _listens(sock):
                        self._close(sock, f"{UNIX_SOCKET}{self._path}", every)
            every.unread = 0.0
        self.by_peer.clear()

    def _written(self) -> int:
        return sum(int(_WRITTEN.findall(it.read_bytes())[0]) for it in self._writers)


def connections_of(settings: ServerSettings) -> Connections:
    return UnixConnections(settings) if settings.host.startswith(UNIX_SOCKET) else Connections(settings)


def threads_of_this_process() -> set[int]:
    """By their ids."""
    return {int(it) for it in os.listdir("/proc/self/task")}


def _listens(sock: socket.socket) -> bool:
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _all_sockets() -> Iterator[socket.socket]:
    """This process's. Each is a duplicate, closed after its turn."""
    for entry in os.listdir("/proc/self/fd"):
        try:
            copy = os.dup(int(entry))
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
            # Closed since.
            continue
        if not stat.S_ISSOCK(os.fstat(copy).st_mode):
            os.close(copy)
            continue
        with socket.socket(fileno=copy) as sock:
            yield sock
