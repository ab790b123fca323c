"""The business rules, each alone: what is decided, and what is refused and why."""

from datetime import UTC, datetime

import pytest
from google.protobuf.message import Message

from command_server.app import DOMAIN
from command_server.customers import CUSTOMERS
from command_server.orders import LINES, line_total
from command_server.products import MAX_STOCK, PRODUCTS
from commerce.command.v1 import command_service_pb2 as commands
from commerce.event.v1 import event_pb2 as events
from tandem.commands.batch import decide_batch
from tandem.commands.receipts import Receipt
from tandem.commands.rules import timestamp
from tandem.commands.write_model import States
from tandem.runtime.errors import Conflict
from tandem.testing.rules import NOW, Rules, refused
from tests.support.builders import (
    add_product,
    address,
    command,
    identity,
    place_order,
    register_customer,
    revise_product,
    usd,
)

ORDER = identity("order", 1)
PRODUCT = f"products/{identity('product', 1)}"
PAY = commands.PayOrderRequest(order_id=ORDER)
SHIP = commands.ShipOrderRequest(order_id=ORDER)
DELIVER = commands.DeliverOrderRequest(order_id=ORDER)
MOVE = commands.ChangeShippingAddressRequest(order_id=ORDER, address=address(city="Bonn"))
CANCEL = commands.CancelOrderRequest(order_id=ORDER, reason="changed my mind")


RULES = Rules(DOMAIN)
FIRST = (register_customer(1), add_product(1, price=333, stock=10), add_product(2, price=1000, stock=10))
SHOP = RULES.given(*FIRST)


def test_an_order_tells_all_that_a_reader_needs_as_it_was() -> None:
    request = place_order(lines={1: 3, 2: 1}, discount=500)
    request.shipping_fee.CopyFrom(usd(450))
    placed = SHOP.when(request).event
    assert placed.personal.name == "Customer 1"
    assert placed.personal.address == address(recipient="Customer 1")
    assert [(it.product_name, it.unit_price.minor_units, it.line_total.minor_units) for it in placed.lines] == [
        ("Product 1", 333, 949),
        ("Product 2", 1000, 950),
    ]
    assert placed.total == usd(949 + 950 + 450)


@pytest.mark.parametrize(
    ("price", "quantity", "discount", "total"),
    [
        (333, 1, 5000, 167),
        (1, 1, 5000, 1),
        (1, 1, 5001, 0),
        (100, 3, 1, 300),
        (1000, 5, 10_000, 0),
        (10**12, 10**6, 0, 10**18),
    ],
)
def test_a_line_is_rounded_once_half_up(price: int, quantity: int, discount: int, total: int) -> None:
    assert line_total(price, quantity, discount) == total


def test_every_broken_rule_of_an_order_is_named_at_once() -> None:
    discontinue = commands.DiscontinueProductRequest(product_id=identity("product", 2))
    euros = add_product(4, currency="EUR")
    request = place_order(customer=9, lines={1: 11, 2: 1, 3: 1, 4: 1})
    request.shipping_fee.CopyFrom(usd(1))
    request.shipping_fee.currency_code = "EUR"
    SHOP.given(discontinue, euros).when(request).then(
        refused(
            subjects={
                f"customers/{identity('customer', 9)}": "CUSTOMER_UNKNOWN",
                PRODUCT: "OUT_OF_STOCK",
                f"products/{identity('product', 2)}": "PRODUCT_DISCONTINUED",
                f"products/{identity('product', 3)}": "PRODUCT_UNKNOWN",
                f"products/{identity('product', 4)}": "CURRENCY_MISMATCH",
                "shipping_fee": "CURRENCY_MISMATCH",
            }
        )
    )


def test_an_order_needs_an_address_of_its_own_or_the_customers() -> None:
    nobody = register_customer(2, has_address=False)
    request = place_order(customer=2)
    SHOP.given(nobody).when(request).then(refused("ADDRESS_REQUIRED", of=f"customers/{identity('customer', 2)}"))
    request.shipping_address.CopyFrom(address(recipient="Somebody else"))
    assert SHOP.given(nobody).when(request).event.personal.address.recipient == "Somebody else"


def test_an_order_that_costs_more_than_sums_can_hold_is_refused() -> None:
    dear = add_product(3, price=10**12, stock=10**6)
    SHOP.given(dear).when(place_order(lines={3: 10**6})).then(refused("TOTAL_LIMIT", of="total"))


def test_the_second_order_sees_what_the_first_has_reserved() -> None:
    SHOP.given(place_order(1, lines={1: 6})).when(place_order(2, lines={1: 5})).then(
        refused("OUT_OF_STOCK", of=PRODUCT)
    )


