"""The business rules, each alone: what is decided, and what is refused and why."""

from datetime import UTC, datetime

import pytest
from google.protobuf.message import Message

from command_server.app import DOMAIN
from command_server.customers import CUSTOMER_ORDERS, CUSTOMERS
from command_server.orders import LINES, ORDERS, line_total
from command_server.products import MAX_STOCK, PRODUCTS
from commerce.command.v1 import command_service_pb2 as commands
from commerce.event.v1.event_pb2 import Event
from tandem.commands.batch import Decisions, decide_batch
from tandem.commands.domain import Command
from tandem.commands.receipts import Receipt
from tandem.commands.write_model import States
from tandem.runtime.errors import AlreadyExists, Conflict, PreconditionFailed, TandemError
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
PAY = commands.PayOrderRequest(order_id=ORDER)
SHIP = commands.ShipOrderRequest(order_id=ORDER)
DELIVER = commands.DeliverOrderRequest(order_id=ORDER)
MOVE = commands.ChangeShippingAddressRequest(order_id=ORDER, address=address(city="Bonn"))
CANCEL = commands.CancelOrderRequest(order_id=ORDER, reason="changed my mind")


def decide(*requests: Message) -> Decisions:
    """On a store in which nothing is yet, no order of the first customer either."""
    nothing = States({CUSTOMER_ORDERS: {identity("customer", 1): frozenset()}})
    return decide_batch(DOMAIN, [command(it) for it in requests], nothing, {})


def accepted(*requests: Message) -> list[Event]:
    """The events of requests that must all be accepted."""
    decisions = decide(*requests)
    assert all(isinstance(it, Receipt) for it in decisions.outcomes), decisions.outcomes
    return [event for _, event in decisions.events]


def refused(*requests: Message) -> TandemError:
    """The refusal of the last request, after the others were accepted."""
    *before, last = decide(*requests).outcomes
    assert all(isinstance(it, Receipt) for it in before), before
    assert isinstance(last, TandemError)
    return last


def rules(error: TandemError) -> dict[str, str]:
    assert isinstance(error, PreconditionFailed)
    return {it.subject: it.kind for it in error.violations}


SHOP = (register_customer(1), add_product(1, price=333, stock=10), add_product(2, price=1000, stock=10))


def test_an_order_tells_all_that_a_reader_needs_as_it_was() -> None:
    request = place_order(lines={1: 3, 2: 1}, discount=500)
    request.shipping_fee.CopyFrom(usd(450))
    placed = accepted(*SHOP, request)[-1].order_placed
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
    assert rules(refused(*SHOP, discontinue, euros, request)) == {
        f"customers/{identity('customer', 9)}": "CUSTOMER_UNKNOWN",
        f"products/{identity('product', 1)}": "OUT_OF_STOCK",
        f"products/{identity('product', 2)}": "PRODUCT_DISCONTINUED",
        f"products/{identity('product', 3)}": "PRODUCT_UNKNOWN",
        f"products/{identity('product', 4)}": "CURRENCY_MISMATCH",
        "shipping_fee": "CURRENCY_MISMATCH",
    }


def test_an_order_needs_an_address_of_its_own_or_the_customers() -> None:
    nobody = register_customer(2, has_address=False)
    request = place_order(customer=2)
    assert rules(refused(*SHOP, nobody, request)) == {f"customers/{identity('customer', 2)}": "ADDRESS_REQUIRED"}
    request.shipping_address.CopyFrom(address(recipient="Somebody else"))
    assert accepted(*SHOP, nobody, request)[-1].order_placed.personal.address.recipient == "Somebody else"


def test_an_order_that_costs_more_than_sums_can_hold_is_refused() -> None:
    dear = add_product(3, price=10**12, stock=10**6)
    assert rules(refused(*SHOP, dear, place_order(lines={3: 10**6}))) == {"total": "TOTAL_LIMIT"}


def test_the_second_order_sees_what_the_first_has_reserved() -> None:
    assert rules(refused(*SHOP, place_order(1, lines={1: 6}), place_order(2, lines={1: 5}))) == {
        f"products/{identity('product', 1)}": "OUT_OF_STOCK"
    }


def test_a_cancelled_order_gives_its_stock_back() -> None:
    last = place_order(2, lines={1: 10})
    events = accepted(*SHOP, place_order(1, lines={1: 10}), CANCEL, last)
    assert events[-2].order_cancelled.released[0].quantity == 10
    assert events[-1].WhichOneof("kind") == "order_placed"


