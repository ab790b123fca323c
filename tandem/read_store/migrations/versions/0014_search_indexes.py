"""Where a search engine's index is: a row of `projection`, with the index's name and what is parked of what it has."""

from alembic import op

revision = "0014"
down_revision = "0013"

S = "tandem_read"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("SET LOCAL statement_timeout = '60s'")
    op.execute(f"ALTER TABLE {S}.projection ADD COLUMN index_name text, ADD COLUMN parked_since bigint")


def downgrade() -> None:
    op.execute(f"ALTER TABLE {S}.projection DROP COLUMN index_name, DROP COLUMN parked_since")
