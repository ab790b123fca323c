"""A receipt may be a refusal.

A column comes that is NULL in the receipts that are there, so it takes no longer for many. A command server of the
version before goes on beside one of this version; it keeps no refusals yet.
"""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

S = "tandem_write"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("SET LOCAL statement_timeout = '60s'")
    op.execute(f"ALTER TABLE {S}.receipt ADD COLUMN refusal bytea")
    op.execute(f"COMMENT ON COLUMN {S}.receipt.refusal IS 'google.rpc.Status'")


def downgrade() -> None:
    op.execute(f"DELETE FROM {S}.receipt WHERE refusal IS NOT NULL")  # noqa: S608
    op.execute(f"ALTER TABLE {S}.receipt DROP COLUMN refusal")
