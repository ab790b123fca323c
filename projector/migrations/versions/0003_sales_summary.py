"""The view sales_summary. It begins at the feed's first position when a projector takes it."""

from alembic import op

revision = "0003"
down_revision = "0002"

S = "tandem_read"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("SET LOCAL statement_timeout = '60s'")
    op.execute(f"""
        CREATE TABLE {S}.sales_summary (
            key uuid PRIMARY KEY,
            position bigint NOT NULL,
            day date NOT NULL,
            currency_code text NOT NULL,
            product_id uuid,
            order_count bigint NOT NULL,
            unit_count bigint NOT NULL,
            revenue bigint NOT NULL,
            shipping_fees bigint NOT NULL,
            cancelled_order_count bigint NOT NULL,
            cancelled_unit_count bigint NOT NULL,
            cancelled_revenue bigint NOT NULL,
            cancelled_shipping_fees bigint NOT NULL,
            value bytea NOT NULL
        )""")
    # Every batch updates today's rows: room on their pages lets each update stay there (HOT) and be pruned at once.
    op.execute(f"ALTER TABLE {S}.sales_summary SET (fillfactor = 70)")
    op.execute(f"""
        CREATE INDEX sales_summary_total
        ON {S}.sales_summary (day, currency_code) WHERE product_id IS NULL""")
    op.execute(f"""
        CREATE INDEX sales_summary_product
        ON {S}.sales_summary (day, currency_code, product_id) WHERE product_id IS NOT NULL""")


def downgrade() -> None:
    op.execute(f"DROP TABLE {S}.sales_summary")
    op.execute(f"DELETE FROM {S}.projection WHERE view = 'sales_summary'")  # noqa: S608
