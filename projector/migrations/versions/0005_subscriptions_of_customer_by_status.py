"""An index for a customer's subscriptions in some statuses."""

from alembic import op

from tandem.runtime.backfill import create_index

revision = "0005"
down_revision = "0004"

S = "tandem_read"


def upgrade() -> None:
    create_index(
        "subscription_details_by_customer_id_status",
        f"{S}.subscription_details (customer_id, status, started_at DESC, started_position DESC)",
    )


def downgrade() -> None:
    op.execute(f"DROP INDEX {S}.subscription_details_by_customer_id_status")
