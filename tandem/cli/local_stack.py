"""The whole of Tandem on this machine: which processes, on which ports, started and stopped in order."""

import fcntl
import html
import os
import re
import secrets
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tandem.cli.child import HOST, Child, StackError, port_in_use
from tandem.cli.embedded import Memcached, Postgres, forget_other_servers, memcached_path, write_private
from tandem.cli.mesh import MISSING, Envoy, MeshConfig, envoy_path, page_path
from tandem.cli.services import Service, store_settings

WRITE_DATABASE = "tandem_write"
READ_DATABASE = "tandem_read"


@dataclass(frozen=True)
class Ports:
    """The ports to listen on; each field is the name of an option of `tandem up` without its `-port`."""

    command: int = 50051
    query: int = 50052
    projector: int = 50053
    postgres: int = 54320
    command_metrics: int = 50061
    query_metrics: int = 50062
    projector_metrics: int = 50063
    mesh: int = 50050
    second_command: int = 50071
    second_query: int = 50072
    relay: int = 50054
    relay_metrics: int = 50065


DEFAULT_PORTS = Ports()
# Which are taken by a stack with Envoy, or with a mesh, alone.
_ENVOY_PORTS = ("mesh",)
_MESH_PORTS = ("second_command", "second_query")
_RELAY_PORTS = ("relay", "relay_metrics")
BROKERS = ("TANDEM_RELAY_NATS__SERVERS", "TANDEM_RELAY_KAFKA__SERVERS", "TANDEM_RELAY_EVENTBRIDGE__BUS")
"""The settings that say where a broker is: with one of them a stack has a relay."""
_BELOW_DEFAULTS = 30_000


def _option(field: str) -> str:
    return f"--{field.replace('_', '-')}-port"


def choose_ports(named: Mapping[str, int], used: Collection[str], defaults: Ports = DEFAULT_PORTS) -> Ports:
    """The ports that a person named, and the defaults of the others. Where a default is taken: a free one 30,000 below.

    Any outgoing connection may have a default, since the kernel chooses among these ports. It does not choose among
    those that are taken instead, so they stay free until they are used.
    used: the fields that something will listen on.
    """
    ports = {**vars(defaults), **named}
    for field in (it for it in used if it not in named):
        port = ports[field]
        if port in named.values() or port_in_use(port):
            below = range(max(1024, port - _BELOW_DEFAULTS), 2**16)
            ports[field] = next((it for it in below if it not in ports.values() and not port_in_use(it)), port)
    return Ports(**ports)


