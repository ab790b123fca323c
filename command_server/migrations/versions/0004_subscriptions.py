"""Subscriptions."""

from alembic import op

revision = "0004"
down_revision = "0003"

S = "tandem_write"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("SET LOCAL statement_timeout = '60s'")
    op.execute(f"""
        CREATE TABLE {S}.subscription (
            id uuid PRIMARY KEY,
            version bigint NOT NULL,
            customer_id uuid NOT NULL REFERENCES {S}.customer (id),
            status smallint NOT NULL,
            plan text NOT NULL,
            price bigint NOT NULL,
            currency text NOT NULL,
            period_months integer NOT NULL CHECK (period_months > 0),
            started_at timestamptz NOT NULL,
            period_start timestamptz NOT NULL,
            period_end timestamptz NOT NULL,
            cancellation_reason text NOT NULL
        )""")
    op.execute(f"COMMENT ON COLUMN {S}.subscription.status IS 'commerce.type.v1.SubscriptionStatus'")
    op.execute(f"COMMENT ON COLUMN {S}.subscription.price IS 'minor units'")
    op.execute(f"CREATE INDEX subscription_due ON {S}.subscription (status, period_end) WHERE status IN (1, 2)")


def downgrade() -> None:
    op.execute(f"DROP TABLE {S}.subscription")
