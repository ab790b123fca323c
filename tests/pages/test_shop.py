"""The shop's page, as people use it: what is asked for is there at once, and what goes wrong is said and mended."""

import json
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from commerce.command.v1.command_service_pb2 import AddProductRequest
from commerce.query.v1.query_service_pb2 import GetProductRequest, ListRecentOrdersRequest
from commerce.type.v1.consistency_pb2 import Consistency
from commerce.type.v1.money_pb2 import Money
from tandem.feed.token import encode_token
from tandem.testing.stack import pause, resume, wait_until
from tests.support.pages import PICTURES, ROOT, Pages, running_pages, why_no_pages
from tests.support.stack import Databases

pytestmark = pytest.mark.skipif(bool(why_no_pages()), reason=why_no_pages())

LAYOUT = Path(__file__).with_name("layout.json")
AXE = ROOT / "pages" / "node_modules" / "axe-core" / "axe.min.js"
# What a page is made of, for a layout to be compared: boxes, not pixels.
LANDMARKS = {
    "header": "header",
    "search": "header [role=search]",
    "navigation": "header nav",
    "main": "main",
    "heading": "main h1",
    "filters": "main aside",
    "list": "main ul",
    "footer": "footer",
}
# A browser of another version draws letters and boxes a little larger or smaller.
TOLERANCE = 16


