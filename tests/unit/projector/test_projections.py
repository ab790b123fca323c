"""Each rule of each view, alone: a view and an event go in, a view comes out."""

import uuid
from typing import Any

import pytest
from google.protobuf.message import Message

from commerce.event.v1.event_pb2 import Event, OrderLine
from commerce.query.v1.query_service_pb2 import DESCRIPTOR as QUERIES
from commerce.query.v1.views_pb2 import CustomerProfile, OrderDetails, OrderDetailsLine, OrderSummary, ProductCard
from commerce.type.v1.address_pb2 import NamedAddress
from commerce.type.v1.order_status_pb2 import OrderStatus
from shop.events import EVENTS
from shop.views import VIEWS
from tandem.feed.events import FeedEvent
from tandem.projection.fold import Step, Steps, fold_steps
from tandem.testing.views import view
from tests.support import events
from tests.support.builders import NOW, address, identity, usd
from tests.support.events import at
from tests.support.projecting import PROJECTIONS


def shop_view(name: str) -> view:
    return view(PROJECTIONS[name], EVENTS)


def after(name: str, *history: Event) -> Any:
    """What the only row of a view says after events."""
    return shop_view(name).after(*history).message()


def test_a_placed_order_shows_the_order_as_it_was_placed() -> None:
    assert after("order_details", events.order_placed(lines=[(1, 2), (2, 3)])) == OrderDetails(
        order_id=identity("order", 1),
        customer_id=identity("customer", 1),
        customer_name="Customer 1",
        status=OrderStatus.ORDER_STATUS_PLACED,
        shipping_address=address(),
        lines=[
            OrderDetailsLine(
                product_id=identity("product", product),
                product_name=f"Product {product}",
                unit_price=usd(1000),
                quantity=quantity,
                discount_basis_points=1000,
                line_total=usd(900 * quantity),
            )
            for product, quantity in ((1, 2), (2, 3))
        ],
        subtotal=usd(4500),
        shipping_fee=usd(495),
        total=usd(4995),
        placed_at=at(1),
        version=1,
    )


def test_an_order_that_is_paid_and_shipped_shows_when_and_how() -> None:
    expected = after("order_details", events.order_placed())
    expected.status = OrderStatus.ORDER_STATUS_PAID
    expected.paid_at.CopyFrom(at(100))
    expected.payment_reference = "pay-1"
    expected.version = 2
    shop_view("order_details").after(events.order_placed(), events.order_paid()).shows(expected)

    expected.status = OrderStatus.ORDER_STATUS_SHIPPED
    expected.shipped_at.CopyFrom(at(200))
    expected.carrier = "Speedy Express"
    expected.tracking_number = "track-1"
    expected.version = 3
    shop_view("order_details").after(events.order_placed(), events.order_paid(), events.order_shipped()).shows(expected)


def test_a_delivered_order_shows_when() -> None:
    shipped = (events.order_placed(), events.order_paid(), events.order_shipped())
    expected = after("order_details", *shipped)
    expected.status = OrderStatus.ORDER_STATUS_DELIVERED
    expected.delivered_at.CopyFrom(at(300))
    expected.version = 4
    shop_view("order_details").after(*shipped, events.order_delivered()).shows(expected)


def test_an_order_that_goes_elsewhere_shows_where_and_nothing_else_changes() -> None:
    expected = after("order_details", events.order_placed())
    expected.shipping_address.CopyFrom(address(city="Hamburg"))
    expected.version = 2
    shop_view("order_details").after(events.order_placed(), events.shipping_address_changed()).shows(expected)


def test_a_revised_product_shows_what_it_is_now_and_keeps_price_and_stock() -> None:
    added = events.product_added(stock=7)
    expected = after("product_card", added)
    expected.name, expected.description, expected.category = "Product, revised", "20 boxes", "Beverages"
    expected.attributes.add(name="Origin", value="Assam")
    expected.version = 2
    revised = events.product_revised(attributes={"Origin": "Assam"})
    shop_view("product_card").after(added, revised).shows(expected)
    del expected.attributes[:]
    expected.version = 3
    shop_view("product_card").after(added, revised, events.product_revised(version=3)).shows(expected)


def test_a_cancelled_order_shows_when_and_why() -> None:
    expected = after("order_details", events.order_placed())
    expected.status = OrderStatus.ORDER_STATUS_CANCELLED
    expected.cancelled_at.CopyFrom(at(150))
    expected.cancellation_reason = "changed my mind"
    expected.version = 2
    shop_view("order_details").after(events.order_placed(), events.order_cancelled()).shows(expected)


