"""No order that the contract takes can stop a view: the arithmetic, and what is done where it does not hold."""

import pytest

from command_server.orders import MAX_TOTAL, line_total
from command_server.products import MAX_STOCK
from commerce.command.v1 import command_service_pb2 as commands
from commerce.event.v1.event_pb2 import Event
from commerce.internal.v1.stored_pb2 import SalesSummaryRow, SalesSums
from commerce.type.v1.money_pb2 import Money
from projector.sales_summary import MAX_SUM, PROJECTION
from tandem.projection.changes import CannotApply, StoredRow, ViewRow
from tests.support import events
from tests.support.events import feed_events
from tests.support.longest import rule
from tests.support.projecting import PROJECTIONS, fold, steps

INT64 = 2**63 - 1
MAX_LINES = rule(commands.PlaceOrderRequest(), "lines").max_elements
MAX_QUANTITY = rule(commands.PlaceOrderLine(), "quantity").max
MAX_STOCK_CHANGE = rule(commands.AdjustStockRequest(), "delta").max
MAX_PRICE = rule(Money(), "minor_units").max
# More than a feed will have: at 1,000 a second that takes more than a year, and with events of 300 bytes 12 TB.
ORDERS = 40_000_000_000


def test_what_is_counted_in_64_bits_stays_there_however_many_orders_there_are() -> None:
    assert ORDERS * MAX_LINES * MAX_QUANTITY < INT64, "units, over all orders"
    assert line_total(MAX_PRICE, MAX_QUANTITY, 0) < INT64, "a line, before the order is refused for its total"
    assert MAX_TOTAL < INT64, "an order"
    # An adjustment leaves at most MAX_STOCK, and what cancelled orders give back was taken before.
    assert MAX_STOCK + MAX_STOCK_CHANGE + ORDERS * MAX_QUANTITY < INT64, "a product's stock"
    assert ORDERS * MAX_TOTAL > INT64, "money is what passes it: sums of it carry"


def the_largest_order(number: int) -> Event:
    placed = events.order_placed(number, placed_at=events.at(1))
    order = placed.order_placed
    order.shipping_fee.minor_units = MAX_PRICE
    order.lines[0].line_total.minor_units = MAX_TOTAL - MAX_PRICE
    order.total.minor_units = MAX_TOTAL
    return placed


def exact(sums: SalesSums) -> tuple[int, int]:
    return (
        sums.revenue + sums.revenue_carry * 2**62,
        sums.shipping_fees + sums.shipping_fees_carry * 2**62,
    )


def after(history: list[Event], before: dict[bytes, StoredRow]) -> dict[bytes, ViewRow]:
    changes = fold(PROJECTION, feed_events(history), before)
    assert changes.stopped_by is None
    return {key: row for key, row in changes.rows.items() if row is not None}


def test_sums_of_money_pass_64_bits_are_exact_and_come_back() -> None:
    one = (MAX_TOTAL - MAX_PRICE, MAX_PRICE)
    # As if that many had been placed before, in one currency on one day; the fees are brought to the edge too.
    before = after([the_largest_order(1)], {})
    many = 4_700
    rows = {}
    for key, row in before.items():
        stored = SalesSummaryRow.FromString(row.value)
        stored.sold.revenue = many * one[0] % 2**62
        stored.sold.revenue_carry = many * one[0] // 2**62
        if stored.sold.shipping_fees:
            stored.sold.shipping_fees = 2**62 - 1
        rows[key] = row.began, stored.SerializeToString(deterministic=True)
    start = {key: exact(SalesSummaryRow.FromString(value).sold) for key, (_, value) in rows.items()}

    placed = [the_largest_order(number) for number in range(2, 7_002)]
    found = after(placed, rows)
    for key, row in found.items():
        sold = SalesSummaryRow.FromString(row.value).sold
        fees = len(placed) * one[1] if start[key][1] else 0
        assert exact(sold) == (start[key][0] + len(placed) * one[0], start[key][1] + fees)
        assert exact(sold)[0] > INT64
        assert row.columns[5] == MAX_SUM == INT64

    cancelled = [events.order_cancelled(placed=it) for it in placed]
    back = after(cancelled, {key: row.stored for key, row in found.items()})
    for key, row in back.items():
        view = SalesSummaryRow.FromString(row.value)
        assert exact(view.sold) == start[key]
        assert exact(view.cancelled)[0] == len(placed) * one[0]


@pytest.mark.parametrize("view", sorted(PROJECTIONS))
def test_a_time_that_no_calendar_has_is_a_failure_of_that_event_and_no_crash(view: str) -> None:
    """No command stores one. Whoever did, views that do not ask for the time go on."""
    placed = events.order_placed(2)
    placed.order_placed.placed_at.seconds = 10**15
    found = steps(PROJECTIONS[view], feed_events([placed]))
    stopped = found.stopped_by or fold(PROJECTIONS[view], feed_events([placed]), {}).stopped_by
    assert stopped is None or isinstance(stopped, CannotApply)
    if view == "sales_summary":
        assert "OverflowError" in str(stopped)
