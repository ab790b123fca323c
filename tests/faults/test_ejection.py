"""Envoy gives no calls to a server that takes no connections, or resets calls, though it says SERVING: docs/mesh.md."""

import contextlib
import http.client
import json
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from commerce.query.v1.query_service_pb2 import GetProductRequest
from commerce.query.v1.query_service_pb2_grpc import QueryServiceStub
from shop.cli import ENVOY
from tandem.cli.mesh import MISSING, Envoy, MeshConfig, envoy_path
from tandem.testing.ports import free_port
from tandem.testing.stack import wait_until
from tests.support.http2 import ScriptedServer
from tests.support.proxy import CuttingProxy

pytestmark = pytest.mark.skipif(envoy_path() is None, reason=MISSING)

EJECTED = "outlier_detection.ejections_active"
Numbers = dict[str, int]


class Admin(http.client.HTTPConnection):
    """Of an Envoy, by its Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("envoy", timeout=20)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))

    def numbers(self) -> Numbers:
        """Of the cluster of query servers."""
        self.request("GET", "/stats?format=json&filter=^cluster.query.")
        found = json.loads(self.getresponse().read())["stats"]
        return {it["name"].removeprefix("cluster.query."): it["value"] for it in found if "value" in it}


class Edge:
    """An Envoy, and two servers of its cluster: the first is reached by `way`."""

    def __init__(self, exits: ExitStack, log: Path) -> None:
        self.first, second = ScriptedServer(), ScriptedServer()
        self.way = CuttingProxy(("127.0.0.1", self.first.port))
        folder = Path(exits.enter_context(tempfile.TemporaryDirectory(prefix="tandem-mesh-")))
        port = free_port()
        behind = [f"127.0.0.1:{self.way.port}", f"127.0.0.1:{second.port}"]
        config = MeshConfig(ENVOY, port=port, servers={"query": behind, "command": behind}).without_identity()
        for cluster in config.document["static_resources"]["clusters"]:
            cluster["outlier_detection"]["base_ejection_time"] = "1s"
        envoy = Envoy(config, port, folder, log)
        self.admin = Admin(folder / "envoy-admin.sock")
        for it in (self.first.close, second.close, self.way.close, envoy.stop, self.admin.close):
            exits.callback(it)
        envoy.start()
        self.until(lambda it: it["membership_healthy"] == 2, "both are healthy")
        channel = exits.enter_context(grpc.insecure_channel(envoy.address, [("grpc.use_local_subchannel_pool", 1)]))
        self.get = QueryServiceStub(channel).GetProduct

    def until(self, condition: Callable[[Numbers], bool], what: str) -> None:
        wait_until(lambda: condition(self.admin.numbers()), what)

    def while_calls_are_answered(self, condition: Callable[[Numbers], bool], what: str) -> None:
        def holds() -> bool:
            self.get(GetProductRequest(), timeout=20)
            return condition(self.admin.numbers())

        wait_until(holds, what)


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[Edge]:
    with ExitStack() as exits:
        yield Edge(exits, tmp_path / "envoy.log")


def test_a_server_that_resets_calls_is_ejected_and_comes_back(edge: Edge) -> None:
    edge.first.behaviour = "resets"
    edge.while_calls_are_answered(lambda it: it[EJECTED] == 1, "it is ejected")
    assert edge.admin.numbers()["health_check.failure"] == 0, "not for its health"
    edge.first.behaviour = "answers"
    edge.while_calls_are_answered(lambda it: it[EJECTED] == 0, "it gets calls again")


def test_no_server_is_ejected_for_a_status(edge: Edge) -> None:
    edge.first.behaviour = "is unavailable"

    def judged() -> bool:
        with contextlib.suppress(grpc.RpcError):
            edge.get(GetProductRequest(), timeout=20)
        # Of what it counts and does not act on.
        return edge.admin.numbers()["outlier_detection.ejections_detected_failure_percentage"] > 0

    wait_until(judged, "Envoy has judged the server by its statuses")
    assert edge.admin.numbers()["outlier_detection.ejections_enforced_total"] == 0


def test_a_server_that_takes_no_more_connections_is_not_healthy(edge: Edge) -> None:
    edge.way.refuse(cut=False)
    edge.while_calls_are_answered(lambda it: it["membership_healthy"] == 1, "it gets no calls")
    edge.way.admit()
    edge.while_calls_are_answered(lambda it: it["membership_healthy"] == 2, "it gets calls again")