class LocalStack:
    """PostgreSQL, memcached and the services, with their data and logs in one folder.

    named_ports: those that a person chose, by field of Ports.
    modules: the services', by section. lite: one database and no cache. transport: auto, native or grpcio.
    envoy: the domain's Envoy file. mesh: two command servers and two query servers behind it. Raises StackError where
        Envoy is not installed. pages: the folder of those that it serves; without_pages says why it serves none.
        operators: the services that it lets the operators' console reach, as MeshConfig.with_operators names them.
    """

    def __init__(
        self,
        folder: Path,
        named_ports: Mapping[str, int],
        modules: Mapping[str, str],
        *,
        lite: bool = False,
        transport: str = "auto",
        envoy: Path | None = None,
        mesh: bool = False,
        pages: Path | None = None,
        operators: Mapping[str, str] | None = None,
    ) -> None:
        if mesh and envoy_path() is None:
            raise StackError(MISSING)
        self.without_pages = _why_no_pages(pages) if pages is not None else ""
        self._pages = pages if not self.without_pages else None
        with_envoy = mesh or self._pages is not None
        forget_other_servers()
        self.folder = folder
        self.lite = lite
        self._broker = next((os.environ[it] for it in BROKERS if os.environ.get(it)), "")
        has_relay = bool(self._broker) and "relay" in modules
        unused = {
            *(() if with_envoy else _ENVOY_PORTS),
            *(() if mesh else _MESH_PORTS),
            *(() if has_relay else _RELAY_PORTS),
        }
        self._used = [it for it in vars(DEFAULT_PORTS) if it not in unused]
        self._named_ports = named_ports
        self._ports = ports = choose_ports(named_ports, self._used)
        self.logs = folder / "logs"
        self._modules = modules
        self.postgres = Postgres(
            folder / "postgres",
            ports.postgres,
            log=self.logs / "postgres.log",
            password_file=folder / "postgres.password",
        )
        self.memcached: Memcached | None = None
        if not lite and memcached_path() is not None:
            self.memcached = Memcached(folder=folder / "memcached", log=self.logs / "memcached.log")
        # CQRS lite keeps the views beside the write tables, so leaving it needs no move of data: the projector fills
        # the other database from the feed.
        self._read_database = WRITE_DATABASE if lite else READ_DATABASE
        self._cache_secret = (folder / "cache.secret").resolve()
        self._store_settings = store_settings(
            self.postgres.url(WRITE_DATABASE),
            self.postgres.url(self._read_database),
            [self.memcached.address] if self.memcached else [],
            password_file=self.postgres.password_file,
            cache_secret_file=self._cache_secret,
        )
        self.command_server = self._service("command", ports.command, ports.command_metrics, transport)
        self.query_server = self._service("query", ports.query, ports.query_metrics, transport)
        self.projector = self._service("projector", ports.projector, ports.projector_metrics, transport)
        # Each in the order of their start.
        self.first_services = (self.command_server, self.projector, self.query_server)
        self._stores: list[Child] = [self.postgres, *([self.memcached] if self.memcached else [])]
        self._services: list[Service] = [*self.first_services]
        servers = {"command": [self.command_server.address], "query": [self.query_server.address]}
        if mesh:
            for section, port in (("command", ports.second_command), ("query", ports.second_query)):
                second = self._service(section, port, 0, transport, number=2)
                self._services.append(second)
                servers[section].append(second.address)
        self.envoy: Envoy | None = None
        if with_envoy:
            assert envoy is not None
            config = MeshConfig(envoy, port=ports.mesh, servers=servers).without_identity()
            if operators is not None:
                config.with_operators([self.projector.address], **operators)
            if self._pages is not None:
                config.with_pages(self._pages)
            self.envoy = Envoy(config, ports.mesh, folder / "envoy", self.logs / "envoy.log")
        self.relay: Service | None = None
        if has_relay:
            self.relay = self._service("relay", ports.relay, ports.relay_metrics, transport)
            self._services.append(self.relay)
        self.children = [*self._stores, *self._services, *([self.envoy] if self.envoy else [])]

    def _service(self, section: str, port: int, metrics_port: int, transport: str, number: int = 1) -> Service:
        suffix = "" if number == 1 else f"-{number}"
        settings = {"SERVER__TRANSPORT": transport, **self._store_settings[section]}
        if section == "command":
            settings["LEDGER__FILE"] = str((self.folder / f"ledger{suffix}").resolve())
        log = self.logs / f"{section}{suffix}.log"
        module = self._modules[section]
        return Service(section, module=module, port=port, log=log, settings=settings, metrics_port=metrics_port)

    def start(self, say: Callable[[str], None]) -> None:
        """Starts all of it, migrates, and waits until it serves. Raises StackError; `stop` is to be called then too."""
        self._keep_last_logs()
        self.start_stores(say)
        self.command_server.run("migrate")
        self.projector.run("migrate")
        for service in self._services:
            service.launch()
        for service in self._services:
            if service is self.relay:
                # It does not serve while the broker is away, which keeps nobody else from working.
                say(f"{service.name:<15} {service.address}, which publishes to {self._broker}")
                continue
            service.wait_until_serving()
            say(f"{service.name:<15} {service.address}")
        if self.envoy is not None:
            self.envoy.start()
            say(f"{self.envoy.name:<15} {self.envoy.address}, in front of the servers, for browsers too")

    def start_stores(self, say: Callable[[str], None]) -> None:
        """Starts what the services stand on. Raises StackError."""
        if not self._cache_secret.exists():
            write_private(self._cache_secret, f"{secrets.token_hex(24)}\n")
        for store in self._stores:
            store.start()
            say(f"{store.name:<15} {store.address}")
        for database in (WRITE_DATABASE, self._read_database):
            self.postgres.create_database(database)

    def pages(self) -> dict[str, str]:
        """The address of each page that is served, and its title."""
        if self._pages is None or self.envoy is None:
            return {}
        files = sorted(self._pages.glob("*.html"), key=lambda it: page_path(it.name))
        return {f"http://{self.envoy.address}{page_path(it.name)}": _title(it) for it in files}

    def stop(self) -> None:
        """Stops all that runs: the services first and together, then what they stand on."""
        for service in self._services:
            service.ask_to_stop()
        for child in reversed(self.children):
            child.stop()

    def refuse_ports_in_use(self) -> None:
        """Raises StackError when a port is taken, or is wanted twice; the message names the port and the option."""
        wanted: dict[int, str] = {}
        for field in self._used:
            port, option = getattr(self._ports, field), _option(field)
            if port in wanted:
                raise StackError(f"port {port} is wanted by both {wanted[port]} and {option}: choose different ones")
            wanted[port] = option
        for port, option in wanted.items():
            if port_in_use(port):
                raise StackError(f"port {port} of {HOST} is in use: choose another with {option}")

    def moved_ports(self) -> list[str]:
        """For each default that is taken by others, a line that says which port is used instead."""
        moved = [it for it in self._used if it not in self._named_ports]
        return [
            f"port {usual} of {HOST} is in use: {_option(field)} is {port} this time"
            for field in moved
            for usual, port in [(getattr(DEFAULT_PORTS, field), getattr(self._ports, field))]
            if usual != port
        ]

    def _keep_last_logs(self) -> None:
        """Each run writes its logs anew and keeps those of the run before: they do not grow for ever."""
        for log in list(self.logs.glob("*.log")):
            log.replace(log.with_suffix(".log.before"))


def _why_no_pages(folder: Path) -> str:
    """Empty where nothing is in their way."""
    if envoy_path() is None:
        return "they need Envoy: pip install 'tandem-cqrs[mesh]'"
    return "" if (folder / "index.html").is_file() else "they are not built: make pages"


def _title(page: Path) -> str:
    found = re.search(r"<title>(.*?)</title>", page.read_text(encoding="utf-8"))
    return html.unescape(found[1]) if found else page.stem


@contextmanager
def sole_user_of(folder: Path) -> Iterator[None]:
    """Makes the folder, and keeps other processes and other users off it. Raises StackError when it is not ours.

    The kernel lets go of the lock when the process dies, however it dies.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _make_private(folder)
        file = (folder / "lock").open("a+", encoding="ascii")
    except OSError as error:
        raise StackError(f"the data folder {folder} cannot be used: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise StackError(
                f"another `tandem up` (process {file.read().strip()}) runs on {folder}: stop it, or choose another"
                " folder with --data-dir"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def _make_private(folder: Path) -> None:
    """One that holds anything else, as /tmp or a home does, is left as it is: others may need it. Raises StackError."""
    found = folder.stat()
    is_ours = found.st_uid == os.geteuid() and not found.st_mode & stat.S_ISVTX
    if not is_ours or not ((folder / "lock").exists() or not any(folder.iterdir())):
        raise StackError(f"{folder} is no data folder of yours: choose a new or an empty one with --data-dir")
    folder.chmod(0o700)
