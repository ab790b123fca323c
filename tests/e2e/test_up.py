"""`tandem up` as a person starts it."""

import json
import os
import re
import signal
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import urlopen

import grpc
import psycopg
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from commerce.command.v1.command_service_pb2 import StartSubscriptionRequest
from commerce.command.v1.command_service_pb2_grpc import CommandServiceStub
from commerce.projection.v1.projection_service_pb2 import ListProjectionsRequest
from commerce.projection.v1.projection_service_pb2_grpc import ProjectionServiceStub
from commerce.query.v1 import query_service_pb2 as queries
from commerce.query.v1.query_service_pb2_grpc import QueryServiceStub
from shop import sample
from shop.cli import SHOP
from shop.views import VIEWS
from tandem.cli.child import HOST
from tandem.cli.embedded import memcached_path
from tandem.cli.mesh import MISSING, envoy_path
from tandem.cli.sample import Stage, send_sample
from tandem.testing.stack import wait_until
from tests.support.terminal import SHOW_CURSOR
from tests.support.up import PROGRAM, Up


# Not under pytest's own folder: another pytest that starts makes that private, and root's PostgreSQL is not root.
@pytest.fixture(scope="module")
def up() -> Iterator[Up]:
    """One that is up, for tests that leave it so."""
    with tempfile.TemporaryDirectory(prefix="tandem-test-") as folder:
        # What a company's machine has set, and what a user's PATH lacks.
        surroundings = {
            "http_proxy": "http://127.0.0.1:9",
            "PGSSLMODE": "require",
            "PATH": os.pathsep.join(it for it in os.environ["PATH"].split(os.pathsep) if not it.endswith("sbin")),
        }
        started = Up(Path(folder) / "data", environment=os.environ | surroundings)
        try:
            yield started.wait_until_up()
        finally:
            started.clean_up()


@pytest.fixture
def new_up() -> Iterator[Callable[..., Up]]:
    started: list[Up] = []
    with tempfile.TemporaryDirectory(prefix="tandem-test-") as folder:

        def start(*options: str, on_terminal: bool = False, forks: bool = True) -> Up:
            started.append(Up(Path(folder) / "data", *options, on_terminal=on_terminal, forks=forks))
            return started[-1]

        yield start
        for it in started:
            it.clean_up()


def feed_head(up: Up, events: int) -> int:
    """The feed's head, once so many events are in it and all views have come that far."""
    with up.channel(up.ports.projector) as channel:
        stub = ProjectionServiceStub(channel)

        def caught_up() -> int:
            answer = stub.ListProjections(ListProjectionsRequest(), timeout=5)
            all_there = answer.feed_head >= events
            return (
                answer.feed_head
                if all_there and all(it.position == answer.feed_head for it in answer.projections)
                else 0
            )

        return wait_until(caught_up, "the views have caught up", seconds=60)


def order(up: Up, number: int) -> queries.GetOrderDetailsResponse:
    with up.channel(up.ports.query) as channel:
        request = queries.GetOrderDetailsRequest(order_id=sample.identity("order", number))
        return QueryServiceStub(channel).GetOrderDetails(request, timeout=10)


def events_of_the_sample() -> int:
    """One of each command, and one of each subscription that is over when it is loaded: it lapses within seconds."""
    requests = [it for stage in sample.generate() for it in stage.requests]
    lapsing = [it for it in requests if isinstance(it, StartSubscriptionRequest) and it.HasField("started_at")]
    return len(requests) + len(lapsing)


def test_the_whole_sample_is_in_the_feed_and_in_the_views(up: Up) -> None:
    assert feed_head(up, events_of_the_sample()) == events_of_the_sample()
    for number in (1, sample.ORDERS):
        assert order(up, number).order_details.order_id == sample.identity("order", number)


def test_status_finds_all_well(up: Up) -> None:
    addresses = [f"--{name}-address=127.0.0.1:{getattr(up.ports, name)}" for name in ("command", "query", "projector")]
    result = subprocess.run([PROGRAM, "status", "--json", *addresses], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert json.loads(result.stdout)["well"] is True


def test_the_lines_that_it_prints_work_when_pasted(up: Up) -> None:
    said = up.said()
    lines = [line.strip() for line in said.split("Try, in another terminal:")[1].split("Tandem is up")[0].splitlines()]
    script = "\n".join(["set -eu -o pipefail", *filter(None, lines)])
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "commerce.command.v1.CommandService" in result.stdout
    assert sample.identity("order", 1) in result.stdout
    assert '"status": "ORDER_STATUS_PLACED"' in result.stdout, "the order that was placed is read back"


def test_it_says_what_goes_on_in_plain_lines_where_there_is_no_terminal(up: Up) -> None:
    up.wait_until_it_says("feed head ")
    assert "\x1b" not in up.said()
    line = next(line for line in up.said().splitlines() if "feed head" in line)
    for words in ("commands/s ", "lag ", "order_details ", "cache hits "):
        assert words in line


def test_without_memcached_on_the_path_it_says_so_and_runs_without(up: Up) -> None:
    runs = any("memcached" in command for command in up.children())
    assert runs == (memcached_path() is not None)
    assert ("without a cache: memcached is not on the PATH" in up.said()) == (not runs)


def test_a_second_one_on_the_same_folder_is_refused(up: Up) -> None:
    second = Up(up.folder)
    assert second.process.wait(120) == 1
    assert f"another `tandem up` (process {up.process.pid}) runs on" in second.said()


def test_a_service_that_is_killed_is_named_and_started_again(up: Up) -> None:
    up.child("-m query_server").kill()
    up.wait_until_it_says("query_server died (signal SIGKILL)")
    up.wait_until_it_says("query_server was started again")

    def serves() -> bool:
        with up.channel(up.ports.query) as channel:
            try:
                answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=1)
            except grpc.RpcError:
                return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    wait_until(serves, "the query server serves again")
    assert order(up, 2).order_details.order_id == sample.identity("order", 2)