def test_a_summary_counts_lines_and_units_and_follows_the_status() -> None:
    placed = events.order_placed(lines=[(1, 2), (2, 3)])
    expected = OrderSummary(
        order_id=identity("order", 1),
        customer_id=identity("customer", 1),
        status=OrderStatus.ORDER_STATUS_PLACED,
        total=usd(4995),
        line_count=2,
        unit_count=5,
        placed_at=at(1),
        version=1,
    )
    shop_view("order_summary").after(placed).shows(expected)
    for status, version, later in (
        (OrderStatus.ORDER_STATUS_PAID, 2, [events.order_paid()]),
        (OrderStatus.ORDER_STATUS_SHIPPED, 3, [events.order_paid(), events.order_shipped()]),
        (
            OrderStatus.ORDER_STATUS_DELIVERED,
            4,
            [events.order_paid(), events.order_shipped(), events.order_delivered()],
        ),
        (OrderStatus.ORDER_STATUS_PLACED, 2, [events.shipping_address_changed()]),
        (OrderStatus.ORDER_STATUS_CANCELLED, 2, [events.order_cancelled()]),
    ):
        expected.status = status
        expected.version = version
        shop_view("order_summary").after(placed, *later).shows(expected)


def test_a_summary_keeps_the_position_at_which_its_order_was_placed() -> None:
    columns = PROJECTIONS["order_summary"].columns
    placed = after("order_summary", events.order_placed())
    first = columns(placed, 7)
    assert first == (identity("customer", 1), at(1).ToDatetime(tzinfo=NOW.tzinfo), 7)
    assert columns(after("order_summary", events.order_placed(), events.order_paid()), 7) == first


def test_a_new_product_can_be_ordered_as_often_as_it_is_in_stock() -> None:
    assert after("product_card", events.product_added(stock=7)) == ProductCard(
        product_id=identity("product", 1),
        name="Product 1",
        description="10 boxes x 20 bags",
        category="Tea",
        price=usd(1999),
        available=7,
        version=1,
    )


def test_price_stock_and_end_of_sale_change_the_card_and_its_version() -> None:
    history = [
        events.product_added(stock=7),
        events.price_changed(version=2, price=5),
        events.stock_adjusted(version=3, delta=-3),
        events.product_discontinued(version=4),
    ]
    card = after("product_card", *history)
    assert (card.price, card.available, card.discontinued, card.version) == (usd(5), 4, True, 4)


def test_orders_take_and_cancelled_orders_give_back_units_and_leave_the_version_alone() -> None:
    lines = [(1, 2), (2, 50), (1, 3)]
    added = events.product_added(stock=7)
    card = after("product_card", added, events.order_placed(lines=lines))
    assert (card.available, card.version) == (2, 1), "both lines of the product count, and no other"
    card = after("product_card", added, events.order_placed(lines=lines), events.order_cancelled(lines=lines))
    assert (card.available, card.version) == (7, 1)


def test_an_order_concerns_each_of_its_products_once() -> None:
    lines = [(1, 2), (2, 50), (1, 3)]
    for event in (events.order_placed(lines=lines), events.order_cancelled(lines=lines)):
        kind = str(event.WhichOneof("kind"))
        parts = PROJECTIONS["product_card"].parts_of(kind, getattr(event, kind))
        assert parts == {uuid.UUID(identity("product", number)).bytes: units for number, units in ((1, 5), (2, 50))}


def test_a_profile_shows_the_customer_and_then_the_new_address() -> None:
    expected = CustomerProfile(
        customer_id=identity("customer", 1),
        name="Customer 1",
        email="1@example.org",
        phone="030-0074321",
        address=address(),
        addresses=[NamedAddress(name="main", address=address(), is_default=True)],
        registered_at=at(1),
        version=1,
    )
    shop_view("customer_profile").after(events.customer_registered()).shows(expected)
    expected.address.CopyFrom(address(city="Hamburg"))
    expected.addresses[0].address.CopyFrom(address(city="Hamburg"))
    expected.version = 2
    # An event from before addresses had names.
    shop_view("customer_profile").after(events.customer_registered(), events.address_updated()).shows(expected)
    expected.name = "Ada King"
    expected.version = 3
    renamed = events.customer_renamed(version=3, name="Ada King")
    history = (events.customer_registered(), events.address_updated(), renamed)
    shop_view("customer_profile").after(*history).shows(expected)


def test_a_profile_shows_every_address_and_the_default_one_apart() -> None:
    def named(name: str, city: str, *, default: bool = False) -> NamedAddress:
        return NamedAddress(name=name, address=address(city=city), is_default=default)

    home = events.address_updated(version=2, name="home", city="Ulm")
    work = events.address_updated(version=3, name="work", city="Bonn", default=True)
    shown = after("customer_profile", events.customer_registered(), home, work)
    assert shown.address == address(city="Bonn")
    assert list(shown.addresses) == [
        named("main", "Berlin"),
        named("home", "Ulm"),
        named("work", "Bonn", default=True),
    ]
    shown = after("customer_profile", events.customer_registered(), home, work, events.address_removed(name="main"))
    assert list(shown.addresses) == [named("home", "Ulm"), named("work", "Bonn", default=True)]
    last = [events.address_removed(version=3 + number, name=name) for number, name in enumerate(("home", "work"))]
    emptied = after("customer_profile", events.customer_registered(has_address=False), home, work, *last)
    assert not emptied.HasField("address")
    assert not emptied.addresses