def test_a_cancelled_order_gives_its_stock_back() -> None:
    last = place_order(2, lines={1: 10})
    cancelled = SHOP.given(place_order(1, lines={1: 10})).when(CANCEL)
    assert cancelled.event.released[0].quantity == 10
    assert isinstance(cancelled.after.when(last).event, events.OrderPlaced)


def test_a_cancellation_tells_what_it_takes_off_and_off_which_day() -> None:
    request = place_order(lines={1: 3, 2: 1}, discount=500)
    request.shipping_fee.CopyFrom(usd(450))
    request.placed_at.FromDatetime(datetime(2025, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC))
    placed = SHOP.when(request)
    it = placed.event
    released = [
        events.ReleasedStock(product_id=line.product_id, quantity=line.quantity, line_total=line.line_total)
        for line in it.lines
    ]
    placed.after.when(CANCEL).then(
        events.OrderCancelled(
            order_id=ORDER,
            version=2,
            reason="changed my mind",
            released=released,
            placed_at=it.placed_at,
            shipping_fee=usd(450),
            total=it.total,
            cancelled_at=timestamp(NOW),
        )
    )


def test_a_price_change_touches_no_earlier_order() -> None:
    raise_price = commands.ChangePriceRequest(product_id=identity("product", 1), price=usd(999))
    ordered = SHOP.given(place_order(1), raise_price, place_order(2))
    prices = [lines[0].unit_price for lines in ordered[LINES].values()]
    assert prices == [333, 999]


@pytest.mark.parametrize(
    ("before", "request_", "rule"),
    [
        ((), SHIP, "ORDER_NOT_PAID"),
        ((PAY,), PAY, "ORDER_NOT_PLACED"),
        ((CANCEL,), PAY, "ORDER_NOT_PLACED"),
        ((PAY, SHIP), SHIP, "ORDER_NOT_PAID"),
        ((PAY, SHIP), CANCEL, "ORDER_NOT_CANCELLABLE"),
        ((PAY, CANCEL), CANCEL, "ORDER_NOT_CANCELLABLE"),
        ((PAY,), DELIVER, "ORDER_NOT_SHIPPED"),
        ((PAY, SHIP, DELIVER), DELIVER, "ORDER_NOT_SHIPPED"),
        ((PAY, SHIP, DELIVER), CANCEL, "ORDER_NOT_CANCELLABLE"),
        ((PAY, SHIP), MOVE, "ORDER_NOT_READDRESSABLE"),
        ((CANCEL,), MOVE, "ORDER_NOT_READDRESSABLE"),
    ],
)
def test_an_order_moves_only_forward(before: tuple[Message, ...], request_: Message, rule: str) -> None:
    SHOP.given(place_order(), *before).when(request_).then(refused(rule, of=f"orders/{ORDER}"))


@pytest.mark.parametrize("before", [(), (PAY,)])
def test_an_unshipped_order_is_cancelled(before: tuple[Message, ...]) -> None:
    assert SHOP.given(place_order(), *before).when(CANCEL).event.reason == "changed my mind"


@pytest.mark.parametrize("again", FIRST)
def test_what_exists_is_not_created_again(again: Message) -> None:
    SHOP.when(again).then(refused("ALREADY_EXISTS"))


def test_an_unshipped_order_goes_elsewhere_and_its_customer_stays_where_he_is() -> None:
    moved = SHOP.given(place_order(), PAY).when(MOVE)
    changed = moved.event
    assert changed.customer_id == identity("customer", 1)
    assert changed.personal.address == address(city="Bonn", recipient="Customer 1")
    assert [it.address_of("main") for it in moved.after[CUSTOMERS].values()] == [address()]


def test_an_order_goes_to_the_address_that_has_the_name_when_it_is_asked_for() -> None:
    work = commands.UpdateAddressRequest(
        customer_id=identity("customer", 1), address_name="work", address=address(city="Ulm")
    )
    to_work = commands.ChangeShippingAddressRequest(order_id=ORDER, address_name="work")
    work_moves = commands.UpdateAddressRequest(
        customer_id=identity("customer", 1), address_name="work", address=address(city="Bonn")
    )
    moved = SHOP.given(work, place_order()).when(to_work)
    moved.after.given(work_moves)
    changed = moved.event
    assert changed.personal.address == address(city="Ulm", recipient="Customer 1")
    assert not changed.personal.address_name, "an order has an address, not a customer's name for it"
    renamed = commands.RenameCustomerRequest(customer_id=identity("customer", 1), name="Ada King")
    changed = SHOP.given(work, place_order(), renamed).when(to_work).event
    assert changed.personal.address.recipient == "Ada King"


