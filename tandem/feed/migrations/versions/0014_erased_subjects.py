"""Erased data subjects are found by an index, for the ledger. It is made while commands are stored."""

from alembic import op

from tandem.runtime.backfill import create_index

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

S = "tandem_write"


def upgrade() -> None:
    create_index("subject_key_erased", f"{S}.subject_key (subject_id) WHERE key IS NULL")


def downgrade() -> None:
    op.execute(f"DROP INDEX {S}.subject_key_erased")
