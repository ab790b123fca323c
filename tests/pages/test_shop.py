"""The shop's page, as people use it: what is asked for is there at once, and what goes wrong is said and mended."""

import re
import uuid

import pytest
from playwright.sync_api import Page, expect

from commerce.command.v1.command_service_pb2 import AddProductRequest
from commerce.query.v1.query_service_pb2 import GetProductRequest, ListRecentOrdersRequest
from commerce.type.v1.consistency_pb2 import Consistency
from commerce.type.v1.money_pb2 import Money
from tandem.feed.token import encode_token
from tandem.testing.stack import pause, resume, wait_until
from tests.support.pages import Pages, add_to_basket, expect_progress, place_order, violations


def expect_status(page: Page, status: str) -> None:
    page.locator("main .state .status", has_text=re.compile(f"^{status}$")).wait_for()


def orders_of(pages: Pages, customer: int) -> list[str]:
    request = ListRecentOrdersRequest(customer_id=pages.customers[customer], page_size=100)
    return [it.order_id for it in pages.stack.queries.ListRecentOrders(request).orders]


def test_the_catalogue_is_searched_as_one_types_and_narrowed_down(pages: Pages) -> None:
    page = pages.window()
    said: list[str] = []
    page.on("console", lambda it: said.append(it.text))
    page.on("pageerror", lambda it: said.append(str(it)))
    page.goto(pages.address)
    page.get_by_text("120 products").wait_for()
    # By keyboard alone: over the skip link and the shop's name into the search.
    search = page.get_by_role("combobox", name="Search the shop")
    for _ in range(3):
        page.keyboard.press("Tab")
    page.keyboard.type("watering", delay=5)
    page.get_by_role("heading", name="Results for “watering”").wait_for()
    page.locator("main [aria-busy=true]").first.wait_for(state="hidden")
    expect(page.locator("main .card mark").first).to_have_text(re.compile("^Watering", re.IGNORECASE))
    found = page.locator("main .card").count()
    assert 0 < found < 24
    search.fill("wattering can")
    page.get_by_role("link", name="watering can", exact=True).wait_for()
    search.fill("")
    page.get_by_text("120 products").wait_for()
    kitchen = page.get_by_role("checkbox", name=re.compile("Kitchen"))
    count = int(re.sub(r"\D", "", kitchen.locator("xpath=..").inner_text()))
    kitchen.check()
    page.get_by_text(f"{count} products").wait_for()
    page.get_by_label("Sort by").select_option("Price, lowest first")
    page.reload()
    page.get_by_text(f"{count} products").wait_for()
    prices = [float(it.lstrip("€")) for it in page.locator("main .card .price").all_inner_texts()]
    assert prices == sorted(prices)
    page.locator("main .card a").first.click()
    expect(page.get_by_role("heading", level=1)).to_be_focused()
    assert said == [], "the content-security-policy refuses nothing, and nothing fails"


def test_what_one_may_be_about_to_look_for_is_suggested_as_one_types(pages: Pages) -> None:
    page = pages.window()
    page.goto(pages.address)
    search = page.get_by_role("combobox", name="Search the shop")
    suggestions = page.get_by_role("listbox", name="Suggestions").get_by_role("option")
    search.focus()
    page.keyboard.type("water")
    suggestions.filter(has_text="watering").first.wait_for()
    expect(search).to_have_attribute("aria-expanded", "true")
    page.get_by_text(f"{suggestions.count()} suggestions").wait_for(state="attached")
    page.keyboard.press("ArrowDown")
    expect(search).to_have_attribute("aria-activedescendant", "suggestion-0")
    chosen = suggestions.first.inner_text()
    assert violations(page) == []
    page.keyboard.press("Enter")
    page.get_by_role("heading", name=f"Results for “{chosen}”").wait_for()
    expect(search).to_have_value(chosen)
    expect(search).to_have_attribute("aria-expanded", "false")
    # Up from the field is the last: a product, which is looked at at once.
    page.keyboard.type(" c")
    suggestions.filter(has=page.locator("mark")).first.wait_for()
    page.keyboard.press("Escape")
    expect(search).to_have_attribute("aria-expanded", "false")
    expect(search).to_have_value(f"{chosen} c")
    page.keyboard.press("ArrowDown")
    product = suggestions.last
    product.wait_for()
    name = product.inner_text().split("\n")[0]
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    page.get_by_role("heading", level=1, name=name).wait_for()


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
    assert uuid.UUID(order_id).version == 7

    second = pages.buyer(window=1)
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
    buyers = [pages.buyer(1), pages.buyer(2, window=1)]
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
    refused.get_by_text("None yet.").wait_for()
    expect(refused.get_by_role("alert")).to_contain_text("An order was not placed.")
    refused.goto(f"{pages.address}/#/product/{product.product_id}")
    refused.get_by_text("Sold out").wait_for()


def test_what_is_not_as_the_contract_wants_it_is_said_beside_its_field(pages: Pages) -> None:
    page = pages.window()
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
    page.get_by_text("Ada Example, 1 Mill Lane, Berlin").wait_for()


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
    page.locator("main .orders [data-progress]").first.wait_for(state="hidden")
    expect(page.locator("main .orders li")).to_have_count(1)
    page.locator("[data-condition=behind]").first.wait_for(state="hidden")
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
    page.locator("[data-condition=away]").first.wait_for(state="hidden")
    assert len(orders_of(pages, 4)) == 1
    # A watch that is cut goes on.
    order_id = page.url.rsplit("/", 1)[1]
    pages.proxy.cut_all()
    second = pages.buyer(4, window=1)
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
    page.get_by_text("The servers were set back to an earlier state.").wait_for()
    page.get_by_text(re.compile(r"^\d+ products$")).wait_for()
    page.get_by_role("button", name="All right").click()
    page.get_by_text("The servers were set back").first.wait_for(state="hidden")
    place_order(page, pages.products[5])
    expect_progress(page, "confirmed")


def test_what_is_sold_shows_on_the_page_of_sales_as_it_is_sold(pages: Pages) -> None:
    page = pages.window()
    page.goto(f"{pages.address}/sales")
    page.locator("main .figures, main .empty").first.wait_for()
    orders = page.locator(".figures dd").nth(1)
    before = int(orders.inner_text()) if orders.count() else 0
    buyer = pages.buyer(7, window=1)
    place_order(buyer, pages.products[8])
    expect_progress(buyer, "confirmed")
    expect(orders).to_have_text(str(before + 1))
    expect(page.locator(".chart rect")).to_have_count(30)
    name = pages.stack.queries.GetProduct(GetProductRequest(product_id=pages.products[8])).product.name
    page.get_by_role("row", name=name).wait_for()
    page.get_by_text("As a table").click()
    expect(page.get_by_role("region", name="Sold by day").get_by_role("row")).to_have_count(2)
    page.get_by_role("button", name="Last 7 days").click()
    expect(page.locator(".chart rect")).to_have_count(7)
    # It is in the address, so that it can be sent to others.
    page.reload()
    expect(page.get_by_role("button", name="Last 7 days")).to_have_attribute("aria-pressed", "true")
    page.get_by_label("to", exact=True).fill("2020-01-31")
    page.get_by_label("From").fill("2020-01-01")
    page.get_by_text("Nothing was sold on these days.").wait_for()
