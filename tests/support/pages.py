"""The pages in a real browser, against a real stack behind a real Envoy, over a connection that can be cut."""

import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from playwright.sync_api import Browser, Page, expect, sync_playwright

from commerce.audit.v1.audit_service_pb2 import VerifyRequest
from commerce.audit.v1.audit_service_pb2_grpc import AuditServiceStub
from shop import sample
from shop.cli import ENVOY, SHOP
from tandem.cli.child import HOST
from tandem.cli.embedded import Memcached
from tandem.cli.mesh import MISSING, Envoy, MeshConfig, envoy_path
from tandem.cli.sample import Stage, send_sample
from tandem.cli.services import Service
from tandem.testing.ports import free_port
from tandem.testing.stack import end_node, up_to
from tests.support.proxy import CuttingProxy
from tests.support.stack import Databases, Stack

CHROMIUM = shutil.which("chromium")
ROOT = Path(__file__).parents[2]
_AXE = ROOT / "pages" / "node_modules" / "axe-core" / "axe.min.js"
# What the tests see is kept here, for people and for docs/pages.md.
PICTURES = ROOT / "build" / "pages"
_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_PATIENCE_MILLISECONDS = 20_000


def why_no_pages() -> str:
    """Empty where the pages can be shown."""
    if envoy_path() is None:
        return MISSING
    if CHROMIUM is None:
        return "chromium is not installed (apt-get install chromium): the pages' tests need it"
    assert SHOP.pages is not None
    return "" if (SHOP.pages / "index.html").is_file() else "the pages are not built: make pages"


@dataclass
class Pages:
    """proxy: between the browsers and Envoy, whose address the pages have."""

    stack: Stack
    proxy: CuttingProxy
    browser: Browser
    products: tuple[str, ...]
    customers: tuple[str, ...]
    # Kept from test to test: a new one takes more than a second of a processor.
    _windows: list[Page] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.proxy.port}"

    def window(self, number: int = 0) -> Page:
        """A page of a browser of its own, in which nothing is kept from before."""
        while len(self._windows) <= number:
            context = self.browser.new_context(locale="en-GB")
            context.set_default_timeout(_PATIENCE_MILLISECONDS)
            self._windows.append(context.new_page())
        page = self._windows[number]
        # Of the same origin, and nothing in it runs.
        page.goto(f"{self.address}/icon.svg")
        page.evaluate("localStorage.clear(), sessionStorage.clear()")
        look(page)
        return page

    def buyer(self, customer: int = 0, *, window: int = 0) -> Page:
        """The shop's page of a customer of the sample, in a browser of its own."""
        page = self.window(window)
        page.goto(f"{self.address}/#/as/{self.customers[customer]}")
        page.get_by_role("contentinfo").get_by_text("You buy as").wait_for()
        return page


def look(page: Page, *, dark: bool = False, width: int = 1280, height: int = 800) -> None:
    page.set_viewport_size({"width": width, "height": height})
    page.emulate_media(color_scheme="dark" if dark else "light", reduced_motion="reduce")


def add_to_basket(page: Page, product_id: str) -> None:
    page.goto(f"{page.url.split('#')[0]}#/product/{product_id}")
    page.get_by_role("button", name="Add to basket").click()
    page.get_by_role("link", name="Basket").click()


def place_order(page: Page, product_id: str) -> str:
    """The order's id."""
    add_to_basket(page, product_id)
    page.get_by_role("button", name="Place order").click()
    page.wait_for_url(re.compile("#/order/"))
    return page.url.rsplit("/", 1)[1]


def expect_progress(page: Page, progress: str) -> None:
    # The page itself says when it is there; `expect` looks again after pauses that grow to a second.
    page.locator(f"main [data-progress={progress}]").wait_for()


def violations(page: Page, *rules: str) -> list[str]:
    """What axe finds, by these rules or by all that it has."""
    if not page.evaluate("'axe' in window"):
        page.evaluate(_AXE.read_text())
    options: dict[str, Any] = {"resultTypes": ["violations"], **({"runOnly": list(rules)} if rules else {})}
    result: dict[str, Any] = page.evaluate("options => axe.run(options)", options)
    return [f"{it['id']}: {it['nodes'][0]['html']}" for it in result["violations"]]


def damage(pages: Pages, product_id: str) -> None:
    """A row of a product is not what the events make of it, which is found and made right."""
    with psycopg.connect(pages.stack.read_url, autocommit=True) as connection:
        connection.execute(f"UPDATE tandem_read.product_card SET available = -1 WHERE key = '{product_id}'")
    audit = AuditServiceStub(pages.stack.channel(pages.stack.projector))
    request = VerifyRequest(subjects=["product_card"], keys=[product_id], repair=True)
    assert any(it.differences for it in audit.Verify(request, timeout=60))


@contextmanager
def poison(pages: Pages, view: str, key: str) -> Iterator[None]:
    """A row of the view takes nothing more in meanwhile."""
    with psycopg.connect(pages.stack.read_url, autocommit=True) as connection:
        [position] = connection.execute(f"SELECT max(position) FROM tandem_read.{view}").fetchone() or [0]
        connection.execute(
            f"ALTER TABLE tandem_read.{view} ADD CONSTRAINT poison"
            f" CHECK (key <> '{key}' OR position <= {position}) NOT VALID"
        )
        try:
            yield
        finally:
            connection.execute(f"ALTER TABLE tandem_read.{view} DROP CONSTRAINT poison")


@contextmanager
def running_envoy(stack: Stack, projector: Service, folder: Path) -> Iterator[Envoy]:
    """An Envoy that serves the pages and lets operators in."""
    assert SHOP.pages is not None
    servers = {"command": [stack.command_server.address], "query": [stack.query_server.address]}
    port = free_port()
    config = MeshConfig(ENVOY, port=port, servers=servers).without_identity().with_pages(SHOP.pages)
    config.with_operators([projector.address], projections=SHOP.projections.full_name, receipts=SHOP.receipts.full_name)
    envoy = Envoy(config, port, folder, folder.with_suffix(".log"))
    try:
        envoy.start()
        yield envoy
    finally:
        envoy.stop()


@contextmanager
def running_pages(databases: Databases, logs: Path) -> Iterator[Pages]:
    expect.set_options(timeout=_PATIENCE_MILLISECONDS)
    with ExitStack() as exits:
        nodes = [Memcached(free_port()) for _ in range(up_to(1))]
        for node in nodes:
            node.start()
            exits.callback(end_node, node)
        # Small batches, so that a rebuild of these few events has a middle that can be seen.
        stack = Stack(databases, logs, nodes=nodes, settings={"PROJECTOR": {"FOLLOW__REBUILD_BATCH": "20"}})
        exits.callback(stack.stop)
        stack.start()
        envoy = exits.enter_context(running_envoy(stack, stack.projector, logs / "envoy"))
        proxy = CuttingProxy((HOST, envoy.port))
        exits.callback(proxy.close)
        playwright = exits.enter_context(sync_playwright())
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(_FLAGS))
        exits.callback(browser.close)
        stages = {it.title: it.requests for it in sample.generate()}
        customers, products = stages["customers"][:20], stages["products"][:120]
        send_sample(stack.commands, [Stage("customers", customers), Stage("products", products)])
        yield Pages(
            stack,
            proxy,
            browser,
            products=tuple(sample.identity("product", it) for it in range(1, len(products) + 1)),
            customers=tuple(sample.identity("customer", it) for it in range(1, len(customers) + 1)),
        )
