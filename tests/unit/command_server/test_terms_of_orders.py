"""What few orders have: discounts, taxes, payment on delivery, refunds, downloads; and orders of elsewhere."""

from typing import Any

import pytest
from google.protobuf.message import Message

from command_server.app import DOMAIN
from command_server.orders import LINES, ORDERS
from command_server.products import MAX_STOCK, PRODUCTS
from commerce.command.v1 import command_service_pb2 as commands
from commerce.event.v1 import event_pb2 as events
from commerce.type.v1.order_status_pb2 import OrderStatus
from projector import order_details, order_summary, product_card, sales_summary
from shop.events import EVENTS
from tandem.projection.projection import Projection
from tandem.testing.rules import Given, Rules, refused
from tandem.testing.views import view
from tests.support.builders import (
    add_product,
    address,
    euros,
    identity,
    import_order,
    place_order,
    register_customer,
    usd,
)

ORDER, PRODUCT = identity("order", 1), identity("product", 1)
SUBJECT = f"orders/{ORDER}"
PAY = commands.PayOrderRequest(order_id=ORDER)
SHIP = commands.ShipOrderRequest(order_id=ORDER)
DELIVER = commands.DeliverOrderRequest(order_id=ORDER)
CANCEL = commands.CancelOrderRequest(order_id=ORDER)
FIRST = (register_customer(), add_product(1, price=1000, stock=10), add_product(2, price=500, stock=10))
SHOP = Rules(DOMAIN).given(*FIRST)
CUSTOMER = f"customers/{identity('customer', 1)}"


def download(number: int = 3) -> commands.AddProductRequest:
    request = add_product(number, price=700, stock=0)
    request.unlimited_stock = request.not_shipped = True
    return request


def refund(amount: int) -> commands.RefundOrderRequest:
    return commands.RefundOrderRequest(order_id=ORDER, amount=usd(amount), reason="came back broken")


def paid_on_delivery() -> commands.PlaceOrderRequest:
    request = place_order()
    request.terms.payment_on_delivery = True
    return request


def row(projection: Projection, given: Given, of: str) -> Any:
    return view(projection, EVENTS).after(*given.events).message(of=of)


def seen(given: Given) -> Any:
    """The order, as its view shows it."""
    return row(order_details.PROJECTION, given, ORDER)


def in_a_list(given: Given) -> Any:
    return row(order_summary.PROJECTION, given, ORDER)


def card(given: Given, product: int) -> Any:
    return row(product_card.PROJECTION, given, identity("product", product))


def test_a_discount_and_a_tax_are_part_of_what_an_order_costs() -> None:
    request = place_order(lines={1: 2, 2: 1})
    request.terms.discount.CopyFrom(usd(300))
    request.shipping_fee.CopyFrom(usd(450))
    request.terms.tax.CopyFrom(usd(409))
    request.billing_address.CopyFrom(address(city="Bonn", company="Acme"))
    request.terms.external_reference = "R-2026-7"
    order = seen(SHOP.given(request))
    assert (order.subtotal, order.terms.discount, order.terms.tax) == (usd(2500), usd(300), usd(409))
    assert order.total == usd(2500 - 300 + 450 + 409)
    assert (order.billing_address.company, order.billing_address.recipient) == ("Acme", "Customer 1")
    assert order.terms.external_reference == "R-2026-7"
    request.terms.tax_included = True
    included = seen(SHOP.given(request))
    assert (included.subtotal, included.total) == (usd(2500), usd(2500 - 300 + 450))


def test_the_amounts_of_an_order_are_in_its_currency_and_no_more_is_taken_off_than_it_costs() -> None:
    request = place_order()
    request.terms.tax.CopyFrom(euros(1))
    SHOP.when(request).then(refused("CURRENCY_MISMATCH", of="terms.tax"))
    request = place_order()
    request.terms.discount.CopyFrom(usd(1001))
    SHOP.when(request).then(refused("DISCOUNT_LIMIT", of="terms.discount"))


