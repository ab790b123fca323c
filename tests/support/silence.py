"""Ways in which a PostgreSQL server falls silent: its connections stay open, and nothing comes back."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from typing import Protocol

import psutil
import pytest

from tandem.cli.embedded import Postgres
from tandem.testing.stack import wait_until
from tests.support.forking import enter_network
from tests.support.proxy import CuttingProxy


class Silence(Protocol):
    """at: "host:port" where the server is reached."""

    at: str

    def begin(self) -> None: ...

    def end(self) -> None: ...


class Stopped:
    """All of the server's processes are under SIGSTOP: the kernel still takes connections and what is sent."""

    def __init__(self, postgres: Postgres) -> None:
        self.at = postgres.address
        self._server = psutil.Process(postgres.pid)

    def begin(self) -> None:
        # The first one first: what is stopped starts no others.
        self._server.suspend()
        wait_until(lambda: self._server.status() == psutil.STATUS_STOPPED, "the server stands still")
        for child in self._server.children():
            child.suspend()

    def end(self) -> None:
        for process in (*self._server.children(), self._server):
            process.send_signal(signal.SIGCONT)


class SilentProxy:
    """What stands between takes connections, and forwards nothing."""

    def __init__(self, postgres: Postgres, listener: socket.socket | None = None) -> None:
        self._proxy = CuttingProxy(("127.0.0.1", postgres.port), listener)
        self.at = f"127.0.0.1:{self._proxy.port}"

    def begin(self) -> None:
        self._proxy.be_silent()

    def end(self) -> None:
        self._proxy.speak()

    def close(self) -> None:
        self._proxy.close()


class DroppedPackets(SilentProxy):
    """The server is in another network, which drops what it sends: nothing is acknowledged, nothing refused."""

    def __init__(self, postgres: Postgres, network: "Network") -> None:
        super().__init__(postgres, network.listen())
        self.at = f"{network.theirs}:{self._proxy.port}"
        self._network = network

    def begin(self) -> None:
        self._network.drop()

    def end(self) -> None:
        self._network.deliver()


class Network:
    """A network namespace beside ours, with a cable between."""

    def __init__(self, name: str, number: int) -> None:
        """number: 0 to 255, which no other has."""
        self._name = name
        self.ours, self.theirs = f"10.213.{number}.1", f"10.213.{number}.2"
        cable = f"{name}a", f"{name}b"
        self._run("netns", "add", name)
        self._run("link", "add", cable[0], "type", "veth", "peer", "name", cable[1], "netns", name)
        self._run("addr", "add", f"{self.ours}/30", "dev", cable[0])
        self._run("link", "set", cable[0], "up")
        self._run("-n", name, "addr", "add", f"{self.theirs}/30", "dev", cable[1])
        self._run("-n", name, "link", "set", cable[1], "up")

    def listen(self) -> socket.socket:
        """A socket in that network."""
        made: list[socket.socket] = []

        def make() -> None:
            # Of this thread alone.
            enter_network(self._name)
            made.append(socket.create_server((self.theirs, 0)))

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        return made[0]

    def drop(self) -> None:
        self._run("-n", self._name, "route", "add", "blackhole", f"{self.ours}/32")

    def deliver(self) -> None:
        """Also where nothing is dropped."""
        self._run("-n", self._name, "route", "flush", "type", "blackhole")

    def remove(self) -> None:
        self._run("netns", "del", self._name)

    def _run(self, *words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@contextlib.contextmanager
def a_network() -> Iterator[Network]:
    """Skips the test where networks cannot be made: that takes root, and the program `ip`."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need root, and the program ip (apt-get install iproute2)")
    try:
        network = Network(f"td{os.getpid()}", os.getpid() % 256)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces cannot be made here: {error.stderr.strip()}")
    try:
        yield network
    finally:
        network.remove()
