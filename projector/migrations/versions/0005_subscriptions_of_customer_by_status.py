"""An index for a customer's subscriptions in some statuses."""

from alembic import op

revision = "0005"
down_revision = "0004"

S = "tandem_read"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("SET LOCAL statement_timeout = '60s'")
    op.execute(f"""
        CREATE INDEX subscription_details_by_customer_id_status
        ON {S}.subscription_details (customer_id, status, started_at DESC, started_position DESC)""")


def downgrade() -> None:
    op.execute(f"DROP INDEX {S}.subscription_details_by_customer_id_status")