def test_a_cancelled_order_says_what_shipping_would_have_cost_whatever_else_it_has() -> None:
    request = place_order()
    request.terms.discount.CopyFrom(usd(300))
    request.shipping_fee.CopyFrom(usd(450))
    request.terms.tax.CopyFrom(usd(409))
    assert SHOP.given(request).when(CANCEL).event.shipping_fee == usd(450)


def test_the_lines_of_a_product_share_its_stock() -> None:
    request = place_order(lines={1: 6})
    request.lines.add(product_id=PRODUCT, quantity=4, discount_basis_points=10_000)
    after = SHOP.given(request)
    assert after[PRODUCTS][PRODUCT].stock == 0
    assert [it.line_total.minor_units for it in seen(after).lines] == [6000, 0]
    request.lines[1].quantity = 5
    SHOP.when(request).then(refused("OUT_OF_STOCK", of=f"products/{PRODUCT}"))


def test_what_is_paid_on_delivery_is_shipped_before() -> None:
    SHOP.given(place_order()).when(SHIP).then(refused("ORDER_NOT_PAID", of=SUBJECT))
    shipped = SHOP.given(paid_on_delivery(), SHIP)
    assert seen(shipped).terms.payment_on_delivery
    shipped.when(refund(1)).then(refused("ORDER_NOT_PAID", of=SUBJECT))
    histories: list[list[Message]] = [[PAY], [DELIVER, PAY]]
    for history in histories:
        paid = shipped.given(*history)
        status = OrderStatus.ORDER_STATUS_DELIVERED if DELIVER in history else OrderStatus.ORDER_STATUS_SHIPPED
        assert seen(paid).status == status
        assert seen(paid).HasField("paid_at")
        assert in_a_list(paid).status == status == paid[ORDERS][ORDER].status
        paid.when(PAY).then(refused("ORDER_NOT_PLACED", of=SUBJECT))
    assert seen(SHOP.given(paid_on_delivery(), PAY)).status == OrderStatus.ORDER_STATUS_PAID


def test_refunds_come_to_no_more_than_was_paid() -> None:
    placed = SHOP.given(place_order())
    placed.when(refund(1)).then(refused("ORDER_NOT_PAID", of=SUBJECT))
    delivered = placed.given(PAY, SHIP, DELIVER)
    given_back = delivered.given(refund(600))
    assert seen(given_back.given(refund(400))).refunded == usd(1000)
    assert seen(given_back).status == OrderStatus.ORDER_STATUS_DELIVERED
    given_back.when(refund(401)).then(refused("REFUND_LIMIT", of=SUBJECT))
    euro = commands.RefundOrderRequest(order_id=ORDER, amount=euros(1))
    delivered.when(euro).then(refused("CURRENCY_MISMATCH", of=SUBJECT))
    placed.given(PAY, CANCEL).when(refund(1)).then(refused("ORDER_NOT_PAID", of=SUBJECT))


def test_a_download_goes_nowhere_and_never_runs_out() -> None:
    shop = Rules(DOMAIN).given(register_customer(has_address=False), download())
    placed = shop.given(place_order(lines={3: 1_000_000}))
    order = seen(placed)
    assert order.nothing_to_ship
    assert not order.HasField("shipping_address")
    for number, given in enumerate((shop, placed, placed.given(CANCEL))):
        its = card(given, 3)
        assert (its.available, its.unlimited_stock, its.not_shipped) == (MAX_STOCK, True, True)
        assert its.units_sold == (1_000_000 if number == 1 else 0)
        assert given[PRODUCTS][identity("product", 3)].stock == MAX_STOCK
    more = commands.AdjustStockRequest(product_id=identity("product", 3), delta=1)
    shop.when(more).then(refused("STOCK_UNLIMITED", of=f"products/{identity('product', 3)}"))
    placed.when(DELIVER).then(refused("ORDER_NOT_PAID", of=SUBJECT))
    placed.given(PAY).when(SHIP).then(refused("NOTHING_TO_SHIP", of=SUBJECT))
    assert seen(placed.given(PAY, DELIVER)).status == OrderStatus.ORDER_STATUS_DELIVERED
    elsewhere = commands.ChangeShippingAddressRequest(order_id=ORDER, address=address())
    placed.when(elsewhere).then(refused("ORDER_NOT_READDRESSABLE", of=SUBJECT))


