"""When an order was placed, in the write model: its cancellation says the day again.

The orders that are there get it from their events, in steps. Command servers of the version before go on until the last
step; from then on they cannot place orders. Replace them then.
"""

from datetime import UTC

from alembic import op
from sqlalchemy import Connection, text

from commerce.event.v1.event_pb2 import Event
from tandem.runtime.backfill import backfill, finish, validate_constraint

revision = "0005"
down_revision = "0004"

S = "tandem_write"
# Positions of the feed that are looked at in a step: at most so many orders are locked together.
BATCH = 2_000


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("SET LOCAL statement_timeout = '60s'")
    op.execute(f"ALTER TABLE {S}.customer_order ADD COLUMN IF NOT EXISTS placed_at timestamptz")
    # It is there when a run before this one failed on its last steps.
    op.execute(f"ALTER TABLE {S}.customer_order DROP CONSTRAINT IF EXISTS placed_at_known")
    backfill("0005 placed_at", fill_orders)
    # Whoever is about to place an order has to wait until the few of the last moment are filled in.
    op.execute(f"LOCK TABLE {S}.customer_order IN ACCESS EXCLUSIVE MODE")
    finish("0005 placed_at", fill_orders)
    # Where a valid check says the same, SET NOT NULL need not read the table under its lock.
    op.execute(f"""
        ALTER TABLE {S}.customer_order
        ADD CONSTRAINT placed_at_known CHECK (placed_at IS NOT NULL) NOT VALID""")
    validate_constraint(f"{S}.customer_order", "placed_at_known")
    op.execute(f"ALTER TABLE {S}.customer_order ALTER COLUMN placed_at SET NOT NULL")
    op.execute(f"ALTER TABLE {S}.customer_order DROP CONSTRAINT placed_at_known")


def fill_orders(connection: Connection, after: str) -> str | None:
    """The orders that were placed at the next positions of the feed."""
    head: int = connection.execute(text(f"SELECT position FROM {S}.feed_head")).scalar_one()  # noqa: S608
    first = int(after or 0)
    if first >= head:
        return None
    until = min(first + BATCH, head)
    payloads = connection.execute(
        text(f"""
            SELECT payload FROM {S}.event
            WHERE position > :after AND position <= :until AND kind = 'order_placed'"""),  # noqa: S608
        {"after": first, "until": until},
    ).scalars()
    placed = [Event.FromString(it).order_placed for it in payloads]
    connection.execute(
        text(f"""
            UPDATE {S}.customer_order AS o SET placed_at = v.placed_at
            FROM unnest(CAST(:ids AS uuid[]), CAST(:moments AS timestamptz[])) AS v (id, placed_at)
            WHERE o.id = v.id"""),  # noqa: S608
        {"ids": [it.order_id for it in placed], "moments": [it.placed_at.ToDatetime(tzinfo=UTC) for it in placed]},
    )
    return str(until)


def downgrade() -> None:
    op.execute(f"ALTER TABLE {S}.customer_order DROP COLUMN placed_at")
