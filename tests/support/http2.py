"""HTTP/2 as no library lets it be: a client that sends half of a call and reads nothing, a server that resets them."""

import contextlib
import random
import socket
import struct
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from hpack import Decoder

_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 8
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
_INITIAL_WINDOW = 4
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class RawConnection:
    """reads: takes what the server sends, and keeps to its windows; else the server's answers stay where they are."""

    def __init__(self, to: int | Path, *, reads: bool, window: int = 65_535) -> None:
        """to: a port of loopback, or a Unix socket."""
        if isinstance(to, Path):
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.connect(str(to))
        else:
            self.socket = socket.socket()
            if not reads:
                # What the kernel keeps of it is known then: else it may make room for some megabytes.
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
            self.socket.connect(("127.0.0.1", to))
        self._stream = -1
        self._sending = threading.Lock()
        self._changed = threading.Condition()
        self._first_window = 65_535
        self._window = 65_535
        self._windows: dict[int, int] = {}
        self.ended = threading.Event()
        """Set when the server has closed the connection, if this client reads."""
        self.ended_streams: set[int] = set()
        """Calls that were answered, or that the server has given up."""
        self.headers: dict[int, dict[str, str]] = {}
        """Of calls: those of the answer, and what came behind it."""
        self._decoder = Decoder()
        self._ponged = threading.Event()
        settings = struct.pack(">HI", _INITIAL_WINDOW, window)
        self.socket.sendall(_PREFACE + _frame(_SETTINGS, 0, 0, settings))
        if reads:
            threading.Thread(target=self._read, daemon=True).start()

    def open(self, path: str, *, end: bool = False, headers: Iterable[tuple[str, str]] = ()) -> int:
        """Begins a call; end: that was all, without a message. headers: more of them, or others."""
        self._stream += 2
        pseudo = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "test"}
        all_headers = pseudo | {"content-type": "application/grpc", "te": "trailers"} | dict(headers)
        block = b"".join(b"\0" + _text(name) + _text(value) for name, value in all_headers.items())
        self._windows[self._stream] = self._first_window
        self._send(_frame(_HEADERS, _END_HEADERS | (_END_STREAM if end else 0), self._stream, block))
        return self._stream

    def send(self, stream: int, data: bytes, *, end: bool = False) -> None:
        """A piece of a call's body. Waits for room in the windows; TimeoutError after 20 s without any.

        ConnectionError when the server closes the connection.
        """

        def go_on() -> bool:
            return self.ended.is_set() or min(self._window, self._windows[stream]) > 0

        while data or end:
            with self._changed:
                if data and not self._changed.wait_for(go_on, 20):
                    raise TimeoutError("the server gives no room")
                if self.ended.is_set():
                    raise ConnectionResetError("the server has closed the connection")
                size = min(len(data), self._window, self._windows[stream], 16_384)
                self._window -= size
                self._windows[stream] -= size
            piece, data = data[:size], data[size:]
            last = end and not data
            self._send(_frame(_DATA, _END_STREAM if last else 0, stream, piece))
            end = end and not last

    def call(self, path: str, request: bytes = b"") -> int:
        stream = self.open(path)
        self.send(stream, message(request), end=True)
        return stream

    def reset(self, stream: int) -> None:
        self._send(_frame(_RST_STREAM, 0, stream, struct.pack(">I", 8)))

    def ping(self) -> threading.Event:
        """Set when the server has read all that was sent before, if this client reads. One at a time."""
        self._ponged = threading.Event()
        self._send(_frame(_PING, 0, 0, bytes(8)))
        return self._ponged

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()

    def _send(self, data: bytes) -> None:
        with self._sending:
            self.socket.sendall(data)

    def _read(self) -> None:
        file = self.socket.makefile("rb")
        with contextlib.suppress(OSError, ValueError):
            while head := file.read(9):
                length, kind, flags = int.from_bytes(head[:3], "big"), head[3], head[4]
                stream = int.from_bytes(head[5:9], "big") & 0x7FFFFFFF
                self._take(kind, flags, stream, file.read(length))
        self.ended.set()
        with self._changed:
            self._changed.notify_all()

    def _take(self, kind: int, flags: int, stream: int, body: bytes) -> None:
        if kind == _SETTINGS and not flags & _ACK:
            for place in range(0, len(body), 6):
                name, value = struct.unpack_from(">HI", body, place)
                if name == _INITIAL_WINDOW:
                    with self._changed:
                        for it in self._windows:
                            self._windows[it] += value - self._first_window
                        self._first_window = value
                        self._changed.notify_all()
            self._send(_frame(_SETTINGS, _ACK, 0, b""))
        elif kind == _PING:
            self._ponged.set() if flags & _ACK else self._send(_frame(_PING, _ACK, 0, body))
        elif kind == _WINDOW_UPDATE:
            with self._changed:
                if stream:
                    self._windows[stream] = self._windows.get(stream, 0) + int.from_bytes(body, "big")
                else:
                    self._window += int.from_bytes(body, "big")
                self._changed.notify_all()
        elif kind in (_HEADERS, _DATA, _RST_STREAM):
            if kind == _HEADERS:
                decoded = self._decoder.decode(body)
                self.headers.setdefault(stream, {}).update((str(name), str(value)) for name, value in decoded)
            if flags & _END_STREAM or kind == _RST_STREAM:
                self.ended_streams.add(stream)


