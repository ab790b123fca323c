"""The operators' console, as operators use it: all is seen, each action asks first and says afterwards what it did."""

import re
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from commerce.command.v1 import command_service_pb2 as commands
from commerce.projection.v1.projection_service_pb2 import StartRebuildRequest
from commerce.query.v1.query_service_pb2 import GetOrderDetailsRequest
from commerce.type.v1.order_status_pb2 import ORDER_STATUS_CANCELLED
from shop.views import VIEWS
from tandem.testing.stack import pause, resume, up_to, wait_until
from tests.support.access import POLICY
from tests.support.issuer import AUDIENCE, ISSUER, Issuer
from tests.support.pages import Pages, damage, poison, running_envoy


def opened(pages: Pages, place: str = "") -> Page:
    page = pages.window()
    page.goto(f"{pages.address}/console#/{place}")
    return page


def act(page: Page, action: str, confirm: str, **fields: str) -> str:
    """Does something, and returns what the console says that it did. fields: by the beginning of their labels."""
    page.get_by_role("button", name=action).click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("You, for the operators' log").fill("ops-7")
    for label, value in fields.items():
        dialog.get_by_label(re.compile(f"^{label}")).fill(value)
    dialog.get_by_role("button", name=confirm, exact=True).click()
    notice = page.locator("[data-notice=done]")
    notice.wait_for()
    said = notice.locator("span").inner_text()
    notice.get_by_role("button", name="Close").click()
    return said


def test_all_that_runs_is_seen_each_second(pages: Pages) -> None:
    page = opened(pages)
    for service in ("command server", "projector", "query server"):
        page.locator(f"[data-service='{service}'] .good").wait_for()
    expect(page.locator("tr[data-view]")).to_have_count(len(VIEWS))
    page.locator("tr[data-view=order_details] .good", has_text="running").wait_for()
    expect(page.get_by_role("region", name="Cache").get_by_text("serving")).to_have_count(up_to(1))
    head = page.locator("[data-head]")
    before = int(head.inner_text().replace(",", ""))
    pages.stack.commands.AdjustStock(commands.AdjustStockRequest(product_id=pages.products[21], delta=1))
    page.locator("[data-head]", has_text=f"{before + 1:,}").wait_for()
    page.locator("tr[data-view=product_card]", has_text=f"{before + 1:,}").wait_for()


def test_while_the_projector_stands_still_it_is_said_and_what_it_said_last_is_shown(pages: Pages) -> None:
    page = opened(pages)
    page.locator("[data-service=projector] .good").wait_for()
    pause(pages.stack.projector)
    try:
        page.locator("[data-service=projector]", has_text="unreachable").wait_for()
        page.locator("[data-service='query server'] .good").wait_for()
        page.get_by_text("The views are as it last said.").wait_for()
        expect(page.locator("tr[data-view]")).to_have_count(len(VIEWS))
    finally:
        resume(pages.stack.projector)
    page.locator("[data-service=projector] .good").wait_for()
    page.get_by_text("The views are as it last said.").wait_for(state="hidden")


def test_a_parked_row_is_seen_with_its_event_redriven_and_dropped(pages: Pages) -> None:
    customer = pages.customers[9]

    def rename(name: str) -> None:
        pages.stack.commands.RenameCustomer(commands.RenameCustomerRequest(customer_id=customer, name=name))

    page = opened(pages)
    with poison(pages, "customer_profile", customer):
        rename("Somebody Secret")
        page.get_by_role("link", name="1 row parked").click()
        page.locator(f"tr[data-parked='{customer}'] a").click()
        page.get_by_text('"customerRenamed"').wait_for()
        assert "Secret" not in page.content(), "personal data is hidden"
        assert "1 row stays parked" in act(page, "Redrive", "Redrive"), "what still cannot be taken in is said"
    assert act(page, "Redrive", "Redrive") == "customer_profile: 1 row, 1 event taken in; none stays parked."
    page.get_by_text("It is not parked.").wait_for()

    with poison(pages, "customer_profile", customer):
        rename("Somebody Else")
        page.get_by_role("link", name="Parked").click()
        page.locator(f"tr[data-parked='{customer}'] a").click()
        said = act(page, "Drop what waits", "Drop for good", Why="it was a test")
        assert said == "customer_profile: 1 row, 1 event dropped; none stays parked."
    page.get_by_role("link", name="Log").click()
    for action in ("redrive", "drop"):
        page.locator("tr", has_text="ops-7").filter(has_text=action).filter(has_text=customer).first.wait_for()
    page.get_by_role("cell", name="it was a test").wait_for()


