"""SalesSummary: what was sold, summed by day and month, by currency and product.

An order counts on the day of its `placed_at`, in UTC, and its cancellation takes it off that same day. A day has a row
for all products together and one for each product; a month has one for each product, so that a long range need not add
up every day of it.
"""

import functools
import uuid
from collections.abc import Iterable
from datetime import UTC, date

from google.protobuf.timestamp_pb2 import Timestamp

from commerce.event.v1 import event_pb2 as events
from commerce.internal.v1.stored_pb2 import SalesSummaryRow, SalesSums
from projector.projections.shape import Columns, Projection, present

_NAMESPACE = uuid.UUID("b0a5d0c1-6c0e-4f5e-8a44-3f1f6b1f2d7e")

Line = events.OrderLine | events.ReleasedStock


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
    period, currency, product = name.split("/")
    return SalesSummaryRow(period=period, currency_code=currency, product_id=product)


def placed(view: SalesSummaryRow | None, event: events.OrderPlaced) -> SalesSummaryRow:
    changed: SalesSummaryRow = present(view, event)
    for line in event.lines:
        if line.product_id == changed.product_id and not _is_older(event.placed_at, changed):
            changed.product_name = line.product_name
            changed.named_at.CopyFrom(event.placed_at)
    _count(changed.sold, 1, _share(changed, event.lines, event.shipping_fee.minor_units))
    return changed


def cancelled(view: SalesSummaryRow | None, event: events.OrderCancelled) -> SalesSummaryRow:
    changed: SalesSummaryRow = present(view, event)
    share = _share(changed, event.released, event.shipping_fee.minor_units)
    _count(changed.sold, -1, share)
    _count(changed.cancelled, 1, share)
    return changed


def columns(view: SalesSummaryRow, _position: int, _before: Columns | None) -> Columns:
    monthly = len(view.period) == len("2026-01")
    return (
        date.fromisoformat(f"{view.period}-01" if monthly else view.period),
        monthly,
        view.currency_code,
        uuid.UUID(view.product_id) if view.product_id else None,
        view.named_at.ToDatetime(tzinfo=UTC) if view.HasField("named_at") else None,
        *_figures(view.sold),
        *_figures(view.cancelled),
    )


def _names(placed_at: Timestamp, currency: str, lines: Iterable[Line]) -> list[str]:
    """Of the rows that an order is counted in."""
    day = placed_at.ToDatetime(tzinfo=UTC).date().isoformat()
    products = [f"{period}/{currency}/{line.product_id}" for line in lines for period in (day, day[:7])]
    return [f"{day}/{currency}/", *products]


def _share(view: SalesSummaryRow, lines: Iterable[Line], shipping_fee: int) -> SalesSums:
    """What an order brings to the row: all of it, or its lines of the row's product."""
    own = [line for line in lines if not view.product_id or line.product_id == view.product_id]
    return SalesSums(
        unit_count=sum(line.quantity for line in own),
        revenue=sum(line.line_total.minor_units for line in own),
        shipping_fees=0 if view.product_id else shipping_fee,
    )


def _count(sums: SalesSums, orders: int, share: SalesSums) -> None:
    """Adds an order's share (orders: 1), or takes it off (-1)."""
    sums.order_count += orders
    sums.unit_count += orders * share.unit_count
    sums.revenue += orders * share.revenue
    sums.shipping_fees += orders * share.shipping_fees


def _figures(sums: SalesSums) -> tuple[int, int, int, int]:
    return sums.order_count, sums.unit_count, sums.revenue, sums.shipping_fees


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
