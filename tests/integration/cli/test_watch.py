"""`tandem status --watch`, on terminals and elsewhere, of servers with TLS that ask for a token."""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2_grpc

from commerce.projection.v1 import projection_service_pb2 as projections
from shop.views import VIEWS
from tests.support.issuer import Certificates
from tests.support.stack import wait_until
from tests.support.terminal import HIDE_CURSOR, SHOW_CURSOR, Terminal
from tests.support.up import PROGRAM

NAMES = sorted(VIEWS)
_ERROR = "event 7 cannot be taken in: " + "a rule of this view says so at length, " * 20


class Projections:
    """All views of the shop, the last one with trouble, and one that is rebuilt. The feed grows with each question."""

    def __init__(self) -> None:
        self.head = 1_234_567

    def list_projections(self, request: Any, context: grpc.ServicerContext) -> projections.ListProjectionsResponse:
        assert ("authorization", "Bearer secret") in context.invocation_metadata()
        self.head += 1
        running = projections.Projection(
            state=projections.PROJECTION_STATE_RUNNING, position=self.head, lag_events=987_654
        )
        answer = projections.ListProjectionsResponse(feed_head=self.head)
        for name in NAMES:
            answer.projections.add(view=name).MergeFrom(running)
        trouble = projections.Projection(state=projections.PROJECTION_STATE_FAILED, error=_ERROR, parked_keys=3)
        answer.projections[-1].MergeFrom(trouble)
        return answer

    def list_generations(self, request: Any, context: grpc.ServicerContext) -> projections.ListGenerationsResponse:
        filling = projections.Generation(
            view=NAMES[0], state=projections.GENERATION_STATE_FILLING, position=self.head // 2
        )
        return projections.ListGenerationsResponse(feed_head=self.head, generations=[filling])

    def handlers(self) -> dict[str, Any]:
        return {
            "ListProjections": grpc.unary_unary_rpc_method_handler(
                self.list_projections,
                projections.ListProjectionsRequest.FromString,
                projections.ListProjectionsResponse.SerializeToString,
            ),
            "ListGenerations": grpc.unary_unary_rpc_method_handler(
                self.list_generations,
                projections.ListGenerationsRequest.FromString,
                projections.ListGenerationsResponse.SerializeToString,
            ),
        }


def serve(certificates: Certificates, address: str = "127.0.0.1:0") -> tuple[grpc.Server, str]:
    server = grpc.server(ThreadPoolExecutor(2))
    health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
    service = projections.DESCRIPTOR.services_by_name["ProjectionService"].full_name
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, Projections().handlers())])
    files = certificates.settings
    pair = (files["key_file"].read_bytes(), files["certificate_file"].read_bytes())
    port = server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
    server.start()
    return server, f"127.0.0.1:{port}"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder = tmp_path_factory.mktemp("certificates")
    (folder / "token").write_text("secret")
    return Certificates(folder)


@pytest.fixture(scope="module")
def running(certificates: Certificates) -> Iterator[str]:
    server, address = serve(certificates)
    yield address
    server.stop(None).wait()


@pytest.fixture
def on_terminal(certificates: Certificates) -> Iterator[Callable[..., Terminal]]:
    with ExitStack() as exits:

        def start(address: str, *, query_address: str = "", **options: Any) -> Terminal:
            terminal = Terminal(command(certificates, address, query_address), **options)
            exits.callback(terminal.close)
            return terminal

        yield start


def command(certificates: Certificates, address: str, query_address: str = "", *more: str) -> list[str | Path]:
    query = f"--query-address={query_address or address}"
    access: list[str | Path] = [
        "--tls-ca",
        certificates.client_ca_file,
        "--token-file",
        certificates.client_ca_file.with_name("token"),
    ]
    addresses = [f"--command-address={address}", query, f"--projector-address={address}"]
    return [PROGRAM, *access, "status", *addresses, "--watch", "0.2", *more]


def test_the_table_fits_80_columns_and_24_lines_and_shows_every_view_and_what_is_wrong(
    running: str, on_terminal: Callable[..., Terminal]
) -> None:
    terminal = on_terminal(running)
    terminal.wait_for("`tandem status` says all")
    lines = terminal.lines()
    assert max(map(len, lines)) <= 80
    for name in NAMES:
        assert any(line.startswith(f"{name} ") and "987,654" in line for line in lines)
    for words in ("feed head 1,234,56", "events/s ", "command_server", "query_server", "failed", "filling 50%"):
        assert any(words in line for line in lines), words
    assert any(f"{NAMES[-1]} cannot go on: event 7" in line for line in lines)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_in_good_order_with_the_cursor_shown(
    number: signal.Signals, running: str, on_terminal: Callable[..., Terminal]
) -> None:
    terminal = on_terminal(running)
    terminal.wait_for(NAMES[-1])
    assert terminal.end(number) == 0
    assert terminal.written().rindex(SHOW_CURSOR) > terminal.written().rindex(HIDE_CURSOR)
    assert "Traceback" not in terminal.written()


def test_another_size_is_drawn_at_once_and_fits(running: str, on_terminal: Callable[..., Terminal]) -> None:
    terminal = on_terminal(running, columns=120)
    terminal.wait_for(NAMES[-1])
    before = len(terminal.written())
    terminal.resize(60, 24)
    wait_until(lambda: "\x1b[2J" in terminal.written()[before:], "it clears the terminal")
    cleared = terminal.written().index("\x1b[2J", before)
    terminal.wait_for(NAMES[-1], cleared)
    assert max(map(len, terminal.lines(cleared))) <= 60


def test_where_not_all_views_fit_the_one_that_stands_is_shown(
    running: str, on_terminal: Callable[..., Terminal]
) -> None:
    terminal = on_terminal(running, lines=12)
    terminal.wait_for(f"and {len(NAMES) - 3} more views")
    assert any(line.startswith(f"{NAMES[-1]} ") for line in terminal.lines())


def test_a_server_that_goes_away_is_shown_until_it_is_back(
    running: str, certificates: Certificates, on_terminal: Callable[..., Terminal]
) -> None:
    server, query = serve(certificates)
    terminal = on_terminal(running, query_address=query)
    terminal.wait_for(NAMES[-1])
    assert not any("unreachable" in line for line in terminal.lines())
    server.stop(None).wait()
    terminal.wait_for("unreachable")
    away = len(terminal.written())
    server, _ = serve(certificates, query)
    wait_until(
        lambda: (
            "unreachable" not in "".join(terminal.lines(away)[-40:])
            and any("query_server" in line for line in terminal.lines(away)[-40:])
        ),
        "it is shown as serving again",
    )
    assert terminal.end() == 0
    server.stop(None).wait()


def test_a_terminal_that_cannot_move_its_cursor_gets_lines(running: str, on_terminal: Callable[..., Terminal]) -> None:
    terminal = on_terminal(running, environment={"TERM": "dumb"})
    terminal.wait_for("lag ")
    assert terminal.end() == 0
    assert "\x1b" not in terminal.written()


def test_json_is_an_object_a_line_also_where_colours_are_asked_for(certificates: Certificates, running: str) -> None:
    words = command(certificates, running, "", "--json")
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=os.environ | {"FORCE_COLOR": "1"}) as process:
        assert process.stdout is not None
        first, second = (json.loads(process.stdout.readline()) for _ in range(2))
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    assert first["at"] < second["at"]
    assert first["feed_head"] < second["feed_head"]
    assert [it["name"] for it in first["views"]] == NAMES
    assert first["generations"][0]["state"] == "filling"
    assert first["well"] is False
