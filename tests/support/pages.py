"""The pages in a real browser, against a real stack behind a real Envoy, over a connection that can be cut."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from shop import sample
from shop.cli import ENVOY, SHOP
from tandem.cli.child import HOST
from tandem.cli.mesh import MISSING, Envoy, MeshConfig, envoy_path
from tandem.cli.sample import Stage, send_sample
from tandem.testing.ports import free_port
from tests.support.proxy import CuttingProxy
from tests.support.stack import Databases, Stack

CHROMIUM = shutil.which("chromium")
ROOT = Path(__file__).parents[2]
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

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.proxy.port}"

    def someone(self, *, dark: bool = False, width: int = 1280, height: int = 800) -> BrowserContext:
        """A browser of its own, in which nothing is kept from others."""
        context = self.browser.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", locale="en-GB"
        )
        context.set_default_timeout(_PATIENCE_MILLISECONDS)
        return context

    def buyer(self, number: int = 0, context: BrowserContext | None = None) -> Page:
        """The shop's page of a customer of the sample, in a browser of its own."""
        page = (context or self.someone()).new_page()
        page.goto(f"{self.address}/#/as/{self.customers[number]}")
        expect(page.get_by_role("contentinfo")).to_contain_text("You buy as")
        return page


@contextmanager
def running_pages(databases: Databases, logs: Path) -> Iterator[Pages]:
    expect.set_options(timeout=_PATIENCE_MILLISECONDS)
    assert SHOP.pages is not None
    with ExitStack() as exits:
        stack = Stack(databases, logs)
        exits.callback(stack.stop)
        stack.start()
        servers = {"command": [stack.command_server.address], "query": [stack.query_server.address]}
        port = free_port()
        config = MeshConfig(ENVOY, port=port, servers=servers).without_identity().with_pages(SHOP.pages)
        envoy = Envoy(config, port, logs / "envoy", logs / "envoy.log")
        exits.callback(envoy.stop)
        envoy.start()
        proxy = CuttingProxy((HOST, port))
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
