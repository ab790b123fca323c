"""A TCP proxy on loopback that breaks connections at the worst moment."""

import contextlib
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator

_CONNECT_SECONDS = 5.0


class CuttingProxy:
    """Forwards to `target`; once armed, it cuts the next connection whose client sends `armed`.

    after=True: the target still gets what the client sent and answers, and the client never hears the answer.
    after=False: the target does not get it either.
    """

    def __init__(self, target: tuple[str, int], listener: socket.socket | None = None) -> None:
        """listener: where it takes connections, by default a free port of loopback."""
        self._target = target
        self._listener = listener or socket.create_server(("127.0.0.1", 0))
        self._armed: tuple[bytes, bool] | None = None
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._clients: set[socket.socket] = set()
        self._untold: set[socket.socket] = set()
        self._answered = threading.Event()
        self._to_server_goes, self._to_client_goes = threading.Event(), threading.Event()
        self.speak()
        self._refuses = False
        self.delay = 0.0
        """Seconds that each piece takes longer, both ways."""
        self._sent = threading.Condition()
        self._latest: deque[bytes] = deque(maxlen=50)
        self.cuts = 0
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def port(self) -> int:
        port: int = self._listener.getsockname()[1]
        return port

    def cut_on(self, words: bytes, *, after: bool) -> None:
        with self._lock:
            self._armed = (words, after)

    def wait_for(self, words: bytes, seconds: float = 20) -> None:
        """Until the target was sent these words in one piece. AssertionError after so many seconds."""
        with self._sent:
            found = self._sent.wait_for(lambda: any(words in it for it in self._latest), seconds)
        assert found, f"{words!r} was not sent"

    def be_silent(self, *, to_server: bool = True, to_client: bool = True) -> None:
        """Forwards nothing more, these ways, and still takes connections, until `speak`. Nothing of it is lost."""
        if to_server:
            self._to_server_goes.clear()
        if to_client:
            self._to_client_goes.clear()

    def speak(self) -> None:
        self._to_server_goes.set()
        self._to_client_goes.set()

    def refuse(self, *, cut: bool = True) -> None:
        """Cuts each new connection at once, until `admit`; and all that there are."""
        self._refuses = True
        if cut:
            self.cut_all()

    def admit(self) -> None:
        self._refuses = False

    def lead_to(self, target: tuple[str, int]) -> None:
        """Cuts all connections; new ones go to another target."""
        self._target = target
        self.cut_all()

    def cut_all(self) -> None:
        """Cuts all connections that there are now, and takes new ones."""
        with self._lock:
            open_sockets = list(self._sockets)
            self.cuts += 1
        self._hang_up(*open_sockets)

    def cut_clients(self) -> None:
        """Cuts all connections that there are now at the clients' end; the target is told nothing."""
        with self._lock:
            clients = list(self._clients)
            self._untold |= self._clients
            self.cuts += 1
        self._hang_up(*clients)

    def close(self) -> None:
        with self._lock:
            open_sockets = list(self._sockets)
        self.speak()
        for it in (self._listener, *open_sockets):
            with contextlib.suppress(OSError):
                it.shutdown(socket.SHUT_RDWR)
            it.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.take(client)

    def take(self, client: socket.socket) -> None:
        """A connection that was accepted: forwards it, or closes it where the target takes none."""
        try:
            if self._refuses:
                raise ConnectionRefusedError
            server = socket.create_connection(self._target, _CONNECT_SECONDS)
        except OSError:
            client.close()
            return
        server.settimeout(None)
        with self._lock:
            self._sockets |= {client, server}
            self._clients.add(client)
        silenced = threading.Event()
        threading.Thread(target=self._to_server, args=(client, server, silenced), daemon=True).start()
        threading.Thread(target=self._to_client, args=(server, client, silenced), daemon=True).start()

    def _to_server(self, client: socket.socket, server: socket.socket, silenced: threading.Event) -> None:
        for chunk in self._chunks(client, self._to_server_goes):
            cut = self._take(chunk)
            if cut is None:
                try:
                    server.sendall(chunk)
                except OSError:
                    break
                with self._sent:
                    self._latest.append(chunk)
                    self._sent.notify_all()
                continue
            silenced.set()
            if not cut:
                break
            # What belongs to it may follow. The answer says that the target has done it: then the client is cut off.
            server.sendall(chunk)
            threading.Thread(target=self._hang_up_when_answered, args=(client, server), daemon=True).start()
        if client in self._untold:
            self._hang_up(client)
        else:
            self._hang_up(client, server)

    def _hang_up_when_answered(self, *sockets: socket.socket) -> None:
        self._answered.wait(20)
        self._hang_up(*sockets)

    def _to_client(self, server: socket.socket, client: socket.socket, silenced: threading.Event) -> None:
        for chunk in self._chunks(server, self._to_client_goes):
            if silenced.is_set():
                self._answered.set()
                return
            with contextlib.suppress(OSError):
                client.sendall(chunk)
        self._hang_up(client, server)

    def _take(self, chunk: bytes) -> bool | None:
        """Whether this chunk is the one to cut on, and if so whether it still goes to the target."""
        with self._lock:
            if self._armed is None or self._armed[0] not in chunk:
                return None
            after = self._armed[1]
            self._armed = None
            self._answered = threading.Event()
            self.cuts += 1
            return after

    def _hang_up(self, *sockets: socket.socket) -> None:
        for it in sockets:
            with contextlib.suppress(OSError):
                it.shutdown(socket.SHUT_RDWR)

    def _chunks(self, source: socket.socket, goes: threading.Event) -> Iterator[bytes]:
        while True:
            try:
                chunk = source.recv(65536)
            except OSError:
                return
            if not chunk:
                return
            goes.wait()
            if self.delay:
                time.sleep(self.delay)
            yield chunk
