"""SalesSummary: what was sold, summed by day, by currency and product.

An order counts on the day of its `placed_at`, in UTC, and its cancellation takes it off that same day. In each currency
a day has a row for all products together, and one for each product.

No order can stop the sums: 9,224 of the largest orders pass 2^63, so a sum of money carries what passes 2^62. Columns
end at MAX_SUM. Counts of orders and units need no carry: see tests/unit/projector/test_sums.py.
"""

import functools
from collections.abc import Iterable
from datetime import date
from typing import Any

import uuid_utils
from google.protobuf.timestamp_pb2 import Timestamp

from commerce.event.v1 import event_pb2 as events
from commerce.internal.v1.stored_pb2 import SalesSummaryRow, SalesSums
from shop import views
from tandem.projection.projection import Columns, Projection

_NAMESPACE = uuid_utils.UUID("b0a5d0c1-6c0e-4f5e-8a44-3f1f6b1f2d7e")

MAX_SUM = 2**63 - 1
"""In a column, and in an answer: this much or more."""
_CARRIED = 2**62

_DAY_SECONDS = 86_400
_FIRST_DAY = date(1970, 1, 1).toordinal()


@functools.lru_cache(maxsize=16_384)
def key_of(name: str) -> bytes:
    """Remembered: the rows of a day, of all that is sold on it, change again and again."""
    return uuid_utils.uuid5(_NAMESPACE, name).bytes


class Share:
    """What an order adds to one of its rows, or its cancellation takes off. revenue, shipping_fees: in minor units.

    line: the last of the order's lines for the row's product; None in the row of all products.
    cancelled: of an order that was brought in, whether it was cancelled elsewhere.
    """

    __slots__ = ("cancelled", "currency_code", "day", "line", "placed_at", "revenue", "shipping_fees", "unit_count")

    def __init__(self, day: str, currency_code: str, placed_at: Timestamp, shipping_fees: int) -> None:
        self.day = day
        self.currency_code = currency_code
        self.placed_at = placed_at
        self.shipping_fees = shipping_fees
        self.unit_count = self.revenue = 0
        self.line: Any = None
        self.cancelled = False


def shares_of_placed(event: events.OrderPlaced) -> dict[str, Share]:
    return _shares(event, event.lines)


def shares_of_imported(event: events.OrderImported) -> dict[str, Share]:
    shares = _shares(event, event.lines)
    for share in shares.values():
        share.cancelled = event.HasField("cancelled_at")
    return shares


def shares_of_cancelled(event: events.OrderCancelled) -> dict[str, Share]:
    if not event.HasField("placed_at"):
        raise ValueError(
            "it does not say when the order was placed: a command server of an earlier version stored it after the"
            " write database was migrated"
        )
    return _shares(event, event.released)


def imported(view: SalesSummaryRow | None, share: Share) -> SalesSummaryRow:
    view = placed(view, share)
    return cancelled(view, share) if share.cancelled else view


def placed(view: SalesSummaryRow | None, share: Share) -> SalesSummaryRow:
    line = share.line
    if view is None:
        product_id = line.product_id if line else ""
        view = SalesSummaryRow(day=share.day, currency_code=share.currency_code, product_id=product_id)
    _count(view.sold, 1, share)
    if line:
        placed_at, named_at = share.placed_at, view.named_at
        # Orders need not be placed in the order of time: the name stays that of the latest.
        later = (placed_at.seconds, placed_at.nanos) >= (named_at.seconds, named_at.nanos)
        if later or not view.HasField("named_at"):
            view.product_name = line.product_name
            named_at.CopyFrom(placed_at)
    return view


def cancelled(view: SalesSummaryRow, share: Share) -> SalesSummaryRow:
    _count(view.sold, -1, share)
    _count(view.cancelled, 1, share)
    return view


def columns(view: SalesSummaryRow, _began: int) -> Columns:
    """Day, currency, product or None; then what the orders that stand come to, and what the cancelled ones do."""
    sold, gone = view.sold, view.cancelled
    return (
        date.fromisoformat(view.day),
        view.currency_code,
        view.product_id or None,
        sold.order_count,
        sold.unit_count,
        _in_a_column(sold.revenue, sold.revenue_carry),
        _in_a_column(sold.shipping_fees, sold.shipping_fees_carry),
        gone.order_count,
        gone.unit_count,
        _in_a_column(gone.revenue, gone.revenue_carry),
        _in_a_column(gone.shipping_fees, gone.shipping_fees_carry),
    )


def _in_a_column(low: int, carry: int) -> int:
    return min(low + carry * _CARRIED, MAX_SUM) if carry else low


def _shares(
    order: events.OrderPlaced | events.OrderImported | events.OrderCancelled,
    lines: Iterable[events.OrderLine | events.ReleasedStock],
) -> dict[str, Share]:
    """By the names of the rows that an order is counted in: all products', and each product's."""
    placed_at, currency = order.placed_at, order.total.currency_code
    # In UTC: the seconds count from the beginning of a day, without leap seconds, and down from there before 1970.
    day = _day(placed_at.seconds // _DAY_SECONDS)
    everything = f"{day}/{currency}/"
    total = Share(day, currency, placed_at, order.shipping_fee.minor_units)
    shares = {everything: total}
    for line in lines:
        name, quantity, amount = everything + line.product_id, line.quantity, line.line_total.minor_units
        share = shares.get(name)
        if share is None:
            share = shares[name] = Share(day, currency, placed_at, 0)
        share.line = line
        share.unit_count += quantity
        share.revenue += amount
        total.unit_count += quantity
        total.revenue += amount
    return shares


@functools.lru_cache(maxsize=1_000)
def _day(number: int) -> str:
    """number: of days since 1970."""
    return date.fromordinal(_FIRST_DAY + number).isoformat()


def _count(sums: SalesSums, sign: int, share: Share) -> None:
    """Adds an order (sign 1) to one of a row's sums, or takes it off (-1)."""
    sums.order_count += sign
    sums.unit_count += sign * share.unit_count
    revenue = sums.revenue + sign * share.revenue
    if revenue >= _CARRIED or (revenue < 0 and sums.revenue_carry):
        carry, revenue = divmod(revenue, _CARRIED)
        sums.revenue_carry += carry
    sums.revenue = revenue
    fees = sums.shipping_fees + sign * share.shipping_fees
    if fees >= _CARRIED or (fees < 0 and sums.shipping_fees_carry):
        carry, fees = divmod(fees, _CARRIED)
        sums.shipping_fees_carry += carry
    sums.shipping_fees = fees


PROJECTION = Projection(
    table=views.sales_summary,
    message=SalesSummaryRow,
    rules={"order_placed": placed, "order_imported": imported, "order_cancelled": cancelled},
    parts={
        "order_placed": shares_of_placed,
        "order_imported": shares_of_imported,
        "order_cancelled": shares_of_cancelled,
    },
    columns=columns,
    scope="day",
    key_of=key_of,
    may_begin=frozenset({"order_placed", "order_imported"}),
)