def test_an_order_of_a_download_and_goods_needs_an_address() -> None:
    shop = Rules(DOMAIN).given(register_customer(has_address=False), download(), add_product(1))
    shop.when(place_order(lines={1: 1, 3: 1})).then(refused("ADDRESS_REQUIRED", of=CUSTOMER))


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (PAY, "paid_at"),
        (SHIP, "shipped_at"),
        (DELIVER, "delivered_at"),
        (CANCEL, "cancelled_at"),
        (refund(1), "refunded_at"),
    ],
)
def test_nothing_happens_to_an_order_before_it_is_placed(request_: commands.PayOrderRequest, field: str) -> None:
    histories: dict[str, list[Message]] = {"shipped_at": [PAY], "delivered_at": [PAY, SHIP], "refunded_at": [PAY]}
    before = histories.get(field, [])
    placed = place_order()
    placed.placed_at.FromJsonString("1899-01-01T00:00:00Z")
    given = SHOP.given(placed, *before)
    request = type(request_)()
    request.CopyFrom(request_)
    getattr(request, field).FromJsonString("1800-01-01T00:00:00Z")
    given.when(request).then(refused("TIME_BEFORE_PLACED", of=SUBJECT))
    getattr(request, field).FromJsonString("1899-01-01T00:00:00Z")
    assert getattr(given.when(request).event, field) == getattr(request, field)


def test_customers_and_products_say_what_they_are_called_elsewhere_and_since_when_they_are_there() -> None:
    registered = register_customer()
    registered.external_reference, registered.guest = "K-17", True
    registered.registered_at.FromJsonString("2009-05-01T00:00:00Z")
    event = Rules(DOMAIN).when(registered).event
    assert (event.personal.external_reference, event.guest) == ("K-17", True)
    assert event.registered_at == registered.registered_at
    added = add_product()
    added.external_reference = "SKU-1"
    added.added_at.FromJsonString("2009-05-02T00:00:00Z")
    event = Rules(DOMAIN).when(added).event
    assert (event.external_reference, event.added_at) == ("SKU-1", added.added_at)


def brought_in(**times: str) -> commands.ImportOrderRequest:
    request = import_order(1, {1: (3, 333), 2: (1, 700)}, times)
    request.lines[0].product_name = "Product of then"
    request.lines[0].discount_basis_points = 500
    request.lines[1].line_total.CopyFrom(usd(650))
    return request


def test_an_order_of_elsewhere_has_the_prices_names_and_times_of_then_and_takes_no_stock() -> None:
    request = brought_in(paid_at="2025-01-02T00:00:00Z", shipped_at="2025-01-03T00:00:00Z")
    request.total.CopyFrom(usd(949 + 650))
    request.customer_name = "Name of then"
    request.terms.external_reference = "4711"
    after = SHOP.given(request)
    order = seen(after)
    assert [(it.product_name, it.unit_price.minor_units, it.line_total.minor_units) for it in order.lines] == [
        ("Product of then", 333, 949),
        ("Product 2", 700, 650),
    ]
    assert (order.total, order.subtotal, order.customer_name) == (usd(1599), usd(1599), "Name of then")
    assert (order.status, order.version) == (OrderStatus.ORDER_STATUS_SHIPPED, 1)
    for field in ("placed_at", "paid_at", "shipped_at"):
        assert getattr(order, field) == getattr(request, field)
    assert not order.HasField("shipping_address")
    assert after[PRODUCTS][PRODUCT].stock == 10
    assert len(after[LINES][ORDER]) == 2
    assert [(it.available, it.units_sold) for it in (card(after, 1), card(after, 2))] == [(10, 3), (10, 1)]
    assert seen(after.given(DELIVER)).status == OrderStatus.ORDER_STATUS_DELIVERED


