"""Tandem as it runs on many machines, on this one: each server more than once, and a proxy between any two parts."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psycopg

from nemesis.clients import Addresses
from shop.cli import SHOP
from shop.views import VIEWS
from tandem.cli.child import HOST, Child
from tandem.cli.embedded import Memcached, Postgres
from tandem.cli.services import Service, store_settings
from tandem.testing.ports import free_port
from tandem.testing.stack import kill, up_to, wait_until
from tests.support.proxy import CuttingProxy
from tests.support.stack import Databases

_SERVERS = {"command": 2, "projector": 2, "query": 3}
_NODES = 2
_DISK_MEGABYTES = 500

Links = dict[tuple[str, str], CuttingProxy]
"""By who connects and to what: a server's name or "clients", and a server's, database's or node's name."""


class Disk:
    """A small file system of its own, where this machine lets us make one; else a folder, which cannot be full."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_MEGABYTES}m,mode=755", "tmpfs", str(folder)]
        mounted = (
            os.geteuid() == 0 and shutil.which("mount") and subprocess.run(command, capture_output=True, check=False)
        )
        self.is_small = bool(mounted) and mounted.returncode == 0  # type: ignore[union-attr]

    def fill(self) -> None:
        """Takes all the room that is left."""
        with (self.folder / "ballast").open("wb") as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(1 << 20))
                file.flush()

    def free(self) -> None:
        (self.folder / "ballast").unlink()

    def remove(self) -> None:
        if self.is_small:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=True)


class NodeProxy:
    """A cache node's address. Each server that connects gets a link of its own, though all know the same address."""

    def __init__(self, name: str, owner: Callable[[int], str], links: Links) -> None:
        """owner: says whose connection comes from a port."""
        self.name = name
        self._owner = owner
        self._links = links
        self._listener = socket.create_server((HOST, free_port()))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        return f"{HOST}:{self._listener.getsockname()[1]}"

    def lead_to(self, node: Memcached) -> None:
        for (_, target), link in self._links.items():
            if target == self.name:
                link.lead_to((HOST, node.port))

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, (_, port) = self._listener.accept()
            except OSError:
                return
            link = self._links.get((self._owner(port), self.name))
            if link is None:
                # Whoever asked has gone.
                client.close()
            else:
                link.take(client)


