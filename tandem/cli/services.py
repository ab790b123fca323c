"""The three services as child processes, wired to their stores by their settings."""

import json
import os
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from tandem.cli.child import DIRECT, HOST, Child, run_to_end

_ASK_SECONDS = 1.0


def store_settings(
    write_url: str,
    read_url: str,
    cache_nodes: Sequence[str] = (),
    *,
    password_file: Path | None = None,
    cache_secret_file: Path | None = None,
) -> dict[str, dict[str, str]]:
    """The settings that name the stores, by service. Both URLs alike and no nodes is CQRS lite.

    password_file: holds the password of both databases. Files are named as they are: a path from where services start.
    """
    databases = {
        "command": {"DATABASE": write_url},
        "query": {"DATABASE": read_url, "FEED_DATABASE": write_url},
        "projector": {"FEED_DATABASE": write_url, "READ_DATABASE": read_url},
        "relay": {"FEED_DATABASE": write_url},
    }
    settings = {
        section: {f"{name}__URL": url for name, url in urls.items()}
        | ({f"{name}__PASSWORD_FILE": str(password_file) for name in urls} if password_file is not None else {})
        for section, urls in databases.items()
    }
    settings["projector"]["CACHE_NODES"] = json.dumps(list(cache_nodes))
    if cache_secret_file is not None:
        for section in ("query", "projector"):
            settings[section]["CACHE__SECRET_FILE"] = str(cache_secret_file)
    return settings


def run_action(module: str, *words: str, stdout: int | None = None) -> "subprocess.CompletedProcess[bytes]":
    """Runs `python -m {module} {words}` to its end, on this program's settings and output; stdout: as subprocess.run's.

    A process of its own: only a service's module knows the settings of its section.
    """
    return subprocess.run([sys.executable, "-m", module, *words], stdout=stdout, check=False)


def says_it_serves(channel: grpc.Channel, timeout: float, service: str = "") -> bool:
    """Asks for a server's health. timeout: in seconds. service: the whole server unless named. Raises grpc.RpcError."""
    return begin_to_ask(channel, timeout, service)()


def begin_to_ask(channel: grpc.Channel, timeout: float, service: str = "") -> Callable[[], bool]:
    """As `says_it_serves`, but waits for nobody: what it returns waits for the answer."""
    request = health_pb2.HealthCheckRequest(service=service)
    call = health_pb2_grpc.HealthStub(channel).Check.future(request, timeout=timeout)

    def serves() -> bool:
        return bool(call.result().status == health_pb2.HealthCheckResponse.SERVING)

    return serves


class Service(Child):
    """One of the servers: `python -m {module}`.

    section: command, query, projector or relay. settings: by name without the prefix,
    such as {"SERVER__TRANSPORT": "native"}, over those in `environment`. metrics_port: 0 for none.
    """

    ask_seconds = _ASK_SECONDS
    """How long `metric` waits for an answer: not long, for who shows it to a person."""

    def __init__(
        self,
        section: str,
        *,
        module: str,
        port: int,
        log: Path,
        settings: Mapping[str, str],
        environment: Mapping[str, str] = os.environ,
        metrics_port: int = 0,
    ) -> None:
        super().__init__(module, port, log)
        self.settings = settings
        self._host = settings.get("SERVER__HOST", HOST)
        self.metrics_port = metrics_port
        self.command = ["-m", self.name, "serve"]
        """What Python is to run."""
        own = {"SERVER__HOST": HOST, "SERVER__PORT": str(port), "SERVER__METRICS_PORT": str(metrics_port), **settings}
        self._environment = {**environment, **{f"TANDEM_{section.upper()}_{key}": own[key] for key in own}}

    @property
    def address(self) -> str:
        return self._host if self._host.startswith("unix:") else super().address

    def launch(self) -> None:
        self._spawn([sys.executable, *self.command], environment=self._environment)

    def serves(self) -> bool:
        # While it starts nobody listens: to find that out takes 0.02 ms, and with a channel 1.2 ms, again and again.
        if not self._host.startswith("unix:") and not super().serves():
            return False
        with grpc.insecure_channel(self.address, DIRECT) as channel:
            try:
                return says_it_serves(channel, _ASK_SECONDS)
            except grpc.RpcError:
                return False

    def run(self, action: str) -> None:
        """Runs `python -m {module} {action}` to its end. Raises StackError when that is not a good one."""
        command = [sys.executable, "-m", self.name, action]
        run_to_end(command, f"{self.name} {action} failed", environment=self._environment)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels; 0 when there is none. Raises OSError."""
        directly = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        # The whole page takes the service 4 ms, and the parser 2 ms; a metric has some of its 300 lines.
        wanted = urllib.parse.urlencode({"name[]": name})
        address = f"http://{HOST}:{self.metrics_port}/metrics?{wanted}"
        with directly.open(address, timeout=self.ask_seconds) as answer:
            text = answer.read().decode()
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )
