"""Tandem as real processes on real stores, for tests."""

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import grpc
import psycopg
from grpc_health.v1 import health_pb2, health_pb2_grpc
from psycopg import sql

from commerce.command.v1.command_service_pb2_grpc import CommandServiceStub
from commerce.projection.v1.projection_service_pb2_grpc import ProjectionServiceStub
from commerce.query.v1.query_service_pb2_grpc import QueryServiceStub
from tandem.cli.embedded import Memcached, Postgres, free_port, spawn, tail

START_SECONDS = 30.0
# A test that fails must not wait for a server that hangs.
STOP_SECONDS = 30.0


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 20.0) -> Any:
    """Asks until the answer is true and returns it; AssertionError with `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(0.01)
    return answer


class Databases:
    """New empty databases on one PostgreSQL server."""

    def __init__(self, postgres: Postgres) -> None:
        self.postgres = postgres
        self._numbers = itertools.count(1)

    def create(self) -> str:
        """The URL of a new database."""
        name = f"test_{os.getpid()}_{next(self._numbers)}"
        self.postgres.create_database(name)
        return self.postgres.url(name)

    def drop(self, url: str) -> None:
        name = url.rsplit("/", 1)[1]
        with psycopg.connect(self.postgres.url("postgres"), autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


class Service:
    """One of the three servers as a process: `python -m {module}`."""

    def __init__(self, module: str, environment: dict[str, str], folder: Path, port: int) -> None:
        self.module = module
        self.port = port
        self._environment = environment
        self._log = folder / f"{module}-{port}.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.module} is not started"
        return self._process.pid

    def start(self, *, serving: bool = True) -> None:
        """Starts the process; with `serving`, waits until its health says so."""
        with self._log.open("ab") as log:
            self._process = spawn(
                [sys.executable, "-m", self.module],
                log=log,
                death_signal=signal.SIGKILL,
                environment={**_plain_environment(), **self._environment},
            )
        if serving:
            self.wait_until_serving()

    def run(self, action: str) -> None:
        """Runs `python -m {module} {action}` to its end, which must be a good one."""
        result = subprocess.run(
            [sys.executable, "-m", self.module, action],
            env={**_plain_environment(), **self._environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, f"{self.module} {action}: {result.stdout}{result.stderr}"

    def health(self) -> int:
        """Its overall health as a HealthCheckResponse.ServingStatus; UNKNOWN while it does not answer."""
        with grpc.insecure_channel(self.address) as channel:
            try:
                answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=1)
            except grpc.RpcError:
                return int(health_pb2.HealthCheckResponse.UNKNOWN)
        return int(answer.status)

    def wait_until_serving(self) -> None:
        def serving() -> bool:
            assert self._process is not None
            code = self._process.poll()
            assert code is None, f"{self.module} ended with {code}; its log ends:\n{self.log()}"
            return self.health() == health_pb2.HealthCheckResponse.SERVING

        try:
            wait_until(serving, f"{self.module} serves", START_SECONDS)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log()}") from None

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        if self._process is None:
            return 0
        process, self._process = self._process, None
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            return process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"{self.module} did not stop:\n{self.log()}") from None

    def kill(self) -> None:
        """SIGKILL."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None

    def pause(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def log(self, lines: int = 40) -> str:
        return tail(self._log, lines)


class Stack:
    """The three services on their own databases and cache nodes.

    lite: both sides in one database, as CQRS lite. nodes: the memcached nodes to use. transport: of all services.
    settings: more environment for each service, by the middle word: {"COMMAND": {"EXECUTOR__LANES": "2"}}.
    """

    def __init__(
        self,
        databases: Databases,
        folder: Path,
        *,
        nodes: Iterable[Memcached] = (),
        lite: bool = False,
        transport: str = "auto",
        settings: dict[str, dict[str, str]] | None = None,
    ) -> None:
        self._databases = databases
        self._folder = folder
        self._transport = transport
        self._settings = settings or {}
        self.write_url = databases.create()
        self.read_url = self.write_url if lite else databases.create()
        self.nodes = list(nodes)
        self.command_server = self.service("command_server", "COMMAND", {"DATABASE__URL": self.write_url})
        self.projector = self.new_projector()
        self.query_server = self.service("query_server", "QUERY", {"DATABASE__URL": self.read_url})
        self._services = [self.command_server, self.projector, self.query_server]
        self._channels: list[grpc.Channel] = []

    def service(self, module: str, word: str, settings: dict[str, str]) -> Service:
        port = free_port()
        values = {
            "SERVER__PORT": str(port),
            "SERVER__TRANSPORT": self._transport,
            **settings,
            **self._settings.get(word, {}),
        }
        environment = {f"TANDEM_{word}_{key}": value for key, value in values.items()}
        return Service(module, environment, self._folder, port)

    def new_projector(self) -> Service:
        """A projector of this stack; the second one that is started is a standby."""
        nodes = ",".join(f'"{node.node}"' for node in self.nodes)
        settings = {
            "FEED_DATABASE__URL": self.write_url,
            "READ_DATABASE__URL": self.read_url,
            "CACHE_NODES": f"[{nodes}]",
        }
        return self.service("projector", "PROJECTOR", settings)

    def start(self) -> "Stack":
        self.command_server.run("migrate")
        self.projector.run("migrate")
        for service in self._services:
            service.start(serving=False)
        for service in self._services:
            service.wait_until_serving()
        return self

    def stop(self) -> None:
        for channel in self._channels:
            channel.close()
        for service in self._services:
            service.stop()
        for url in {self.write_url, self.read_url}:
            self._databases.drop(url)

    def _channel(self, service: Service) -> grpc.Channel:
        # A server that was killed and comes back is to be found at once, not after a growing pause.
        options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)]
        channel = grpc.insecure_channel(service.address, options)
        self._channels.append(channel)
        return channel

    @property
    def commands(self) -> CommandServiceStub:
        return CommandServiceStub(self._channel(self.command_server))

    @property
    def queries(self) -> QueryServiceStub:
        return QueryServiceStub(self._channel(self.query_server))

    @property
    def projections(self) -> ProjectionServiceStub:
        return ProjectionServiceStub(self._channel(self.projector))


def _plain_environment() -> dict[str, str]:
    """Ours without Tandem's own variables: a test sets all that it means."""
    return {key: value for key, value in os.environ.items() if not key.startswith("TANDEM_")}
