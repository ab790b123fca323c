"""What cancellations of an older version do not say stands beside them.

Cancellations of orders that do not say when the order was placed, and what it took off, get that here, in steps; the
events stay as they are. A command server of the version before goes on beside one of this version.
"""

from typing import Any

from alembic import op
from sqlalchemy import Connection, text

from commerce.event.v1.event_pb2 import Event, OrderCancelled
from tandem.runtime.backfill import backfill

revision = "0008"
down_revision = "0005"

S = "tandem_write"
# Positions of the feed that are looked at in a step.
BATCH = 5_000


def upgrade() -> None:
    backfill("0008 cancellations", complete_cancellations)


def complete_cancellations(connection: Connection, after: str) -> str | None:
    """What the orders that were cancelled at the next positions of the feed had cost, and when they were placed."""
    head: int = connection.execute(text(f"SELECT position FROM {S}.feed_head")).scalar_one()  # noqa: S608
    first = int(after or 0)
    if first >= head:
        return None
    until = min(first + BATCH, head)
    rows = connection.execute(
        text(f"""
            SELECT position, payload FROM {S}.event
            WHERE position > :after AND position <= :until AND kind = 'order_cancelled' AND version = 1"""),  # noqa: S608
        {"after": first, "until": until},
    )
    cancelled = {row.position: Event.FromString(row.payload).order_cancelled for row in rows}
    incomplete = {position: it for position, it in cancelled.items() if not it.HasField("placed_at")}
    orders = orders_by_id(connection, [it.order_id for it in incomplete.values()])
    for it in incomplete.values():
        complete(it, orders[it.order_id])
    connection.execute(
        text(f"""
            INSERT INTO {S}.event_supplement
            SELECT * FROM unnest(CAST(:positions AS bigint[]), CAST(:payloads AS bytea[]))
            ON CONFLICT DO NOTHING"""),  # noqa: S608
        {
            "positions": list(incomplete),
            "payloads": [it.SerializeToString(deterministic=True) for it in incomplete.values()],
        },
    )
    return str(until)


def orders_by_id(connection: Connection, ids: list[str]) -> dict[str, Any]:
    """With the totals of the lines in their order, which is the order of what a cancellation gives back."""
    rows = connection.execute(
        text(f"""
            SELECT CAST(o.id AS text) AS id, o.placed_at, o.currency, o.total,
                array_agg(l.line_total ORDER BY l.line_number) AS line_totals
            FROM {S}.customer_order AS o JOIN {S}.order_line AS l ON l.order_id = o.id
            WHERE o.id = ANY(CAST(:ids AS uuid[])) GROUP BY o.id"""),  # noqa: S608
        {"ids": ids},
    )
    return {row.id: row for row in rows}


def complete(cancelled: OrderCancelled, order: Any) -> None:
    cancelled.placed_at.FromDatetime(order.placed_at)
    cancelled.total.minor_units, cancelled.total.currency_code = order.total, order.currency
    cancelled.shipping_fee.minor_units = order.total - sum(order.line_totals)
    cancelled.shipping_fee.currency_code = order.currency
    for released, line_total in zip(cancelled.released, order.line_totals, strict=True):
        released.line_total.minor_units, released.line_total.currency_code = line_total, order.currency


def downgrade() -> None:
    op.execute(f"DELETE FROM {S}.event_supplement")  # noqa: S608
