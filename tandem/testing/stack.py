"""A domain's three services as real processes on real stores: PostgreSQL and memcached.

Needs `pip install 'tandem-cqrs[testing]'`, and the system's memcached for nodes.
"""

import asyncio
import itertools
import os
import signal
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Literal, LiteralString, Self, TypeVar

import grpc
import psutil
import psycopg
from psycopg import sql
from pydantic import SecretStr

from tandem.cli.child import Child
from tandem.cli.embedded import Memcached, Postgres, memcached_path
from tandem.cli.services import Service, store_settings
from tandem.feed.table import WRITE
from tandem.read_store.tables import READ
from tandem.runtime.migrations import Schema, migrate
from tandem.runtime.settings import DatabaseSettings
from tandem.testing.ports import free_port

T = TypeVar("T")
Side = Literal["write", "read"]

_SCHEMAS: dict[Side, Schema] = {"write": WRITE, "read": READ}
PATIENCE = 60.0
"""Seconds until a condition counts as never met: on a machine that is slow, and has other work, too."""
# A server that was killed and comes back is to be found at once, not after a growing pause. The last is no pause: how
# long an attempt to connect may take, on a busy machine.
CHANNEL_OPTIONS = [
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 5_000),
]


def up_to(nodes: int) -> int:
    """So many cache nodes where memcached is installed, else none: for tests that are not about the cache."""
    return nodes if memcached_path() else 0


def end_node(node: Child) -> None:
    """Ends one that runs, after a test: to stop in good order takes it up to a second, and it has nothing to keep."""
    if node.exit_code() is None:
        kill(node)


def kill(child: Child) -> None:
    """SIGKILL, as a crash: waits until all its processes are gone too, so that it can be started again."""
    process = psutil.Process(child.pid)
    processes = [process, *process.children()]
    process.kill()
    child.stop()
    wait_until(lambda: not any(map(runs, processes)), f"all of {processes} are gone")


def pause(child: Child) -> None:
    """SIGSTOP, and waits until it stands still: each of its threads."""
    os.kill(child.pid, signal.SIGSTOP)

    def stands_still() -> bool:
        states = [_state(it) for it in Path(f"/proc/{child.pid}/task").iterdir()]
        return all(it in ("T", "gone") for it in states)

    wait_until(stands_still, f"{child.name} stands still")


def _state(thread: Path) -> str:
    """The letter that the kernel has for it."""
    try:
        # Its name, which may hold anything, is in brackets before.
        return (thread / "stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "gone"


def resume(child: Child) -> None:
    os.kill(child.pid, signal.SIGCONT)


def runs(process: psutil.Process) -> bool:
    """Whether it still does anything."""
    # A zombie waits for its parent alone; as an orphan that is init.
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(condition: Callable[[], T], what: str, seconds: float = PATIENCE) -> T:
    """Asks until the answer is true and returns it; AssertionError with `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        asked = time.monotonic()
        if answer := condition():
            return answer
        now = time.monotonic()
        if now > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(_pause(now - asked))


def _pause(asking: float) -> float:
    """Seconds until a condition is asked again that took so long: what is waited for has two thirds of the time."""
    return min(max(0.01, 2 * asking), 0.1)


async def until(condition: Callable[[], Awaitable[T]], what: str, seconds: float = PATIENCE) -> T:
    """`wait_until` for a coroutine function, without holding the event loop up."""
    deadline = time.monotonic() + seconds
    while True:
        asked = time.monotonic()
        if answer := await condition():
            return answer
        now = time.monotonic()
        if now > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        await asyncio.sleep(_pause(now - asked))


class Databases:
    """New databases on one PostgreSQL server."""

    def __init__(self, postgres: Postgres, migrations: Mapping[Side, Path]) -> None:
        """migrations: the domain's folders of them, by side."""
        self.postgres = postgres
        self._migrations = migrations
        self._numbers = itertools.count(1)
        self._templates: set[str] = set()
        self._session: psycopg.Connection[Any] | None = None

    @contextmanager
    def in_one_session(self) -> Iterator[Self]:
        """While the block runs, with a server that does too: a session for each statement is half of what it takes."""
        with self._connect() as self._session:
            yield self
        self._session = None

    def create(self, *sides: Side) -> str:
        """The URL of a new database: empty, or migrated for the sides that it is to serve."""
        name = f"test_{os.getpid()}_{next(self._numbers)}"
        return self.copy(self._template(sides) if sides else "template1", name)

    def copy(self, template: str, name: str) -> str:
        """The URL of a new database, a copy of another."""
        # File by file, not block by block through the log: with the drop, 39 ms of the server's time and not 56.
        self._run("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY", name, template)
        return self.postgres.url(name)

    def drop(self, url: str) -> None:
        """Ends its sessions too."""
        self._run("DROP DATABASE IF EXISTS {} WITH (FORCE)", url.rsplit("/", 1)[1])

    def _run(self, statement: LiteralString, *names: str) -> None:
        with nullcontext(self._session) if self._session is not None else self._connect() as session:
            session.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))

    def _connect(self) -> "psycopg.Connection[Any]":
        return psycopg.connect(self.postgres.url("postgres"), autocommit=True)

    def _template(self, sides: Iterable[Side]) -> str:
        """A migrated database to copy: migrating takes a second, copying some milliseconds."""
        name = "_".join(["migrated", *sorted(set(sides))])
        if name not in self._templates:
            self.postgres.create_database(name)
            for side in set(sides):
                migrate(
                    DatabaseSettings(url=SecretStr(self.postgres.url(name))), self._migrations[side], _SCHEMAS[side]
                )
            self._templates.add(name)
        return name


