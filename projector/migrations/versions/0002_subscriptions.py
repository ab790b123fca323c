"""Subscriptions."""

from alembic import op

revision = "0002"
down_revision = "0001"

S = "tandem_read"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("SET LOCAL statement_timeout = '60s'")
    op.execute(f"""
        CREATE TABLE {S}.subscription_details (
            key uuid PRIMARY KEY,
            position bigint NOT NULL,
            customer_id uuid NOT NULL,
            status smallint NOT NULL,
            started_at timestamptz NOT NULL,
            started_position bigint NOT NULL,
            value bytea NOT NULL
        )""")
    for column in ("customer_id", "status"):
        op.execute(f"""
            CREATE INDEX subscription_details_by_{column}
            ON {S}.subscription_details ({column}, started_at DESC, started_position DESC)""")


def downgrade() -> None:
    op.execute(f"DROP TABLE {S}.subscription_details")
