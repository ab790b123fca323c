"""SalesSummary: what was sold, summed by day, by currency and product.

An order counts on the day of its `placed_at`, in UTC, and its cancellation takes it off that same day. In each currency
a day has a row for all products together, and one for each product.
"""

import functools
import uuid
from collections.abc import Iterable, Sequence
from datetime import date
from typing import TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

from commerce.event.v1 import event_pb2 as events
from commerce.internal.v1.stored_pb2 import SalesSummaryRow, SalesSums
from commerce.type.v1.money_pb2 import Money
from projector.projections.shape import Columns, Projection, present

_NAMESPACE = uuid.UUID("b0a5d0c1-6c0e-4f5e-8a44-3f1f6b1f2d7e")

Line = events.OrderLine | events.ReleasedStock
LineT = TypeVar("LineT", events.OrderLine, events.ReleasedStock)


_DAY_SECONDS = 86_400
_FIRST_DAY = date(1970, 1, 1).toordinal()


@functools.lru_cache(maxsize=16_384)
def key_of(name: str) -> uuid.UUID:
    """Remembered: the rows of a day, of all that is sold on it, change again and again."""
    return uuid.uuid5(_NAMESPACE, name)


def rows_of_placed(event: events.OrderPlaced) -> list[str]:
    return _names(event.placed_at, event.total.currency_code, event.lines)


def rows_of_cancelled(event: events.OrderCancelled) -> list[str]:
    if not event.HasField("placed_at"):
        raise ValueError(
            "it does not say when the order was placed: a command server of an earlier version stored it after the"
            " write database was migrated"
        )
    return _names(event.placed_at, event.total.currency_code, event.released)


def blank(name: str) -> SalesSummaryRow:
    day, currency, product = name.split("/")
    return SalesSummaryRow(day=day, currency_code=currency, product_id=product)


def placed(view: SalesSummaryRow | None, event: events.OrderPlaced) -> SalesSummaryRow:
    changed: SalesSummaryRow = present(view, event)
    product_id = changed.product_id
    lines = _lines(product_id, event.lines)
    _count(changed.sold, 1, lines, None if product_id else event.shipping_fee)
    if product_id and not _is_older(event.placed_at, changed):
        changed.product_name = lines[-1].product_name
        changed.named_at.CopyFrom(event.placed_at)
    return changed


def cancelled(view: SalesSummaryRow | None, event: events.OrderCancelled) -> SalesSummaryRow:
    changed: SalesSummaryRow = present(view, event)
    product_id = changed.product_id
    lines = _lines(product_id, event.released)
    shipping_fee = None if product_id else event.shipping_fee
    _count(changed.sold, -1, lines, shipping_fee)
    _count(changed.cancelled, 1, lines, shipping_fee)
    return changed


def columns(view: SalesSummaryRow, _position: int, before: Columns | None) -> Columns:
    """Day, currency, product or None; then what the orders that stand come to, and what the cancelled ones do."""
    sold, gone = view.sold, view.cancelled
    return (
        *(before[:3] if before else _identity(view)),
        sold.order_count,
        sold.unit_count,
        sold.revenue,
        sold.shipping_fees,
        gone.order_count,
        gone.unit_count,
        gone.revenue,
        gone.shipping_fees,
    )


def _identity(view: SalesSummaryRow) -> Columns:
    """What never changes of a row."""
    return date.fromisoformat(view.day), view.currency_code, uuid.UUID(view.product_id) if view.product_id else None


def _names(placed_at: Timestamp, currency: str, lines: Iterable[Line]) -> list[str]:
    """Of the rows that an order is counted in: all products', and each product's."""
    # In UTC: the seconds count from the beginning of a day, without leap seconds, and down from there before 1970.
    everything = f"{date.fromordinal(_FIRST_DAY + placed_at.seconds // _DAY_SECONDS).isoformat()}/{currency}/"
    return [everything, *[everything + line.product_id for line in lines]]


def _lines(product_id: str, lines: Sequence[LineT]) -> Sequence[LineT]:
    """Those that count in a product's row: all of them in the row of all products, whose product id is empty."""
    return [line for line in lines if line.product_id == product_id] if product_id else lines


def _count(sums: SalesSums, sign: int, lines: Iterable[Line], shipping_fee: Money | None) -> None:
    """Adds an order (sign 1) to one of a row's sums, or takes it off (-1). lines: those that count in the row.

    shipping_fee: None in a product's row.
    """
    units = revenue = 0
    for line in lines:
        units += line.quantity
        revenue += line.line_total.minor_units
    sums.order_count += sign
    sums.unit_count += sign * units
    sums.revenue += sign * revenue
    if shipping_fee is not None:
        sums.shipping_fees += sign * shipping_fee.minor_units


def _is_older(at: Timestamp, view: SalesSummaryRow) -> bool:
    """Whether the row's name is of a later order than one at `at`: orders need not be placed in the order of time."""
    named_at = view.named_at
    return view.HasField("named_at") and (at.seconds, at.nanos) < (named_at.seconds, named_at.nanos)


PROJECTION = Projection(
    view="sales_summary",
    message=SalesSummaryRow,
    key_field="",
    rules={"order_placed": placed, "order_cancelled": cancelled},
    keys={"order_placed": rows_of_placed, "order_cancelled": rows_of_cancelled},
    columns=columns,
    key_of=key_of,
    blank={"order_placed": blank},
    logged=False,
)