def test_a_load_that_was_cut_short_goes_on_and_ctrl_c_leaves_the_data_and_no_process(new_up: Callable[..., Up]) -> None:
    first = new_up()
    first.wait_until_it_says("query_server ")
    with first.channel(first.ports.projector) as channel:
        stub = ProjectionServiceStub(channel)
        wait_until(lambda: stub.ListProjections(ListProjectionsRequest(), timeout=5).feed_head > 300, "it loads")
    assert first.end(signal.SIGKILL) == -signal.SIGKILL

    second = new_up().wait_until_up()
    events = events_of_the_sample()
    assert feed_head(second, events) == events, "nothing is stored twice"
    assert second.end(signal.SIGINT) == 0
    assert "stopped; the data stays in" in second.said()

    third = new_up().wait_until_up()
    assert "sample data:" not in third.said()
    assert feed_head(third, events) == events
    assert order(third, 1).order_details.order_id == sample.identity("order", 1)


def test_sigterm_while_it_starts_stops_it(new_up: Callable[..., Up]) -> None:
    started = new_up("--no-sample")
    started.wait_until_it_says("PostgreSQL ")
    assert started.end(signal.SIGTERM) == 0


def test_lite_needs_one_database_and_no_cache_and_a_terminal_shows_it_live(new_up: Callable[..., Up]) -> None:
    started = new_up("--lite", "--no-sample", on_terminal=True).wait_until_up()
    products = sample.generate()[1]
    with started.channel(started.ports.command) as channel:
        send_sample(CommandServiceStub(channel), [Stage("products", products.requests[:3])])
    assert feed_head(started, 3) == 3
    with started.channel(started.ports.query) as channel:
        request = queries.GetProductRequest(product_id=sample.identity("product", 3))
        assert QueryServiceStub(channel).GetProduct(request, timeout=10).product.product_id == request.product_id
    assert not any("memcached" in command for command in started.children())
    url = f"postgresql://postgres@127.0.0.1:{started.ports.postgres}/postgres"
    password = (started.folder / "postgres.password").read_text(encoding="ascii").strip()
    with psycopg.connect(url, password=password) as connection:
        names = connection.execute("SELECT datname FROM pg_database WHERE datname LIKE 'tandem%'").fetchall()
    assert names == [("tandem_write",)]
    assert started.terminal is not None
    started.terminal.wait_for("feed head 3 · ")
    lines = started.said().split("Tandem is up")[1].splitlines()[1:]
    assert max(map(len, lines)) <= 80
    for name in ("PostgreSQL", "command_server", "query_server", "projector", *VIEWS):
        assert any(line.startswith(f"{name} ") for line in lines), name
    assert started.end(signal.SIGINT) == 0
    assert SHOW_CURSOR in started.terminal.written()


@pytest.mark.skipif(envoy_path() is None, reason=MISSING)
def test_with_a_mesh_calls_go_through_envoy_to_two_servers_of_each(new_up: Callable[..., Up]) -> None:
    started = new_up("--lite", "--no-sample", "--mesh", "--pages", forks=False).wait_until_up()
    assert Counter(
        it for it in ("command_server", "query_server") for line in started.children() if f"-m {it}" in line
    ) == {
        "command_server": 2,
        "query_server": 2,
    }
    [products] = [it for it in sample.generate() if it.title == "products"]
    with started.channel(started.ports.mesh) as channel:
        send_sample(CommandServiceStub(channel), [Stage("products", products.requests[:3])])
        assert feed_head(started, 3) == 3
        request = queries.GetProductRequest(product_id=sample.identity("product", 3))
        assert QueryServiceStub(channel).GetProduct(request, timeout=10).product.product_id == request.product_id
        # What the operators' console asks.
        assert len(ProjectionServiceStub(channel).ListProjections(ListProjectionsRequest(), timeout=10).projections)
    assert SHOP.pages is not None
    if not (SHOP.pages / "index.html").is_file():
        assert "without pages: they are not built: make pages" in started.said()
        return
    address = f"http://{HOST}:{started.ports.mesh}/"
    assert re.search(rf"^  {re.escape(address)} +The shop$", started.said(), re.MULTILINE)
    with urlopen(address, timeout=10) as page:
        assert page.read() == (SHOP.pages / "index.html").read_bytes()
        assert "default-src 'none'" in page.headers["content-security-policy"]


def test_a_service_with_wrong_settings_is_told_in_its_own_words(
    new_up: Callable[..., Up], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TANDEM_QUERY_READER__THREADS", "0")
    started = new_up("--no-sample")
    assert started.process.wait(120) == 1
    assert "query_server ended with exit code 2; its log ends:" in started.said()
    assert "TANDEM_QUERY_READER__THREADS" in started.said()
