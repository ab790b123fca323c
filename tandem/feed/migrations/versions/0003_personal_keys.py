"""A key for each person whose data is in events, and whose each event is."""

from alembic import op

revision = "0003"
down_revision = "0001"

S = "tandem_write"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("SET LOCAL statement_timeout = '60s'")
    op.execute(f"CREATE TABLE IF NOT EXISTS {S}.personal_key (customer_id uuid PRIMARY KEY, key bytea)")
    op.execute(f"ALTER TABLE {S}.event ADD COLUMN IF NOT EXISTS customer_id uuid")


def downgrade() -> None:
    op.execute(f"ALTER TABLE {S}.event DROP COLUMN customer_id")
    op.execute(f"DROP TABLE {S}.personal_key")
