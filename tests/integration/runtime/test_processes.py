"""The services as processes: what they say and how they end, with no store in reach."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tandem.testing.ports import free_port
from tandem.testing.stack import wait_until
from tests.support.forking import Forked

# Nothing listens on port 1, so a connection is refused at once.
AWAY = "postgresql://tandem:s3cret@127.0.0.1:1/nowhere"
DATABASES = {
    "command": {"TANDEM_COMMAND_DATABASE__URL": AWAY},
    "query": {"TANDEM_QUERY_DATABASE__URL": AWAY},
    "projector": {"TANDEM_PROJECTOR_FEED_DATABASE__URL": AWAY, "TANDEM_PROJECTOR_READ_DATABASE__URL": AWAY},
}
MODULES = {"command": "command_server", "query": "query_server", "projector": "projector"}


@pytest.fixture(params=sorted(MODULES))
def section(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Process:
    """A service with these settings, and the databases away unless they are said."""

    def __init__(self, section: str, log: Path, **settings: str) -> None:
        given = {f"TANDEM_{section.upper()}_{name}": value for name, value in settings.items()}
        ours = {name: value for name, value in os.environ.items() if not name.startswith("TANDEM_")}
        self._log = log
        self.process = self._start(MODULES[section], {**ours, **DATABASES[section], **given})

    def _start(self, module: str, environment: dict[str, str]) -> "subprocess.Popen[bytes] | Forked":
        return Forked(module, self._log, environment)

    def output(self) -> str:
        return self._log.read_text()

    def end(self) -> int:
        return self.process.wait(timeout=30)


class Command(Process):
    """The same, started as `python -m …`."""

    def _start(self, module: str, environment: dict[str, str]) -> "subprocess.Popen[bytes] | Forked":
        with self._log.open("wb") as output:
            return subprocess.Popen(
                [sys.executable, "-m", module], env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )


@pytest.fixture
def started(section: str, tmp_path: Path) -> Iterator[tuple[Process, int]]:
    port = free_port()
    it = Command(section, tmp_path / "log", SERVER__PORT=str(port), SERVER__DRAIN_SECONDS="1")
    yield it, port
    if it.process.poll() is None:
        it.process.kill()
        it.end()


def health(port: int) -> int:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            return int(health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5).status)
        except grpc.RpcError:
            return 0


def test_a_service_starts_without_its_stores_and_says_that_it_is_not_serving(started: tuple[Process, int]) -> None:
    process, port = started

    def says_not_serving() -> bool:
        assert process.process.poll() is None, process.output()
        return health(port) == int(health_pb2.HealthCheckResponse.NOT_SERVING)

    wait_until(says_not_serving, "the service answers")
    os.kill(process.process.pid, signal.SIGTERM)
    assert process.end() == 0
    lines = [json.loads(line) for line in process.output().splitlines()]
    assert {"serving", "stopping", "stopped"} <= {line["event"] for line in lines}
    assert all({"service", "level", "timestamp"} <= set(line) for line in lines)
    assert "s3cret" not in process.output()


def test_a_stop_ends_in_time_whatever_still_waits(section: str, tmp_path: Path) -> None:
    names = ("FEED_DATABASE", "READ_DATABASE") if section == "projector" else ("DATABASE",)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://tandem@127.0.0.1:{silent.getsockname()[1]}/nowhere"
        stores = {f"{it}__URL": url for it in names} | {f"{it}__CONNECT_TIMEOUT": "60" for it in names}
        limits = {"SERVER__DRAIN_SECONDS": "0", "SERVER__STOP_SECONDS": "0.5"}
        process = Process(section, tmp_path / "log", SERVER__PORT="0", **stores, **limits)
        wait_until(lambda: '"serving"' in process.output(), "it serves")
        os.kill(process.process.pid, signal.SIGTERM)
        assert process.end() == 1
    assert "not stopped in time" in process.output().splitlines()[-1]


def test_wrong_settings_end_a_service_with_one_message_that_names_every_key(section: str, tmp_path: Path) -> None:
    process = Process(section, tmp_path / "log", SERVER__PORT="none", LOG__LEVEL="loud", SERVER__PROT="1")
    assert process.end() == 2
    prefix = f"TANDEM_{section.upper()}_"
    message = process.output()
    assert message.startswith(f"{MODULES[section]}: wrong settings for {section}:")
    assert [prefix + name in message for name in ("SERVER__PORT", "LOG__LEVEL", "SERVER__PROT")] == [True] * 3
    assert "Traceback" not in message


def test_a_database_url_of_another_kind_is_a_wrong_setting(section: str, tmp_path: Path) -> None:
    name = "FEED_DATABASE__URL" if section == "projector" else "DATABASE__URL"
    process = Process(section, tmp_path / "log", **{name: "mysql://root:s3cret@db/shop"})
    assert process.end() == 2
    assert f"(TANDEM_{section.upper()}_{name}): " in process.output()
    assert "s3cret" not in process.output()


@pytest.mark.parametrize("setting", ["SERVER__PORT", "SERVER__METRICS_PORT"])
def test_a_port_in_use_ends_a_service_with_a_sentence_that_names_it(section: str, setting: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = Process(section, tmp_path / "log", **{"SERVER__PORT": "0", setting: str(port)})
        assert process.end() == 1
    last = process.output().splitlines()[-1]
    assert last.startswith(f"{MODULES[section]}: cannot ")
    assert f"127.0.0.1:{port}" in last
    assert "Traceback" not in process.output()


def test_requests_that_are_refused_for_their_size_take_new_memory_once_each_at_most(tmp_path: Path) -> None:
    port = free_port()
    process = Process("query", tmp_path / "log", SERVER__PORT=str(port))
    wait_until(lambda: '"serving"' in process.output(), "it serves")
    with grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.max_send_message_length", -1)]) as channel:
        method: Any = channel.unary_unary("/commerce.query.v1.QueryService/GetOrderDetails", bytes)
        request = bytes(43 * 2**20)

        def send(count: int) -> None:
            for _ in range(count):
                with pytest.raises(grpc.RpcError) as refusal:
                    method(request, timeout=30)
                assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

        send(4)
        before = page_faults(process.process.pid)
        send(4)
        # New memory for the request, and for the bytes that it is handed over as, is 11,008 each. Which of its arenas
        # the allocator takes from decides whether one of the two is new; never both.
        assert page_faults(process.process.pid) - before < 4 * 16_000
    os.kill(process.process.pid, signal.SIGTERM)
    assert process.end() == 0


def page_faults(pid: int) -> int:
    """Those without a disk; the process's name, which may hold anything, is in brackets."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[7])
