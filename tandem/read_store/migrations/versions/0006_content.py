"""projection.content: a name for what a view's rows say, where the domain keeps one."""

from alembic import op

revision = "0006"
down_revision = "0001"

S = "tandem_read"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("SET LOCAL statement_timeout = '60s'")
    op.execute(f"ALTER TABLE {S}.projection ADD COLUMN content uuid")


def downgrade() -> None:
    op.execute(f"ALTER TABLE {S}.projection DROP COLUMN content")