class ScriptedServer:
    """Does as it is told with all calls but those of health, which says SERVING."""

    def __init__(self) -> None:
        self.behaviour: Literal["answers", "resets", "is unavailable"] = "answers"
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=(self.socket.accept()[0],), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        decoder = Decoder()
        with contextlib.suppress(OSError), connection, connection.makefile("rb") as file:
            file.read(len(_PREFACE))
            connection.sendall(_frame(_SETTINGS, 0, 0, b""))
            while head := file.read(9):
                kind, flags, stream = head[3], head[4], int.from_bytes(head[5:9], "big") & 0x7FFFFFFF
                body = file.read(int.from_bytes(head[:3], "big"))
                if kind in (_SETTINGS, _PING) and not flags & _ACK:
                    connection.sendall(_frame(kind, _ACK, 0, body if kind == _PING else b""))
                elif kind == _HEADERS:
                    connection.sendall(self._answer(stream, dict(decoder.decode(body))))

    def _answer(self, stream: int, headers: dict[str | bytes, str | bytes]) -> bytes:
        health = str(headers[":path"]).startswith("/grpc.health.v1.Health/")
        behaviour = "answers" if health else self.behaviour
        if behaviour == "resets":
            return _frame(_RST_STREAM, 0, stream, struct.pack(">I", 2))
        # 200 and content-type, then a message, SERVING as health has it, then the status.
        begins = b"\x88\0" + _text("content-type") + _text("application/grpc")
        ends = b"\0" + _text("grpc-status") + _text("0")
        if behaviour == "is unavailable":
            refused = begins + b"\0" + _text("grpc-status") + _text("14")
            return _frame(_HEADERS, _END_HEADERS | _END_STREAM, stream, refused)
        return (
            _frame(_HEADERS, _END_HEADERS, stream, begins)
            + _frame(_DATA, 0, stream, message(b"\x08\x01" if health else b""))
            + _frame(_HEADERS, _END_HEADERS | _END_STREAM, stream, ends)
        )


def message(body: bytes, *, compressed: bool = False) -> bytes:
    """As gRPC has it."""
    return bytes([compressed]) + struct.pack(">I", len(body)) + body


def broken_connections(chance: random.Random) -> dict[str, bytes]:
    """What is sent by callers that speak something else than gRPC, or half of it; by what it is."""
    empty = _frame(_SETTINGS, 0, 0, b"")
    # HEADERS that do not end, then CONTINUATION (9).
    endless = _frame(_HEADERS, _END_STREAM, 1, b"\x82") + 2000 * _frame(9, 0, 1, bytes(256))
    return {
        "garbage": chance.randbytes(2000),
        "HTTP/1.1": b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
        "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + chance.randbytes(200),
        "half a preface": _PREFACE[:10],
        "nothing after the preface": _PREFACE,
        "a flood of pings": _PREFACE + empty + 2000 * _frame(_PING, 0, 0, b"pingpong"),
        "a flood of settings": _PREFACE + 2000 * empty,
        "a frame that is too large": _PREFACE + empty + b"\xff\xff\xff\0\0\0\0\0\1",
        "headers that do not end": _PREFACE + empty + endless,
        "frames at random": broken_frames(chance),
    }


def broken_frames(chance: random.Random) -> bytes:
    """Of any kind, with any flags, on any stream, behind a right beginning."""
    made = _PREFACE + _frame(_SETTINGS, 0, 0, b"")
    for _ in range(20):
        body = chance.randbytes(chance.randrange(64))
        made += _frame(chance.randrange(11), chance.randrange(256), chance.randrange(5), body)
    return made


def _frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    return len(body).to_bytes(3, "big") + bytes([kind, flags]) + struct.pack(">I", stream) + body


def _text(text: str) -> bytes:
    return bytes([len(text)]) + text.encode()