@pytest.fixture(scope="module")
def pages(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    with running_pages(databases, tmp_path_factory.mktemp("pages")) as pages:
        yield pages


@pytest.fixture(autouse=True)
def _alone(pages: Pages) -> Iterator[None]:
    """Closes a test's browsers, whose watches would go on."""
    yield
    for context in pages.browser.contexts:
        context.close()


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
    expect(page.locator(f"main [data-progress={progress}]")).to_have_count(1)


def expect_status(page: Page, status: str) -> None:
    expect(page.locator("main .state .status")).to_have_text(status)


def orders_of(pages: Pages, customer: int) -> list[str]:
    request = ListRecentOrdersRequest(customer_id=pages.customers[customer], page_size=100)
    return [it.order_id for it in pages.stack.queries.ListRecentOrders(request).orders]


def test_the_catalogue_is_searched_as_one_types_and_narrowed_down(pages: Pages) -> None:
    page = pages.someone().new_page()
    said: list[str] = []
    page.on("console", lambda it: said.append(it.text))
    page.on("pageerror", lambda it: said.append(str(it)))
    page.goto(pages.address)
    expect(page.get_by_text("120 products")).to_be_visible()
    # By keyboard alone: over the skip link and the shop's name into the search.
    for _ in range(3):
        page.keyboard.press("Tab")
    page.keyboard.type("watering", delay=5)
    expect(page.get_by_role("heading", name="Results for “watering”")).to_be_visible()
    expect(page.locator("main [aria-busy=true]")).to_have_count(0)
    expect(page.locator("main .card mark").first).to_have_text(re.compile("^Watering", re.IGNORECASE))
    found = page.locator("main .card").count()
    assert 0 < found < 24
    page.get_by_role("searchbox").fill("wattering can")
    expect(page.get_by_role("link", name="watering can", exact=True)).to_be_visible()
    page.get_by_role("searchbox").fill("")
    expect(page.get_by_text("120 products")).to_be_visible()
    kitchen = page.get_by_role("checkbox", name=re.compile("Kitchen"))
    count = int(re.sub(r"\D", "", kitchen.locator("xpath=..").inner_text()))
    kitchen.check()
    expect(page.get_by_text(f"{count} products")).to_be_visible()
    page.get_by_label("Sort by").select_option("Price, lowest first")
    page.reload()
    expect(page.get_by_text(f"{count} products")).to_be_visible()
    prices = [float(it.lstrip("€")) for it in page.locator("main .card .price").all_inner_texts()]
    assert prices == sorted(prices)
    page.locator("main .card a").first.click()
    expect(page.get_by_role("heading", level=1)).to_be_focused()
    assert said == [], "the content-security-policy refuses nothing, and nothing fails"


def test_an_order_is_there_at_once_and_a_second_browser_sees_what_becomes_of_it(pages: Pages) -> None:
    first = pages.buyer()
    add_to_basket(first, pages.products[0])
    pages.proxy.be_silent()
    first.get_by_role("button", name="Place order").click()
    expect_status(first, "Placed")
    expect_progress(first, "sending")
    first.get_by_role("link", name="Orders").click()
    expect(first.locator("main .orders li").first).to_contain_text("On its way")
    first.go_back()
    pages.proxy.speak()
    expect_progress(first, "confirmed")
    order_id = first.url.rsplit("/", 1)[1]

    second = pages.buyer()
    second.goto(f"{pages.address}/#/order/{order_id}")
    expect_status(second, "Placed")
    first.get_by_role("button", name="Pay now").click()
    expect_status(second, "Paid")
    expect_progress(first, "confirmed")
    second.get_by_text("For the staff").click()
    second.get_by_role("button", name="Mark as shipped").click()
    expect_status(first, "Shipped")
    # In the list, too, in a browser that did not look at the order.
    first.get_by_role("link", name="Orders").click()
    expect(first.locator("main .orders li").first).to_contain_text("Shipped")

    cancelled = place_order(first, pages.products[1])
    expect_progress(first, "confirmed")
    second.goto(f"{pages.address}/#/order/{cancelled}")
    second.get_by_role("button", name="Cancel the order").click()
    expect_status(first, "Cancelled")


def test_of_two_browsers_that_buy_the_last_one_one_is_told_why_it_gets_none(pages: Pages) -> None:
    product = AddProductRequest(
        product_id=str(uuid.uuid4()),
        name="Last Lantern",
        price=Money(minor_units=2999, currency_code="EUR"),
        initial_stock=1,
    )
    added = pages.stack.commands.AddProduct(product).receipt.consistency_token
    fresh = Consistency(at_least_as_fresh=added)
    pages.stack.queries.GetProduct(GetProductRequest(product_id=product.product_id, consistency=fresh))
    buyers = [pages.buyer(1), pages.buyer(2)]
    for page in buyers:
        add_to_basket(page, product.product_id)
    for page in buyers:
        page.get_by_role("button", name="Place order").click()
    confirmed, refused = buyers
    expect_progress(confirmed, "confirmed")
    expect(refused.get_by_role("alert")).to_contain_text("The order was not placed. Your basket is as it was.")
    expect(refused.get_by_role("alert")).to_contain_text("Last Lantern: 1 are ordered, 0 are left")
    assert refused.url.endswith("#/basket")
    expect(refused.get_by_role("spinbutton")).to_have_value("1")
    expect(refused.get_by_role("link", name="Basket")).to_contain_text("1")
    refused.get_by_role("link", name="Orders").click()
    expect(refused.get_by_text("None yet.")).to_be_visible()
    expect(refused.get_by_role("alert")).to_contain_text("An order was not placed.")
    refused.goto(f"{pages.address}/#/product/{product.product_id}")
    expect(refused.get_by_text("Sold out")).to_be_visible()


def test_what_is_not_as_the_contract_wants_it_is_said_beside_its_field(pages: Pages) -> None:
    page = pages.someone().new_page()
    page.goto(pages.address)
    add_to_basket(page, pages.products[2])
    page.get_by_label("Name").fill("Ada Example")
    page.get_by_label("Street and number").fill("1 Mill Lane")
    page.get_by_label("Country, as two letters").fill("Germany")
    page.get_by_role("button", name="Go on").click()
    for label in ("City", "Country, as two letters"):
        expect(page.get_by_label(label)).to_have_attribute("aria-invalid", "true")
    page.get_by_label("City").fill("Berlin")
    page.get_by_label("Country, as two letters").fill("de")
    page.get_by_role("button", name="Go on").click()
    page.get_by_role("button", name="Place order").click()
    expect_progress(page, "confirmed")
    expect(page.get_by_text("Ada Example, 1 Mill Lane, Berlin")).to_be_visible()


def test_while_the_projector_stands_still_what_was_done_is_shown_also_after_a_reload(pages: Pages) -> None:
    page = pages.buyer(3)
    pause(pages.stack.projector)
    try:
        order_id = place_order(page, pages.products[3])
        expect_progress(page, "stored")
        expect(page.locator("[data-condition=behind]")).to_contain_text("What you did is stored.")
        page.reload()
        expect_status(page, "Placed")
        expect_progress(page, "stored")
        page.get_by_role("link", name="Orders").click()
        expect(page.locator("main .orders li")).to_have_count(1)
        expect(page.locator("main .orders li")).to_contain_text("about to be confirmed")
    finally:
        resume(pages.stack.projector)
    expect(page.locator("main .orders [data-progress]")).to_have_count(0)
    expect(page.locator("main .orders li")).to_have_count(1)
    expect(page.locator("[data-condition=behind]")).to_have_count(0)
    assert orders_of(pages, 3) == [order_id]
    # A token of this tab's own write: its lists have the order at once, also when they are read anew.
    page.reload()
    expect(page.locator("main .orders li")).to_have_count(1)


def test_when_the_connection_is_cut_nothing_is_lost_and_nothing_is_done_twice(pages: Pages) -> None:
    page = pages.buyer(4)
    add_to_basket(page, pages.products[4])
    # The server does it, and the browser never gets the answer; then nobody answers at all.
    pages.proxy.cut_on(b"CommandService/PlaceOrder", after=True)
    page.get_by_role("button", name="Place order").click()
    wait_until(lambda: len(orders_of(pages, 4)) == 1, "the order is placed")
    pages.proxy.refuse()
    expect(page.locator("[data-condition=away]")).to_contain_text("The connection is gone.")
    pages.proxy.admit()
    expect_progress(page, "confirmed")
    expect(page.locator("[data-condition=away]")).to_have_count(0)
    assert len(orders_of(pages, 4)) == 1
    # A watch that is cut goes on.
    order_id = page.url.rsplit("/", 1)[1]
    pages.proxy.cut_all()
    second = pages.buyer(4)
    second.goto(f"{pages.address}/#/order/{order_id}")
    second.get_by_role("button", name="Pay now").click()
    expect_status(page, "Paid")


@pytest.mark.parametrize(
    "token", [encode_token(uuid.UUID(int=7), 5), "nonsense"], ids=["of another history", "no token"]
)
def test_a_token_that_the_servers_do_not_know_is_given_up_and_it_is_said(pages: Pages, token: str) -> None:
    page = pages.buyer(5)
    page.evaluate("it => sessionStorage.setItem('tandem.consistency_token', it)", token)
    page.reload()
    expect(page.get_by_text("The servers were set back to an earlier state.")).to_be_visible()
    expect(page.get_by_text(re.compile(r"^\d+ products$"))).to_be_visible()
    page.get_by_role("button", name="All right").click()
    expect(page.get_by_text("The servers were set back")).to_have_count(0)
    place_order(page, pages.products[5])
    expect_progress(page, "confirmed")


def test_what_is_sold_shows_on_the_page_of_sales_as_it_is_sold(pages: Pages) -> None:
    page = pages.someone().new_page()
    page.goto(f"{pages.address}/sales")
    expect(page.locator("main [aria-busy=true]")).to_have_count(0)
    orders = page.locator(".figures dd").nth(1)
    before = int(orders.inner_text()) if orders.count() else 0
    buyer = pages.buyer(7)
    place_order(buyer, pages.products[8])
    expect_progress(buyer, "confirmed")
    expect(orders).to_have_text(str(before + 1))
    expect(page.locator(".chart rect")).to_have_count(30)
    name = pages.stack.queries.GetProduct(GetProductRequest(product_id=pages.products[8])).product.name
    expect(page.get_by_role("row", name=name)).to_be_visible()
    page.get_by_text("As a table").click()
    expect(page.get_by_role("region", name="Sold by day").get_by_role("row")).to_have_count(2)
    keep_picture(page, "sales")
    assert violations(page) == []
    page.get_by_role("button", name="Last 7 days").click()
    expect(page.locator(".chart rect")).to_have_count(7)
    # It is in the address, so that it can be sent to others.
    page.reload()
    expect(page.get_by_role("button", name="Last 7 days")).to_have_attribute("aria-pressed", "true")
    page.get_by_label("to", exact=True).fill("2020-01-31")
    page.get_by_label("From").fill("2020-01-01")
    expect(page.get_by_text("Nothing was sold on these days.")).to_be_visible()


def boxes(page: Page) -> dict[str, list[int]]:
    """Left, top and width of each landmark."""
    found = {}
    for name, selector in LANDMARKS.items():
        box = page.locator(selector).first.bounding_box() if page.locator(selector).count() else None
        if box is not None:
            found[name] = [round(box["x"]), round(box["y"]), round(box["width"])]
    # Where it ends depends on what there is to read.
    found["footer"][1] = 0
    return found


def violations(page: Page, *rules: str) -> list[str]:
    """What axe finds, by these rules or by all that it has."""
    page.evaluate(AXE.read_text())
    options = {"runOnly": list(rules)} if rules else {}
    result: dict[str, Any] = page.evaluate("options => axe.run(options)", options)
    return [f"{it['id']}: {it['nodes'][0]['html']}" for it in result["violations"]]


@pytest.fixture(scope="module")
def shown(pages: Pages) -> dict[str, str]:
    """The address of each view behind #/, for a customer who has ordered something."""
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


def look_at(page: Page, pages: Pages, address: str) -> None:
    """Goes there, and waits until all is shown."""
    page.goto(f"{pages.address}/#/{address}")
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    expect(page.locator("main [aria-busy=true]")).to_have_count(0)
    expect(page.locator("main li, main .price, main [role=alert]").first).to_be_visible()


def keep_picture(page: Page, name: str) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=PICTURES / f"{name}.png")


