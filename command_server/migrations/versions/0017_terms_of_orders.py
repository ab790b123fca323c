"""Products whose stock nobody counts, or of which nothing is shipped; what few orders have beside their total."""

from alembic import op

revision = "0017"
down_revision = "0016"

S = "tandem_write"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("SET LOCAL statement_timeout = '60s'")
    # With defaults, so that no row is written and the version before goes on.
    op.execute(f"ALTER TABLE {S}.product ADD COLUMN unlimited_stock boolean NOT NULL DEFAULT false")
    op.execute(f"ALTER TABLE {S}.product ADD COLUMN not_shipped boolean NOT NULL DEFAULT false")
    op.execute(f"ALTER TABLE {S}.customer_order ADD COLUMN terms bytea NOT NULL DEFAULT ''")
    op.execute(f"COMMENT ON COLUMN {S}.customer_order.terms IS 'commerce.internal.v1.StoredTerms'")


def downgrade() -> None:
    op.execute(f"ALTER TABLE {S}.customer_order DROP COLUMN terms")
    op.execute(f"ALTER TABLE {S}.product DROP COLUMN not_shipped")
    op.execute(f"ALTER TABLE {S}.product DROP COLUMN unlimited_stock")
