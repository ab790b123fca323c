"""The rules alert and every panel shows something: the real Prometheus says so, of services that run."""

import itertools
import json
import re
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from commerce.projection.v1.projection_service_pb2 import StartRebuildRequest
from commerce.query.v1.query_service_pb2 import GetOrderDetailsRequest
from commerce.type.v1.consistency_pb2 import Consistency
from tandem.cli.child import HOST
from tandem.cli.embedded import Memcached, memcached_path
from tests.support.builders import add_product, identity, place_order, register_customer
from tests.support.ports import free_port
from tests.support.stack import Databases, Stack, end_node, wait_until
from tools.metrics import all_metrics

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
RULES = DEPLOY / "prometheus" / "tandem.rules.yml"
DASHBOARD = DEPLOY / "grafana" / "tandem.json"

needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="Prometheus is not installed (apt-get install prometheus): alerts and dashboard are not tried",
)


def alerts() -> list[str]:
    return re.findall(r"- alert: (\w+)", RULES.read_text())


def queries() -> list[tuple[str, str]]:
    """Title and query of every panel."""
    return [
        (panel["title"], target["expr"].replace("$__rate_interval", "10s"))
        for panel in json.loads(DASHBOARD.read_text())["panels"]
        for target in panel.get("targets", ())
    ]


def test_each_alert_has_its_section_in_the_runbook_and_its_test() -> None:
    text = (ROOT / "docs" / "runbook.md").read_text()
    sections = re.findall(r"^### (Tandem\w+)$", text.partition("\n## Alerts\n")[2], re.MULTILINE)
    assert sections == alerts()
    tested = re.findall(r"- name: (\w+)", (DEPLOY / "prometheus" / "tandem.rules.test.yml").read_text())
    assert tested == alerts()
    runbooks = re.findall(r"runbook: docs/runbook.md#(\w+)", RULES.read_text())
    assert runbooks == [it.lower() for it in alerts()]


def test_rules_and_dashboard_ask_for_metrics_that_there_are() -> None:
    known = {it.name for it in all_metrics()}
    asked = set(re.findall(r"\btandem_\w+", RULES.read_text() + " ".join(query for _, query in queries())))
    assert {re.sub("_(bucket|sum|count)$", "", it) for it in asked} <= known


@needs_prometheus
def test_each_alert_fires_on_its_series_and_not_before() -> None:
    for command in (["test", "rules", "tandem.rules.test.yml"], ["check", "config", "prometheus.yml"]):
        done = subprocess.run(
            ["promtool", *command], cwd=DEPLOY / "prometheus", capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr


class Prometheus:
    """A server that scrapes a stack twice a second."""

    def __init__(self, folder: Path, stack: Stack) -> None:
        self.port = free_port()
        targets = [f"{HOST}:{it.metrics_port}" for it in stack.services]
        config = folder / "prometheus.yml"
        config.write_text(
            json.dumps({
                "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "1s"},
                "rule_files": [str(RULES)],
                "scrape_configs": [{"job_name": "tandem", "static_configs": [{"targets": targets}]}],
            })
        )  # fmt: skip
        self._log = (folder / "prometheus.log").open("wb")
        self._process = subprocess.Popen(
            ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}",
             f"--web.listen-address={HOST}:{self.port}"],
            stdout=self._log, stderr=self._log,
        )  # fmt: skip

    def get(self, path: str, **parameters: str) -> Any:
        url = f"http://{HOST}:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def is_up(self) -> bool:
        assert self._process.poll() is None, Path(self._log.name).read_text()
        try:
            return bool(self.get("query", query='count(up{job="tandem"} == 1)')["result"])
        except OSError:
            return False

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=20)
        self._log.close()


@pytest.fixture(scope="module")
def stack(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    nodes = [Memcached(free_port())] if memcached_path() else []
    for node in nodes:
        node.start()
    it = Stack(databases, tmp_path_factory.mktemp("stack"), nodes=nodes)
    yield it.start()
    it.stop()
    for node in nodes:
        end_node(node)


@pytest.fixture(scope="module")
def prometheus(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    it = Prometheus(tmp_path_factory.mktemp("prometheus"), stack)
    try:
        wait_until(it.is_up, "Prometheus has scraped")
        yield it
    finally:
        it.stop()


@needs_prometheus
def test_every_panel_shows_something_of_services_that_run(stack: Stack, prometheus: Prometheus) -> None:
    stack.commands.RegisterCustomer(register_customer(1), timeout=20)
    stack.commands.AddProduct(add_product(1, stock=1_000_000), timeout=20)
    stack.projections.StartRebuild(StartRebuildRequest(view="order_summary"), timeout=20)
    numbers = itertools.count()

    def traffic() -> None:
        order = place_order(next(numbers), customer=1, lines={1: 1})
        receipt = stack.commands.PlaceOrder(order, timeout=20).receipt
        fresh = Consistency(at_least_as_fresh=receipt.consistency_token)
        request = GetOrderDetailsRequest(order_id=order.order_id, consistency=fresh)
        stack.queries.GetOrderDetails(request, timeout=20)
        with pytest.raises(grpc.RpcError):
            stack.queries.GetOrderDetails(GetOrderDetailsRequest(order_id=identity("no order")), timeout=20)

    empty = dict(queries())

    def all_show() -> bool:
        # A rate is of two scrapes at least, and of calls between them.
        traffic()
        for title, query in list(empty.items()):
            # An HTTP error is a query that Prometheus does not understand.
            if prometheus.get("query", query=query)["result"]:
                del empty[title]
        return not empty

    try:
        wait_until(all_show, "every panel", seconds=40)
    except AssertionError:
        pytest.fail(f"these panels show nothing: {empty}")


@needs_prometheus
def test_no_alert_fails_nor_fires_while_all_is_well(prometheus: Prometheus) -> None:
    def evaluated() -> list[Any]:
        [group] = prometheus.get("rules")["groups"]
        rules: list[Any] = group["rules"]
        return rules if all(it["health"] != "unknown" for it in rules) else []

    rules = wait_until(evaluated, "the rules were evaluated")
    assert [it["name"] for it in rules] == alerts()
    assert [it["lastError"] for it in rules if it["health"] != "ok"] == []
    assert [it["name"] for it in rules if it["state"] == "firing"] == []
