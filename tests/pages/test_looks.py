"""How the pages look: where things are, in light and dark, wide and on a phone; and whether everybody can use them.

Each view is opened once and looked at in all these ways: to open one takes longer than to look at it.
"""

import base64
import json
import os
from pathlib import Path

import pytest
from playwright.sync_api import Page

from commerce.command.v1.command_service_pb2 import AdjustStockRequest, RenameCustomerRequest
from commerce.projection.v1.projection_service_pb2 import RedriveParkedKeysRequest, StartRebuildRequest
from tests.support.pages import (
    PICTURES,
    ROOT,
    Pages,
    add_to_basket,
    damage,
    expect_progress,
    look,
    place_order,
    poison,
    violations,
)

LAYOUT = Path(__file__).with_name("layout.json")
# What a page is made of, for a layout to be compared: boxes, not pixels.
LANDMARKS = {
    "header": "header",
    "search": "header [role=search]",
    "navigation": "header nav",
    "main": "main",
    "heading": "main h1",
    "filters": "main aside",
    "list": "main ul",
    "table": "main .scrolls",
    "dialog": "dialog form",
    "footer": "footer",
}
# A browser of another version draws letters and boxes a little larger or smaller.
TOLERANCE = 16
WIDE, PHONE = 1280, 390
# What makes a page wider than its window, if anything does.
TOO_WIDE = """() => document.documentElement.scrollWidth <= innerWidth ? [] : [...document.querySelectorAll("body *")]
    .filter(it => it.getBoundingClientRect().right > innerWidth).map(it => it.outerHTML.slice(0, 100))"""
# Of docs/pages.md: `make pictures` makes them anew.
IN_DOCS = {
    "shop-catalogue-wide",
    "shop-order-phone",
    "sales-wide",
    "console-overview-wide",
    "console-view-dark",
    "console-parked-wide",
    "console-lag-wide",
}
DOCS = ROOT / "docs" / "pictures"
WRITES_PICTURES = os.environ.get("WRITE_PICTURES") == "1"
# Chromium makes a WebP of a picture: a tenth of the bytes.
AS_WEBP = """async picture => {
    const bitmap = await createImageBitmap(await (await fetch(picture)).blob());
    const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
    canvas.getContext("2d").drawImage(bitmap, 0, 0);
    const bytes = new Uint8Array(await (await canvas.convertToBlob({type: "image/webp", quality: 0.8})).arrayBuffer());
    return btoa(Array.from(bytes, it => String.fromCharCode(it)).join(""));
}"""