class Cluster:
    """Use `running`. Everything listens on loopback, and ends with this process.

    settings: of the services, by the middle word, as for tests.support.stack.Stack.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Mapping[str, str]]) -> None:
        """Starts nothing, so that `stop` knows of all that `start` has come to."""
        self._folder = folder
        self._settings = settings
        self.disks: dict[str, Disk] = {}
        self.databases: dict[str, Postgres] = {}
        self.write_url = self.read_url = ""
        self.nodes: dict[str, Memcached] = {}
        self.spares: dict[str, Memcached] = {}
        self.links: Links = {}
        self.services: dict[str, Service] = {}
        self.proxies: dict[str, NodeProxy] = {}
        self.clock = folder / "clock"

    def start(self) -> None:
        """Raises StackError with the log of what does not serve."""
        for side in ("write", "read"):
            disk = self.disks[side] = Disk(self._folder / side)
            database = self.databases[side] = Postgres(disk.folder / "data", free_port(), _POSTGRES)
            database.start()
        self.write_url = Databases(self.databases["write"]).create("write")
        self.read_url = Databases(self.databases["read"]).create("read")
        for number in range(1, up_to(_NODES) + 1):
            name = f"node {number}"
            self.nodes[name], self.spares[name] = Memcached(free_port()), Memcached(free_port())
            self.nodes[name].start()
            self.spares[name].start()
            self.proxies[name] = NodeProxy(name, self._owner_of, self.links)
        self.clock.write_text("0")
        for section, count in _SERVERS.items():
            for number in range(1, count + 1):
                self._add(f"{section} {number}", section, self._settings.get(section.upper(), {}))
        self.services["command 2"].command = ["-m", "nemesis.stepped_clock", str(self.clock), "serve"]
        for service in self.services.values():
            service.launch()
        for service in self.services.values():
            service.wait_until_serving()
        with psycopg.connect(self.read_url, autocommit=True) as connection:
            begun = "SELECT count(DISTINCT view) FROM tandem_read.projection"
            wait_until(lambda: connection.execute(begun).fetchone() == (len(VIEWS),), "the views have begun")

    def _add(self, name: str, section: str, settings: Mapping[str, str]) -> None:
        port = free_port()
        write, read = self._through(name, "write", self.write_url), ""
        if section != "command":
            read = self._through(name, "read", self.read_url)
            for node, it in self.nodes.items():
                self.links[name, node] = CuttingProxy((HOST, it.port))
        self.links["clients", name] = CuttingProxy((HOST, port))
        stores = store_settings(write, read, [it.address for it in self.proxies.values()])
        environment = {key: value for key, value in os.environ.items() if not key.startswith("TANDEM_")}
        self.services[name] = Service(
            section,
            module=SHOP.modules[section],
            port=port,
            log=self._folder / f"{name.replace(' ', '-')}.log",
            settings={**stores[section], **settings},
            environment=environment,
            metrics_port=free_port(),
        )

    def _through(self, name: str, side: str, url: str) -> str:
        database = self.databases[side]
        link = self.links[name, side] = CuttingProxy((HOST, database.port))
        return url.replace(database.address, f"{HOST}:{link.port}")

    def _owner_of(self, port: int) -> str:
        """The server that holds this port of a connection; empty for none of them."""
        sockets = {f"socket:[{inode}]" for inode in _inodes(port)}
        for name, service in self.services.items():
            # A process may end meanwhile, and a file be closed.
            with contextlib.suppress(OSError, AssertionError):
                for it in Path(f"/proc/{service.pid}/fd").iterdir():
                    with contextlib.suppress(OSError):
                        if str(it.readlink()) in sockets:
                            return name
        return ""

    @property
    def node_addresses(self) -> dict[str, str]:
        """Where each cache node itself is, by the address that the projectors have."""
        return {proxy.address: self.nodes[name].address for name, proxy in self.proxies.items()}

    @property
    def addresses(self) -> Addresses:
        """Where clients reach the servers."""
        at = {name: f"{HOST}:{link.port}" for (who, name), link in self.links.items() if who == "clients"}
        return Addresses(*([at[it] for it in at if it.startswith(section)] for section in _SERVERS))

    def stop(self) -> list[str]:
        """Ends all; returns what did not end well."""
        running = [it for it in self.services.values() if it.exit_code() is None]
        for it in running:
            it.ask_to_stop()
        bad = [f"{it.log.stem} ended with {code}" for it in running if (code := it.stop())]
        for proxy in self.proxies.values():
            proxy.close()
        for link in self.links.values():
            link.close()
        stores: list[Child] = [*self.nodes.values(), *self.spares.values(), *self.databases.values()]
        for store in stores:
            if store.exit_code() is None:
                kill(store)
        for disk in self.disks.values():
            disk.remove()
        return bad


def _inodes(port: int) -> list[str]:
    """Of the sockets that have this port at their own end."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [fields[9] for fields in lines if fields[1].endswith(f":{port:04X}")]


# Commits wait for the disk, as in production. WAL is kept small, since the disk is.
_POSTGRES = {"max_wal_size": "64MB", "min_wal_size": "32MB", "max_connections": "150"}


@contextlib.contextmanager
def running(folder: Path, settings: Mapping[str, Mapping[str, str]]) -> Iterator[Cluster]:
    """A cluster that serves. AssertionError when a part of it does not end well, unless there is another error.

    SIGTERM ends it as Ctrl-C does: the disks are taken away.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    cluster = Cluster(folder, settings)
    try:
        cluster.start()
        yield cluster
    finally:
        bad = cluster.stop()
    assert not bad, json.dumps(bad)


def flush(node: Memcached) -> None:
    """Takes all entries away."""
    with socket.create_connection((HOST, node.port), 5) as connection:
        connection.sendall(b"flush_all\r\n")
        assert connection.recv(100) == b"OK\r\n"