def test_an_order_goes_neither_to_an_unknown_address_nor_anywhere_else_when_its_customer_was_erased() -> None:
    customer = f"customers/{identity('customer', 1)}"
    unknown = commands.ChangeShippingAddressRequest(order_id=ORDER, address_name="Main")
    SHOP.given(place_order()).when(unknown).then(refused("ADDRESS_UNKNOWN", of=customer))
    erase = commands.EraseCustomerRequest(customer_id=identity("customer", 1))
    SHOP.given(place_order(), erase).when(MOVE).then(refused("CUSTOMER_ERASED", of=customer))


def test_the_order_of_an_erased_customer_is_paid_shipped_and_delivered() -> None:
    erase = commands.EraseCustomerRequest(customer_id=identity("customer", 1))
    last = SHOP.given(place_order(), erase, PAY, SHIP, DELIVER).events[-3:]
    assert [type(it) for it in last] == [events.OrderPaid, events.OrderShipped, events.OrderDelivered]


def test_a_shipped_order_is_delivered_when_the_caller_says() -> None:
    late = commands.DeliverOrderRequest(order_id=ORDER)
    late.delivered_at.FromJsonString("2026-01-31T12:00:00Z")
    assert SHOP.given(place_order(), PAY, SHIP).when(late).event.delivered_at == late.delivered_at


def test_a_revision_changes_what_is_set_and_keeps_the_rest() -> None:
    tea = add_product(3, Origin="Assam", Grade="FTGFOP")
    revised = RULES.given(tea).when(revise_product(3, name="Assam Tea", description="")).event
    assert (revised.version, revised.name, revised.description, revised.category) == (2, "Assam Tea", "", "Tea")
    assert [(it.name, it.value) for it in revised.attributes] == [("Grade", "FTGFOP"), ("Origin", "Assam")]
    emptied = RULES.given(tea).when(revise_product(3, attributes={})).event
    assert (emptied.name, list(emptied.attributes)) == ("Product 3", [])


def test_a_revision_to_what_the_product_is_already_is_one_too() -> None:
    first, second = SHOP.given(*[revise_product(1, name="Product 1")] * 2).events[-2:]
    assert (first.version, second.version) == (2, 3)
    assert (first.name, first.category) == (second.name, second.category) == ("Product 1", "Tea")


def test_a_revised_product_has_its_new_name_in_orders_from_then_on() -> None:
    ordered = SHOP.given(place_order(1), revise_product(1, name="New"), place_order(2))
    names = [it.lines[0].product_name for it in ordered.events if isinstance(it, events.OrderPlaced)]
    assert names == ["Product 1", "New"]


def test_a_discontinued_product_may_be_revised() -> None:
    discontinue = commands.DiscontinueProductRequest(product_id=identity("product", 1))
    assert SHOP.given(discontinue).when(revise_product(1, category="Old")).event.category == "Old"


def test_a_product_is_discontinued_once() -> None:
    discontinue = commands.DiscontinueProductRequest(product_id=identity("product", 1))
    SHOP.given(discontinue).when(discontinue).then(refused("ALREADY_DISCONTINUED", of=PRODUCT))


def test_a_command_with_another_version_than_the_current_is_refused_and_told_the_current() -> None:
    late = commands.PayOrderRequest(order_id=ORDER, expected_version=2)
    error = SHOP.given(place_order()).when(late).refusal
    assert isinstance(error, Conflict)
    assert (error.reason, error.metadata["current_version"]) == ("VERSION_MISMATCH", "1")


def test_orders_leave_a_products_version_alone_and_its_own_changes_count_it_up() -> None:
    adjust = commands.AdjustStockRequest(product_id=identity("product", 1), expected_version=1, delta=-3)
    product = SHOP.given(place_order(), adjust)[PRODUCTS][identity("product", 1)]
    assert (product.version, product.stock) == (2, 6)


def test_stock_is_not_counted_below_zero_nor_beyond_what_sums_can_hold() -> None:
    product = identity("product", 1)
    fewer = commands.AdjustStockRequest(product_id=product, delta=-11)
    SHOP.when(fewer).then(refused("OUT_OF_STOCK", of=f"products/{product}"))
    more = commands.AdjustStockRequest(product_id=product, delta=1)
    full = events.ProductAdded(product_id=product, version=1, price=usd(1), stock=MAX_STOCK)
    RULES.given(full).when(more).then(refused("STOCK_LIMIT", of=PRODUCT))


def test_a_refused_command_leaves_no_trace() -> None:
    outcome = SHOP.when(place_order(1, lines={1: 1, 2: 11}))
    assert outcome.refusal is not None
    assert {it.stock for it in outcome.after[PRODUCTS].values()} == {10}


def test_a_command_does_not_touch_what_was_loaded() -> None:
    loaded = States({PRODUCTS: SHOP[PRODUCTS], CUSTOMERS: SHOP[CUSTOMERS]})
    before = loaded.copy()
    [outcome] = decide_batch(DOMAIN, [command(place_order())], loaded, {}).outcomes
    assert isinstance(outcome, Receipt)
    assert loaded == before