def test_an_erased_person_is_shown_no_more_whatever_could_still_be_opened() -> None:
    def unopened(event: Event) -> Event:
        kind = str(event.WhichOneof("kind"))
        blank = Event()
        blank.CopyFrom(event)
        if kind != "order_paid":
            getattr(blank, kind).ClearField("personal")
        return blank

    history = [
        events.customer_registered(),
        events.customer_renamed(name="Ada King"),
        events.address_updated(version=3, name="work", city="Bonn", default=True),
        events.address_removed(version=4, name="main"),
    ]
    erased = events.customer_erased(version=5)
    left = CustomerProfile(customer_id=identity("customer", 1), registered_at=at(1), version=5, erased_at=at(400))
    shop_view("customer_profile").after(*history, erased).shows(left)
    shop_view("customer_profile").after(*map(unopened, history), erased).shows(left)

    orders = [events.order_placed(), events.shipping_address_changed(), events.order_paid(version=3)]
    live = after("order_details", *orders, events.orders_anonymized(orders=[1]))
    assert (live.customer_name, live.HasField("shipping_address"), live.total) == ("", False, usd(1395))
    shop_view("order_details").after(*map(unopened, orders), events.orders_anonymized(orders=[1])).shows(live)


def test_a_profile_without_an_address_has_none_until_one_is_known() -> None:
    assert not after("customer_profile", events.customer_registered(has_address=False)).HasField("address")
    known = after("customer_profile", events.customer_registered(has_address=False), events.address_updated())
    assert known.address == address(city="Hamburg")


# What makes a row, in most views.
_FIRST = {"order_placed", "order_imported", "product_added", "customer_registered", "subscription_started"}


def _changes_a_row(view: str, kind: str) -> bool:
    """Whether it takes a row that is there already."""
    if (view, kind) == ("search_word", "product_revised"):
        return False
    return kind not in _FIRST or (view == "product_card" and kind.startswith("order_"))


@pytest.mark.parametrize(
    ("view", "kind"),
    [
        (view, kind)
        for view, projection in PROJECTIONS.items()
        for kind in projection.rules
        if _changes_a_row(view, kind)
    ],
)
def test_an_event_about_something_that_is_not_in_the_view_is_parked(view: str, kind: str) -> None:
    about_a_row = Step(FeedEvent(EVENTS, 1, kind, b""), {bytes(16): getattr(Event(), kind)})
    changes = fold_steps(PROJECTIONS[view], Steps([about_a_row]), {})
    assert [(it.key, "NotThere" in (it.error or "")) for it in changes.parked] == [(bytes(16), True)]
    assert changes.rows == {}


@pytest.mark.parametrize(
    ("name", "history"),
    [
        ("order_details", [events.order_placed(), events.order_paid()]),
        ("order_summary", [events.order_placed(), events.order_cancelled()]),
        ("product_card", [events.product_added(), events.order_placed()]),
        ("customer_profile", [events.customer_registered(), events.address_updated()]),
    ],
)
def test_a_rule_leaves_the_event_as_it_was_for_the_other_views(name: str, history: list[Event]) -> None:
    before = [it.SerializeToString() for it in history]
    changed: Any = None
    for event in history:
        kind = str(event.WhichOneof("kind"))
        part, *_ = PROJECTIONS[name].parts_of(kind, getattr(event, kind)).values()
        changed = PROJECTIONS[name].rules[kind](changed, part)
    for descriptor, field in changed.ListFields():
        if descriptor.message_type is not None and not descriptor.is_repeated:
            # What the view took over is its own.
            field.Clear()
    assert [it.SerializeToString() for it in history] == before


def test_every_event_is_taken_by_a_view_and_every_view_has_its_table() -> None:
    assert {kind for projection in PROJECTIONS.values() for kind in projection.rules} == set(EVENTS.kinds)
    assert PROJECTIONS.keys() == VIEWS.keys()


def test_changes_are_logged_of_the_views_that_can_be_watched_and_of_no_others() -> None:
    watched = {f"Watch{it.message.DESCRIPTOR.name}" for it in PROJECTIONS.values() if it.logged}
    methods = QUERIES.services_by_name["QueryService"].methods
    assert watched == {it.name for it in methods if it.name.startswith("Watch")}


def test_a_line_of_a_placed_order_and_of_its_details_have_the_same_fields() -> None:
    """The one is made of the other's bytes."""

    def fields(message: type[Message]) -> list[tuple[str, int, int, bool]]:
        return [(it.name, it.number, it.type, it.is_repeated) for it in message.DESCRIPTOR.fields]

    assert fields(OrderDetailsLine) == fields(OrderLine)