def test_a_cancellation_tells_what_it_takes_off_and_off_which_day() -> None:
    request = place_order(lines={1: 3, 2: 1}, discount=500)
    request.shipping_fee.CopyFrom(usd(450))
    request.placed_at.FromDatetime(datetime(2025, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC))
    placed, cancelled = accepted(*SHOP, request, CANCEL)[-2:]
    it = cancelled.order_cancelled
    assert [(line.product_id, line.quantity, line.line_total) for line in it.released] == [
        (line.product_id, line.quantity, line.line_total) for line in placed.order_placed.lines
    ]
    assert it.placed_at == placed.order_placed.placed_at
    assert it.shipping_fee == usd(450)
    assert it.total == placed.order_placed.total


def test_a_price_change_touches_no_earlier_order() -> None:
    raise_price = commands.ChangePriceRequest(product_id=identity("product", 1), price=usd(999))
    decisions = decide(*SHOP, place_order(1), raise_price, place_order(2))
    prices = [lines[0].unit_price for lines in decisions.states[LINES].values()]
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
    assert rules(refused(*SHOP, place_order(), *before, request_)) == {f"orders/{ORDER}": rule}


@pytest.mark.parametrize("before", [(), (PAY,)])
def test_an_unshipped_order_is_cancelled(before: tuple[Message, ...]) -> None:
    assert accepted(*SHOP, place_order(), *before, CANCEL)[-1].order_cancelled.reason == "changed my mind"


@pytest.mark.parametrize("index", range(len(SHOP)))
def test_what_exists_is_not_created_again(index: int) -> None:
    again = type(SHOP[index])()
    again.CopyFrom(SHOP[index])  # type: ignore[arg-type]
    again.request_id = identity("again")
    assert isinstance(refused(*SHOP, again), AlreadyExists)


def test_an_unshipped_order_goes_elsewhere_and_its_customer_stays_where_he_is() -> None:
    decisions = decide(*SHOP, place_order(), PAY, MOVE)
    changed = decisions.events[-1][1].shipping_address_changed
    assert changed.customer_id == identity("customer", 1)
    assert changed.personal.address == address(city="Bonn", recipient="Customer 1")
    assert [it.address_of("main") for it in decisions.states[CUSTOMERS].values()] == [address()]


def test_an_order_goes_to_the_address_that_has_the_name_when_it_is_asked_for() -> None:
    work = commands.UpdateAddressRequest(
        customer_id=identity("customer", 1), address_name="work", address=address(city="Ulm")
    )
    to_work = commands.ChangeShippingAddressRequest(order_id=ORDER, address_name="work")
    work_moves = commands.UpdateAddressRequest(
        customer_id=identity("customer", 1), address_name="work", address=address(city="Bonn")
    )
    changed = accepted(*SHOP, work, place_order(), to_work, work_moves)[-2].shipping_address_changed
    assert changed.personal.address == address(city="Ulm", recipient="Customer 1")
    assert not changed.personal.address_name, "an order has an address, not a customer's name for it"
    renamed = commands.RenameCustomerRequest(customer_id=identity("customer", 1), name="Ada King")
    changed = accepted(*SHOP, work, place_order(), renamed, to_work)[-1].shipping_address_changed
    assert changed.personal.address.recipient == "Ada King"


def test_an_order_goes_neither_to_an_unknown_address_nor_anywhere_else_when_its_customer_was_erased() -> None:
    customer = f"customers/{identity('customer', 1)}"
    unknown = commands.ChangeShippingAddressRequest(order_id=ORDER, address_name="Main")
    assert rules(refused(*SHOP, place_order(), unknown)) == {customer: "ADDRESS_UNKNOWN"}
    erase = commands.EraseCustomerRequest(customer_id=identity("customer", 1))
    assert rules(refused(*SHOP, place_order(), erase, MOVE)) == {customer: "CUSTOMER_ERASED"}


def test_the_order_of_an_erased_customer_is_paid_shipped_and_delivered() -> None:
    erase = commands.EraseCustomerRequest(customer_id=identity("customer", 1))
    events = accepted(*SHOP, place_order(), erase, PAY, SHIP, DELIVER)
    assert [it.WhichOneof("kind") for it in events[-3:]] == ["order_paid", "order_shipped", "order_delivered"]


