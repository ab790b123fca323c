"""The views. The engine's migrations make what the engine has: their positions, the change log."""

from alembic import op

revision = "0001"
down_revision = None

S = "tandem_read"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("SET LOCAL statement_timeout = '60s'")
    for view in ("order_details", "product_card", "customer_profile"):
        op.execute(f"""
            CREATE TABLE {S}.{view} (
                key uuid PRIMARY KEY,
                position bigint NOT NULL,
                value bytea NOT NULL
            )""")
    op.execute(f"""
        CREATE TABLE {S}.order_summary (
            key uuid PRIMARY KEY,
            position bigint NOT NULL,
            customer_id uuid NOT NULL,
            placed_at timestamptz NOT NULL,
            placed_position bigint NOT NULL,
            value bytea NOT NULL
        )""")
    op.execute(f"""
        CREATE INDEX order_summary_recent
        ON {S}.order_summary (customer_id, placed_at DESC, placed_position DESC)""")


def downgrade() -> None:
    for table in ("order_summary", "customer_profile", "product_card", "order_details"):
        op.execute(f"DROP TABLE {S}.{table}")