@pytest.mark.parametrize(("look", "width"), [("wide", 1280), ("phone", 390)])
def test_each_view_is_laid_out_as_before(pages: Pages, shown: dict[str, str], look: str, width: int) -> None:
    page = pages.buyer(6, pages.someone(width=width))
    add_to_basket(page, pages.products[7])
    laid_out = {}
    for name, address in shown.items():
        look_at(page, pages, address)
        keep_picture(page, f"shop-{name}-{look}")
        laid_out[name] = boxes(page)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{name} is wider than the window"
    known = json.loads(LAYOUT.read_text()) if LAYOUT.exists() else {}
    if os.environ.get("WRITE_LAYOUT") == "1":
        LAYOUT.write_text(json.dumps(known | {look: laid_out}, indent=1) + "\n")
        return
    moved = [
        f"{view}: {it} is at {laid_out[view].get(it)}, and was at {box}"
        for view, landmarks in known[look].items()
        for it, box in landmarks.items()
        if max(abs(a - b) for a, b in zip(box, laid_out[view].get(it, [9999] * 3), strict=True)) > TOLERANCE
    ]
    assert moved == [], "look at build/pages; WRITE_LAYOUT=1 takes it as it is"
    assert {view: it.keys() for view, it in laid_out.items()} == {view: it.keys() for view, it in known[look].items()}


def test_each_view_is_open_to_everybody(pages: Pages, shown: dict[str, str]) -> None:
    page = pages.buyer(6)
    add_to_basket(page, pages.products[7])
    for name, address in shown.items():
        look_at(page, pages, address)
        assert violations(page) == [], name
    # Only colours differ in the dark.
    dark = pages.buyer(6, pages.someone(dark=True))
    add_to_basket(dark, pages.products[7])
    for name in ("catalogue", "basket", "order"):
        look_at(dark, pages, shown[name])
        keep_picture(dark, f"shop-{name}-dark")
        assert violations(dark, "color-contrast") == [], f"{name}, in the dark"
