"""Where the erasure of a customer stands, which is done in steps.

A customer's orders are found some at a time, by an index of customer and order in place of one of the customer alone.
It is made while orders are placed.
"""

from alembic import op

from tandem.runtime.backfill import create_index

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

S = "tandem_write"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("SET LOCAL statement_timeout = '60s'")
    op.execute(f"ALTER TABLE {S}.customer ADD COLUMN IF NOT EXISTS unerased_from uuid")
    create_index("customer_order_of_customer", f"{S}.customer_order (customer_id, id)")
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute(f"DROP INDEX IF EXISTS {S}.ix_tandem_write_customer_order_customer_id")


def downgrade() -> None:
    op.execute(f"CREATE INDEX ix_tandem_write_customer_order_customer_id ON {S}.customer_order (customer_id)")
    op.execute(f"DROP INDEX {S}.customer_order_of_customer")
    op.execute(f"ALTER TABLE {S}.customer DROP COLUMN unerased_from")