class Stack:
    """The three services on their own, migrated databases and cache nodes.

    lite: both sides in one database, as CQRS lite. feed_server: of the write database, if that is on another.
    at: "host:port" where the services reach the databases, instead of at the server itself; several, with commas
    between; query: what their URLs end with, such as "?target_session_attrs=primary". nodes: the nodes of the cache
    to use. transport: of all services.
    modules: what Python runs as each service, by section: command, projector and query. views: how many there are.
    service: what runs one; a Service is a process of its own.
    settings: more settings for each service, by the middle word: {"COMMAND": {"EXECUTOR__THREADS": "2"}}.
    tree: the code of another release, of which the three are, and the databases' schemas.
    """

    # For the report of a test that fails.
    running: ClassVar[list["Stack"]] = []

    def __init__(
        self,
        databases: Databases,
        folder: Path,
        *,
        modules: Mapping[str, str],
        views: int,
        service: type[Service] = Service,
        nodes: Iterable[Child] = (),
        lite: bool = False,
        at: str = "",
        query: str = "",
        feed_server: Databases | None = None,
        transport: str = "auto",
        settings: dict[str, dict[str, str]] | None = None,
        tree: Path | None = None,
    ) -> None:
        self._databases = databases
        self._modules = modules
        self._views = views
        self._kind = service
        self._feed_server = feed_server
        self._folder = folder
        self._transport = transport
        self._settings = settings or {}
        self.nodes = list(nodes)
        write_sides: tuple[Side, ...] = () if tree else ("write", "read") if lite else ("write",)
        read_sides: tuple[Side, ...] = () if tree else ("read",)
        self.write_url = (databases if lite else feed_server or databases).create(*write_sides)
        self.read_url = self.write_url if lite else databases.create(*read_sides)
        own = databases.postgres.address
        write, read = [url.replace(own, at or own) + query for url in (self.write_url, self.read_url)]
        self._store_settings = store_settings(write, read, [node.address for node in self.nodes])
        self.services: list[Service] = []
        self.command_server = self._service("command", tree=tree)
        self.projector = self._service("projector", tree=tree)
        self.query_server = self._service("query", tree=tree)
        if tree:
            self.command_server.run("migrate")
            self.projector.run("migrate")
        self._channels: dict[int, grpc.Channel] = {}

    def _service(
        self, section: str, settings: dict[str, str] | None = None, module: str = "", tree: Path | None = None
    ) -> Service:
        port = free_port()
        kind = Service if module or tree else self._kind
        service = kind(
            section,
            module=module or self._modules[section],
            port=port,
            log=self._folder / f"{section}-{port}.log",
            settings={
                "SERVER__TRANSPORT": self._transport,
                **self._store_settings[section],
                **self._settings.get(section.upper(), {}),
                **(settings or {}),
            },
            environment={**_plain_environment(), **(environment_of(tree) if tree else {})},
            metrics_port=free_port(),
        )
        service.ask_seconds = PATIENCE
        self.services.append(service)
        return service

    def new_command_server(self, **settings: str) -> Service:
        """Another command server, not started, with these settings over those of the stack's: EXECUTOR__THREADS="2"."""
        return self._service("command", settings)

    def new_projector(self, **settings: str) -> Service:
        """Another projector, not started, with these settings over those of the stack's: AUDIT__SHARE="0".

        The second one that is started is a standby.
        """
        return self._service("projector", settings)

    def new_query_server(self, **settings: str) -> Service:
        """Another query server, not started, with these settings over those of the stack's: CACHE__ENABLED="false"."""
        return self._service("query", settings)

    def of_release(self, section: str, module: str) -> Service:
        """Another service, not started, of another release: what Python runs as it."""
        return self._service(section, module=module)

    def start(self) -> Self:
        """Starts the three and waits until they serve, and until the projector has begun the views.

        Raises StackError with the log of the one that does not serve.
        """
        Stack.running.append(self)
        first = (self.command_server, self.projector, self.query_server)
        for service in first:
            service.launch()
        for service in first:
            service.wait_until_serving()
        with psycopg.connect(self.read_url, autocommit=True) as connection:
            # An index of one may have a row too.
            begun = "SELECT count(DISTINCT view) >= %s FROM tandem_read.projection"
            wait_until(lambda: connection.execute(begun, (self._views,)).fetchone() == (True,), "the views have begun")
        return self

    def stop(self) -> None:
        """Stops all that still runs and drops the databases; AssertionError for a service that did not stop well."""
        for channel in self._channels.values():
            channel.close()
        running = [service for service in self.services if service.exit_code() is None]
        for service in running:
            service.ask_to_stop()
        codes = {service.name: (service.stop(), service.log_tail()) for service in running}
        # A server of its own is stopped by whoever has started it.
        for url in {self.write_url, self.read_url} if self._feed_server is None else {self.read_url}:
            self._databases.drop(url)
        if self in Stack.running:
            Stack.running.remove(self)
        bad = [f"{name} ended with exit code {code}:\n{log}" for name, (code, log) in codes.items() if code != 0]
        assert not bad, "\n".join(bad)

    def logs(self) -> dict[str, str]:
        """The end of each service's log, by name and port."""
        return {f"{it.name}:{it.port}": it.log_tail(40) for it in self.services}

    def channel(self, service: Service) -> grpc.Channel:
        """A channel to one of this stack's services, closed with the stack; the same one each time."""
        if service.port not in self._channels:
            self._channels[service.port] = grpc.insecure_channel(service.address, CHANNEL_OPTIONS)
        return self._channels[service.port]


