"""What a probe learns by `tandem health`."""

from collections.abc import Iterator
from concurrent import futures

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from typer.testing import CliRunner

from shop.cli import app
from tandem.cli.child import HOST


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A server that is alive and not ready."""
    server = grpc.server(futures.ThreadPoolExecutor(1))
    servicer = health.HealthServicer()
    servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    servicer.set("liveness", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port(f"{HOST}:0")
    server.start()
    yield f"{HOST}:{port}"
    server.stop(None).wait()


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--service", "liveness"], 0, "serving"),
        ([], 1, "not serving"),
        (["--service", "nobody"], 1, "NOT_FOUND"),
    ],
)
def test_the_exit_code_says_whether_a_server_serves(address: str, options: list[str], code: int, words: str) -> None:
    done = CliRunner().invoke(app, ["health", address, *options])
    assert done.exit_code == code
    assert words in done.output


def test_a_server_that_is_not_there_does_not_serve() -> None:
    done = CliRunner().invoke(app, ["health", f"{HOST}:1"])
    assert done.exit_code == 1
    assert "UNAVAILABLE" in done.output