def keep_picture(page: Page, name: str) -> None:
    """In build/pages for people; what docs/pages.md shows there too, where that is wanted."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    picture = page.screenshot(path=PICTURES / f"{name}.png")
    if WRITES_PICTURES and name in IN_DOCS:
        assert page.context.browser is not None
        blank = page.context.browser.new_page()
        webp = blank.evaluate(AS_WEBP, f"data:image/png;base64,{base64.b64encode(picture).decode()}")
        blank.close()
        DOCS.mkdir(exist_ok=True)
        (DOCS / f"{name}.webp").write_bytes(base64.b64decode(webp))


def boxes(page: Page) -> dict[str, list[int]]:
    """Left, top and width of each landmark."""
    found: dict[str, list[int]] = page.evaluate(
        """landmarks => Object.fromEntries(Object.entries(landmarks).flatMap(([name, selector]) => {
            const box = document.querySelector(selector)?.getBoundingClientRect();
            return box?.width ? [[name, [box.x, box.y, box.width].map(Math.round)]] : [];
        }))""",
        LANDMARKS,
    )
    # Where it ends depends on what there is to read.
    found["footer"][1] = 0
    return found


def moved(view: str, found: dict[str, list[int]]) -> list[str]:
    """What is not where it was; with WRITE_LAYOUT=1 it is there from now on."""
    known = json.loads(LAYOUT.read_text())
    if os.environ.get("WRITE_LAYOUT") == "1":
        LAYOUT.write_text(json.dumps(dict(sorted((known | {view: found}).items())), indent=None) + "\n")
        return []
    was = known.get(view, {})
    return [
        f"{view}: {it} is at {found.get(it)}, and was at {was.get(it)}"
        for it in {**was, **found}
        if max(abs(a - b) for a, b in zip(was.get(it, [9999] * 3), found.get(it, [-9999] * 3), strict=True)) > TOLERANCE
    ]


def problems(page: Page, view: str) -> list[str]:
    """What is wrong with what the page shows now, in each way of looking at it. Keeps a picture of each."""
    found = []
    for name, width, dark in (("phone", PHONE, False), ("wide", WIDE, False), ("dark", WIDE, True)):
        look(page, width=width, dark=dark)
        keep_picture(page, f"{view}-{name}")
        if not dark:
            found += moved(f"{view}-{name}", boxes(page))
            found += [f"{view}-{name} is wider than the window: {it}" for it in page.evaluate(TOO_WIDE)]
    # Only colours differ in the dark.
    found += [f"{view}, in the dark: {it}" for it in violations(page, "color-contrast")]
    look(page)
    return found + [f"{view}: {it}" for it in violations(page)]


def settle(page: Page) -> None:
    """Waits until all is shown."""
    page.locator("main h1").wait_for()
    page.locator("main [aria-busy=true]").first.wait_for(state="hidden")
    page.locator("main li, main .price, main [role=alert], main td, main .empty").filter(visible=True).first.wait_for()


@pytest.fixture(scope="module")
def shopping(pages: Pages) -> dict[str, str]:
    """The address of each view of the shop, for a customer who has ordered something."""
    page = pages.buyer(6)
    order_id = place_order(page, pages.products[6])
    expect_progress(page, "confirmed")
    return {
        "catalogue": "?q=canvas",
        "product": f"product/{pages.products[6]}",
        "basket": "basket",
        "order": f"order/{order_id}",
        "orders": "orders",
        "missing": "order/00000000-0000-0000-0000-000000000000",
    }


def test_each_view_of_the_shop_is_laid_out_as_before_and_open_to_everybody(
    pages: Pages, shopping: dict[str, str]
) -> None:
    page = pages.buyer(6)
    add_to_basket(page, pages.products[7])
    found = []
    for view, address in shopping.items():
        page.goto(f"{pages.address}/#/{address}")
        settle(page)
        found += problems(page, f"shop-{view}")
    assert found == [], "look at build/pages; WRITE_LAYOUT=1 takes the layout as it is"


def test_the_page_of_sales_is_laid_out_as_before_and_open_to_everybody(pages: Pages, shopping: dict[str, str]) -> None:
    page = pages.window()
    page.goto(f"{pages.address}/sales")
    page.locator("main .figures").wait_for()
    settle(page)
    assert problems(page, "sales") == []


def work(pages: Pages, page: Page) -> None:
    """Gives a picture of the console something to show: half a minute of changes, and a rebuild that takes its time."""
    pages.stack.projections.StartRebuild(StartRebuildRequest(view="product_search", max_events_per_second=20))
    for second in range(30):
        for number in range(1 + second * 7 % 23):
            product = pages.products[number]
            pages.stack.commands.AdjustStock(AdjustStockRequest(product_id=product, delta=1))
        page.wait_for_timeout(1_000)


def test_each_view_of_the_console_is_laid_out_as_before_and_open_to_everybody(
    pages: Pages, shopping: dict[str, str]
) -> None:
    page = pages.window()
    customer = pages.customers[11]
    found = []
    damage(pages, pages.products[22])
    with poison(pages, "customer_profile", customer):
        pages.stack.commands.RenameCustomer(RenameCustomerRequest(customer_id=customer, name="Ada Example"))
        page.goto(f"{pages.address}/console#/")
        page.get_by_role("link", name="1 row parked").wait_for()
        if WRITES_PICTURES:
            work(pages, page)
        found += problems(page, "console-overview")
        places = {
            "view": "view/customer_profile",
            "parked": f"parked/customer_profile/{customer}",
            "why": f"why/{shopping['order'].removeprefix('order/')}",
            "log": "log",
        }
        for view, place in places.items():
            page.goto(f"{pages.address}/console#/{place}")
            settle(page)
            found += problems(page, f"console-{view}")
        page.get_by_role("link", name="Parked").click()
        page.get_by_role("button", name="Redrive").click()
        page.get_by_role("dialog").wait_for()
        found += problems(page, "console-question")
        page.keyboard.press("Escape")
    pages.stack.projections.RedriveParkedKeys(RedriveParkedKeysRequest(view="customer_profile"))
    page.get_by_text("Nothing is parked.").wait_for()
    page.get_by_role("link", name="Lag").click()
    page.get_by_role("button", name="Place an order").click()
    page.locator("[data-step='Read back']").wait_for()
    page.get_by_role("button", name="Place an order", disabled=False).wait_for()
    found += problems(page, "console-lag")
    assert found == [], "look at build/pages; WRITE_LAYOUT=1 takes the layout as it is"