def test_a_shipped_order_is_delivered_when_the_caller_says() -> None:
    late = commands.DeliverOrderRequest(order_id=ORDER)
    late.delivered_at.FromJsonString("2026-01-30T08:00:00Z")
    assert accepted(*SHOP, place_order(), PAY, SHIP, late)[-1].order_delivered.delivered_at == late.delivered_at


def test_a_revision_changes_what_is_set_and_keeps_the_rest() -> None:
    tea = add_product(3, Origin="Assam", Grade="FTGFOP")
    revised = accepted(tea, revise_product(3, name="Assam Tea", description=""))[-1].product_revised
    assert (revised.version, revised.name, revised.description, revised.category) == (2, "Assam Tea", "", "Tea")
    assert [(it.name, it.value) for it in revised.attributes] == [("Grade", "FTGFOP"), ("Origin", "Assam")]
    emptied = accepted(tea, revise_product(3, attributes={}))[-1].product_revised
    assert (emptied.name, list(emptied.attributes)) == ("Product 3", [])


def test_a_revision_to_what_the_product_is_already_is_one_too() -> None:
    first, second = (it.product_revised for it in accepted(*SHOP, *[revise_product(1, name="Product 1")] * 2)[-2:])
    assert (first.version, second.version) == (2, 3)
    assert (first.name, first.category) == (second.name, second.category) == ("Product 1", "Tea")


def test_a_revised_product_has_its_new_name_in_orders_from_then_on() -> None:
    events = accepted(*SHOP, place_order(1), revise_product(1, name="New"), place_order(2))
    names = [it.order_placed.lines[0].product_name for it in events if it.HasField("order_placed")]
    assert names == ["Product 1", "New"]


def test_a_discontinued_product_may_be_revised() -> None:
    discontinue = commands.DiscontinueProductRequest(product_id=identity("product", 1))
    assert accepted(*SHOP, discontinue, revise_product(1, category="Old"))[-1].product_revised.category == "Old"


def test_a_product_is_discontinued_once() -> None:
    discontinue = commands.DiscontinueProductRequest(product_id=identity("product", 1))
    assert rules(refused(*SHOP, discontinue, discontinue)) == {
        f"products/{identity('product', 1)}": "ALREADY_DISCONTINUED"
    }


def test_a_command_with_another_version_than_the_current_is_refused_and_told_the_current() -> None:
    late = commands.PayOrderRequest(order_id=ORDER, expected_version=2)
    error = refused(*SHOP, place_order(), late)
    assert isinstance(error, Conflict)
    assert (error.reason, error.metadata["current_version"]) == ("VERSION_MISMATCH", "1")


def test_orders_leave_a_products_version_alone_and_its_own_changes_count_it_up() -> None:
    adjust = commands.AdjustStockRequest(product_id=identity("product", 1), expected_version=1, delta=-3)
    states = decide(*SHOP, place_order(), adjust).states
    product = next(it for it in states[PRODUCTS].values() if it.name == "Product 1")
    assert (product.version, product.stock) == (2, 6)


def test_stock_is_not_counted_below_zero_nor_beyond_what_sums_can_hold() -> None:
    product = identity("product", 1)
    fewer = commands.AdjustStockRequest(product_id=product, delta=-11)
    assert rules(refused(*SHOP, fewer)) == {f"products/{product}": "OUT_OF_STOCK"}
    full = decide(*SHOP).states
    full[PRODUCTS] = {key: it._replace(stock=MAX_STOCK) for key, it in full[PRODUCTS].items()}
    more = commands.AdjustStockRequest(product_id=product, delta=1)
    [refusal] = decide_batch(DOMAIN, [command(more)], full, {}).outcomes
    assert isinstance(refusal, PreconditionFailed)
    assert rules(refusal) == {f"products/{product}": "STOCK_LIMIT"}


def test_a_refused_command_leaves_no_trace() -> None:
    decisions = decide(*SHOP, place_order(1, lines={1: 1, 2: 11}))
    assert len(decisions.events) == len(SHOP)
    assert {it.stock for it in decisions.states[PRODUCTS].values()} == {10}


def test_a_command_does_not_touch_what_was_loaded() -> None:
    loaded = decide(*SHOP).states
    before = dict(loaded[PRODUCTS])
    batch: list[Command] = [command(place_order())]
    decide_batch(DOMAIN, batch, loaded, {})
    assert loaded[PRODUCTS] == before
    assert not loaded[ORDERS]