@contextmanager
def running_stack(
    *, modules: Mapping[str, str], migrations: Mapping[Side, Path], views: int, nodes: int = 1
) -> Iterator[Stack]:
    """A domain's services, started, on a PostgreSQL and on up to so many memcached nodes of their own.

    All of it ends with the block. AssertionError then for a service that did not stop well.
    """
    with tempfile.TemporaryDirectory(prefix="tandem-test-") as made, ExitStack() as exits:
        folder = Path(made)
        # PostgreSQL's user must pass through it.
        folder.chmod(0o711)
        postgres = Postgres(folder / "data", free_port(), settings={"fsync": "off"})
        exits.callback(postgres.stop)
        postgres.start()
        cache = [Memcached(free_port()) for _ in range(up_to(nodes))]
        for node in cache:
            exits.callback(end_node, node)
            node.start()
        stack = Stack(Databases(postgres, migrations), folder, modules=modules, views=views, nodes=cache)
        exits.callback(stack.stop)
        yield stack.start()


def _plain_environment() -> dict[str, str]:
    """Ours without Tandem's own variables: a test sets all that it means."""
    return {key: value for key, value in os.environ.items() if not key.startswith("TANDEM_")}


def environment_of(tree: Path) -> dict[str, str]:
    """Variables with which Python runs what is in the tree, and not what is here."""
    return {"PYTHONPATH": f"{tree}{os.pathsep}{tree / 'gen'}", "PYTHONSAFEPATH": "1"}