def test_a_view_is_rebuilt_compared_switched_switched_back_and_dropped(pages: Pages) -> None:
    page = opened(pages, "view/product_card")
    assert re.fullmatch(
        r"product_card is rebuilt and is ready to be served: \d+ rows compared, all the same\.",
        act(page, "Rebuild", "Rebuild", Events="0"),
    )
    page.locator("[data-generation=ready]").wait_for()
    expect(page.get_by_role("button", name="Rebuild")).to_be_disabled()
    assert act(page, "Serve it", "Switch").startswith("The new generation of product_card is served")
    page.locator("[data-generation=kept]").wait_for()
    assert act(page, "Go back to it", "Go back").startswith("The generation of product_card before is served once more")
    assert act(page, "Drop it", "Drop") == "The other generation of product_card is dropped."
    page.locator("[data-generation]").wait_for(state="hidden")


def test_how_far_a_rebuild_is_is_seen_while_it_goes_on(pages: Pages) -> None:
    page = opened(pages, "view/product_card")
    page.get_by_role("button", name="Rebuild").click()
    page.get_by_role("dialog").get_by_label("Events a second").fill("10")
    page.get_by_role("dialog").get_by_role("button", name="Rebuild", exact=True).click()
    page.locator("[data-generation=filling]").wait_for()
    page.get_by_role("img", name=re.compile(r"^[1-9]\d? % of the feed is taken in$")).wait_for()
    page.locator("[data-generation]", has_text=re.compile(r"\d events/s, .+ left")).wait_for()
    # It need not be seen to its end.
    page.get_by_role("button", name="Drop it").click()
    page.get_by_role("dialog").get_by_role("button", name="Drop", exact=True).click()
    page.locator("[data-generation]").wait_for(state="hidden")


def test_what_is_asked_can_be_left_as_it_is_and_what_is_refused_is_said(pages: Pages) -> None:
    page = opened(pages, "view/sales_summary")
    page.get_by_role("button", name="Rebuild").click()
    page.get_by_role("dialog").wait_for()
    page.keyboard.press("Escape")
    page.get_by_role("dialog").wait_for(state="hidden")
    page.get_by_role("button", name="Rebuild").click()
    page.get_by_role("dialog").get_by_label("Events a second").fill("5000")
    page.get_by_role("button", name="Leave it as it is").click()
    expect(page.locator("[data-notice]")).to_have_count(0)
    # Somebody else begins one while who asks reads the question.
    page.get_by_role("button", name="Rebuild").click()
    pages.stack.projections.StartRebuild(StartRebuildRequest(view="sales_summary"))
    page.get_by_role("dialog").get_by_role("button", name="Rebuild", exact=True).click()
    page.locator("[data-notice=failed]", has_text="has another generation already").wait_for()
    assert act(page, "Drop it", "Drop") == "The other generation of sales_summary is dropped."


def test_a_write_is_found_by_its_token_its_request_or_its_row_as_a_way_in_time(pages: Pages) -> None:
    order = commands.PlaceOrderRequest(
        request_id=str(uuid.uuid4()),
        customer_id=pages.customers[10],
        lines=[commands.PlaceOrderLine(product_id=pages.products[10], quantity=1)],
    )
    placed = pages.stack.commands.PlaceOrder(order)
    page = opened(pages, "why")
    asked = page.get_by_label("A consistency token")
    for what in (placed.receipt.consistency_token, order.request_id, placed.order_id, str(placed.receipt.position)):
        asked.fill(what)
        page.keyboard.press("Enter")
        page.get_by_role("heading", name=f"Event {placed.receipt.position:,} order_placed").wait_for()
        for step in ("Stored", "Projected", "Announced"):
            page.locator(f"[data-step={step}]").first.wait_for()
        page.locator("[data-explained=order_details]", has_text="yes").wait_for()
        assert page.locator("[data-explained=customer_profile]").count() == 0, "it does not concern it"
        page.goto(f"{pages.address}/console#/why")
        asked.wait_for()
    asked.fill(str(uuid.uuid4()))
    page.keyboard.press("Enter")
    page.get_by_text("Nothing is known of it.").wait_for()