@pytest.mark.parametrize(
    ("times", "status"),
    [
        ([], "PLACED"),
        (["paid_at"], "PAID"),
        (["shipped_at"], "SHIPPED"),
        (["shipped_at", "delivered_at"], "DELIVERED"),
        (["paid_at", "cancelled_at"], "CANCELLED"),
    ],
)
def test_the_status_of_an_order_of_elsewhere_is_the_last_that_happened(times: list[str], status: str) -> None:
    after = SHOP.given(brought_in(**dict.fromkeys(times, "2025-02-01T00:00:00Z")))
    expected = OrderStatus.Value(f"ORDER_STATUS_{status}")
    assert seen(after).status == in_a_list(after).status == after[ORDERS][ORDER].status == expected
    # What was shipped counts as paid.
    if status in ("PAID", "SHIPPED", "DELIVERED"):
        assert seen(after.given(refund(1))).refunded == usd(1)


def test_a_cancelled_order_of_elsewhere_counts_as_cancelled_and_sold_nothing() -> None:
    after = SHOP.given(brought_in(cancelled_at="2025-02-01T00:00:00Z"))
    assert [card(after, it).units_sold for it in (1, 2)] == [0, 0]
    total = row(sales_summary.PROJECTION, after, "2025-01-01/USD/")
    assert (total.sold.order_count, total.sold.revenue) == (0, 0)
    assert (total.cancelled.order_count, total.cancelled.revenue) == (1, 1599)


def test_an_open_order_of_elsewhere_gives_its_units_back_when_it_is_cancelled_here() -> None:
    after = SHOP.given(brought_in(), CANCEL)
    assert after[PRODUCTS][PRODUCT].stock == 13


def test_an_order_of_elsewhere_comes_to_what_it_is_said_to_have_cost() -> None:
    request = brought_in(paid_at="2025-01-02T00:00:00Z")
    request.total.CopyFrom(usd(1600))
    SHOP.when(request).then(refused("TOTAL_MISMATCH", of="total"))
    request.total.CopyFrom(usd(1599))
    request.refunded.CopyFrom(usd(1600))
    SHOP.when(request).then(refused("REFUND_LIMIT", of="refunded"))
    request.refunded.CopyFrom(usd(599))
    order = seen(SHOP.given(request))
    assert (order.refunded, order.refunded_at) == (usd(599), request.placed_at)
    request.lines[1].unit_price.CopyFrom(euros(1))
    SHOP.when(request).then(refused("CURRENCY_MISMATCH", of="lines[1].unit_price"))
    nobodys = import_order(lines={9: (1, 1)}, customer=9)
    unknown = {"customers": "CUSTOMER_UNKNOWN", "products": "PRODUCT_UNKNOWN"}
    subjects = {f"{kind}/{identity(kind[:-1], 9)}": reason for kind, reason in unknown.items()}
    SHOP.when(nobodys).then(refused(subjects=subjects))
    # What is no longer sold was sold then.
    SHOP.given(commands.DiscontinueProductRequest(product_id=PRODUCT)).given(brought_in())


def test_an_order_of_elsewhere_that_is_paid_on_delivery_may_be_paid_here() -> None:
    request = brought_in(shipped_at="2025-01-02T00:00:00Z")
    request.terms.payment_on_delivery = True
    after = SHOP.given(request)
    after.when(refund(1)).then(refused("ORDER_NOT_PAID", of=SUBJECT))
    paid = after.given(PAY)
    assert seen(paid).status == OrderStatus.ORDER_STATUS_SHIPPED
    paid.given(refund(1))


def test_what_is_stored_of_an_order_is_read_back() -> None:
    request = paid_on_delivery()
    request.terms.discount.CopyFrom(usd(10))
    histories: list[list[Message]] = [[place_order()], [request], [request, PAY, SHIP, refund(5)]]
    for history in histories:
        order = SHOP.given(*history)[ORDERS][ORDER]
        assert ORDERS.state_of(ORDERS.row_of(order)) == order
    assert ORDERS.row_of(SHOP.given(place_order())[ORDERS][ORDER])[-1] == b"", "nothing where there is nothing"


def test_erasure_takes_the_invoices_address_too() -> None:
    request = place_order()
    request.billing_address.CopyFrom(address(city="Bonn"))
    placed = SHOP.given(request)
    anonymized = events.OrdersAnonymized(customer_id=identity("customer", 1), order_ids=[ORDER])
    assert seen(placed).billing_address.city == "Bonn"
    assert not seen(placed.given(anonymized)).HasField("billing_address")
