"""SalesSummary: what was sold, summed by day, by currency and product.

An order counts on the day of its `placed_at`, in UTC, and its cancellation takes it off that same day. In each currency
a day has a row for all products together, and one for each product.
"""

import functools
import uuid
from collections.abc import Iterable
from datetime import date

from google.protobuf.timestamp_pb2 import Timestamp

from commerce.event.v1 import event_pb2 as events
from commerce.internal.v1.stored_pb2 import SalesSummaryRow, SalesSums
from commerce.type.v1.money_pb2 import Money
from projector.projections.shape import Columns, Projection, present

_NAMESPACE = uuid.UUID("b0a5d0c1-6c0e-4f5e-8a44-3f1f6b1f2d7e")

Line = events.OrderLine | events.ReleasedStock


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
    # All of them in the row of all products, whose product id is empty.
    lines = [line for line in event.lines if line.product_id == changed.product_id] or event.lines
    _count(changed, changed.sold, 1, lines, event.shipping_fee)
    if changed.product_id and not _is_older(event.placed_at, changed):
        changed.product_name = lines[-1].product_name
        changed.named_at.CopyFrom(event.placed_at)
    return changed


def cancelled(view: SalesSummaryRow | None, event: events.OrderCancelled) -> SalesSummaryRow:
    changed: SalesSummaryRow = present(view, event)
    lines = [line for line in event.released if line.product_id == changed.product_id] or event.released
    _count(changed, changed.sold, -1, lines, event.shipping_fee)
    _count(changed, changed.cancelled, 1, lines, event.shipping_fee)
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
    day = date.fromordinal(_FIRST_DAY + placed_at.seconds // _DAY_SECONDS).isoformat()
    return [f"{day}/{currency}/", *[f"{day}/{currency}/{line.product_id}" for line in lines]]


def _count(row: SalesSummaryRow, sums: SalesSums, sign: int, lines: Iterable[Line], shipping_fee: Money) -> None:
    """Adds an order (sign 1) to one of the row's sums, or takes it off (-1). lines: those that count in the row."""
    sums.order_count += sign
    sums.unit_count += sign * sum([line.quantity for line in lines])
    sums.revenue += sign * sum([line.line_total.minor_units for line in lines])
    if not row.product_id:
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