def test_what_the_auditor_found_is_listed(pages: Pages) -> None:
    key = pages.products[20]
    damage(pages, key)
    page = opened(pages, "log")
    found = page.locator(f"tr[data-finding='{key}']").first
    expect(found).to_contain_text("another row")
    expect(found).to_contain_text("available")
    page.goto(f"{pages.address}/console#/")
    page.locator("tr[data-view=product_card]").get_by_role("link", name=re.compile(r"^\d+$")).wait_for()


def test_an_order_is_placed_and_its_way_is_drawn_of_what_was_recorded(pages: Pages) -> None:
    page = opened(pages, "lag")
    page.get_by_role("button", name="Place an order").click()
    way = page.get_by_role("list", name="Its way, in milliseconds since the click")
    way.wait_for()
    steps = [(it.get_attribute("data-step"), it.get_attribute("data-at")) for it in way.locator("li").all()]
    assert steps[0][0] == "Sent"
    assert {name for name, _ in steps} == {"Sent", "Stored", "Acknowledged", "Projected", "Announced", "Read back"}
    at = [float(it or "nan") for _, it in steps]
    assert at == sorted(at)
    link = page.get_by_role("region", name="The last order").get_by_role("link")
    order_id = (link.get_attribute("href") or "").rsplit("/", 1)[1]
    page.get_by_role("button", name="Cancel the order").click()
    page.get_by_role("button", name="Cancelled").wait_for()

    def is_cancelled() -> bool:
        answer = pages.stack.queries.GetOrderDetails(GetOrderDetailsRequest(order_id=order_id))
        return answer.order_details.status == ORDER_STATUS_CANCELLED

    wait_until(is_cancelled, "the order is cancelled")


@pytest.fixture(scope="module")
def guarded(pages: Pages, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Issuer]]:
    """The console of a projector that asks who calls, and who signs tokens."""
    folder = tmp_path_factory.mktemp("guarded")
    issuer, keys = Issuer(), folder / "keys.json"
    keys.write_text(issuer.keys())
    token = {"ISSUER": ISSUER, "AUDIENCE": AUDIENCE, "KEYS_FILE": str(keys), "OWNER_CLAIM": "customer_id"}
    settings = {f"SERVER__AUTHENTICATION__TOKEN__{name}": value for name, value in token.items()}
    projector = pages.stack.new_projector(SERVER__POLICY_FILE=str(POLICY), **settings)
    projector.start()
    with running_envoy(pages.stack, projector, Path(folder) / "envoy") as envoy:
        yield f"http://{envoy.address}/console", issuer
    assert projector.stop() == 0


def test_who_is_not_known_is_asked_and_who_has_no_role_for_it_is_told(
    pages: Pages, guarded: tuple[str, Issuer]
) -> None:
    address, issuer = guarded
    page = pages.window()
    page.goto(address)

    def sign_in(token: str) -> None:
        page.get_by_label("Access token").fill(token)
        page.get_by_role("button", name="Go on").click()

    page.get_by_role("heading", name="Who are you?").wait_for()
    sign_in("nonsense")
    page.get_by_text("The token is not taken").wait_for()
    sign_in(issuer.token(roles=["clerk"]))
    page.get_by_role("heading", name="This is for operators").wait_for()
    sign_in(issuer.token(roles=["operator"]))
    # It is a standby.
    page.locator("tr[data-view=order_details]", has_text="on standby").wait_for()
    page.reload()
    page.locator("tr[data-view=order_details]").wait_for()
    page.get_by_role("button", name="Sign out").click()
    page.get_by_role("heading", name="Who are you?").wait_for()
