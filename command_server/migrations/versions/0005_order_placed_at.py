"""When an order was placed: in the write model, and in the order_cancelled events that did not say it yet.

A view that sums by day takes a cancelled order off the day on which it was placed, and looks nothing up. So the event
tells the day and the amounts, also where it was stored before there were fields for them.
"""

from collections.abc import Iterator
from datetime import UTC
from typing import Any

from alembic import op
from sqlalchemy import text

from commerce.event.v1.event_pb2 import Event

revision = "0005"
down_revision = "0004"

S = "tandem_write"
# Positions of the feed that are looked at together: what is in memory at a time, and one statement's work.
BATCH = 10_000


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("SET LOCAL statement_timeout = '60s'")
    # From here on nobody else places or cancels an order: this locks the table until the migration is committed.
    op.execute(f"ALTER TABLE {S}.customer_order ADD COLUMN placed_at timestamptz")
    for placed in _events("order_placed"):
        _fill_orders(placed)
    op.execute(f"ALTER TABLE {S}.customer_order ALTER COLUMN placed_at SET NOT NULL")
    for cancelled in _events("order_cancelled"):
        _complete(cancelled)


def _events(kind: str) -> Iterator[dict[int, Event]]:
    """The feed's events of a kind by position, a batch at a time."""
    connection = op.get_bind()
    head = connection.execute(text(f"SELECT position FROM {S}.feed_head")).scalar_one()  # noqa: S608
    query = text(
        f"SELECT position, payload FROM {S}.event"  # noqa: S608
        " WHERE position > :after AND position <= :until AND kind = :kind ORDER BY position"
    )
    for after in range(0, head, BATCH):
        rows = connection.execute(query, {"after": after, "until": after + BATCH, "kind": kind})
        events = {row.position: Event.FromString(row.payload) for row in rows}
        if events:
            yield events


def _fill_orders(events: dict[int, Event]) -> None:
    placed = [event.order_placed for event in events.values()]
    op.get_bind().execute(
        text(f"""
            UPDATE {S}.customer_order AS o SET placed_at = v.placed_at
            FROM unnest(CAST(:ids AS uuid[]), CAST(:moments AS timestamptz[])) AS v (id, placed_at)
            WHERE o.id = v.id"""),  # noqa: S608
        {"ids": [it.order_id for it in placed], "moments": [it.placed_at.ToDatetime(tzinfo=UTC) for it in placed]},
    )


def _complete(events: dict[int, Event]) -> None:
    orders = _orders([event.order_cancelled.order_id for event in events.values()])
    changed = {}
    for position, event in events.items():
        it = event.order_cancelled
        if it.HasField("placed_at"):
            continue
        order = orders[it.order_id]
        it.placed_at.FromDatetime(order.placed_at)
        it.total.minor_units, it.total.currency_code = order.total, order.currency
        it.shipping_fee.minor_units = order.total - sum(order.line_totals)
        it.shipping_fee.currency_code = order.currency
        for released, line_total in zip(it.released, order.line_totals, strict=True):
            released.line_total.minor_units, released.line_total.currency_code = line_total, order.currency
        changed[position] = event.SerializeToString(deterministic=True)
    op.get_bind().execute(
        text(f"""
            UPDATE {S}.event AS e SET payload = v.payload
            FROM unnest(CAST(:positions AS bigint[]), CAST(:payloads AS bytea[])) AS v (position, payload)
            WHERE e.position = v.position"""),  # noqa: S608
        {"positions": list(changed), "payloads": list(changed.values())},
    )


def _orders(ids: list[str]) -> dict[str, Any]:
    """By id; with the totals of the lines in their order, which is the order of what a cancellation gives back."""
    rows = op.get_bind().execute(
        text(f"""
            SELECT CAST(o.id AS text) AS id, o.placed_at, o.currency, o.total,
                array_agg(l.line_total ORDER BY l.line_number) AS line_totals
            FROM {S}.customer_order AS o JOIN {S}.order_line AS l ON l.order_id = o.id
            WHERE o.id = ANY(CAST(:ids AS uuid[])) GROUP BY o.id"""),  # noqa: S608
        {"ids": ids},
    )
    return {row.id: row for row in rows}


def downgrade() -> None:
    # The events keep their new fields: the version before passes over them.
    op.execute(f"ALTER TABLE {S}.customer_order DROP COLUMN placed_at")
