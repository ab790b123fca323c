"""The feed can say that acknowledged events are not in it any more. A column comes that is NULL in the one row."""

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

S = "tandem_write"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("SET LOCAL statement_timeout = '60s'")
    op.execute(f"ALTER TABLE {S}.feed_head ADD COLUMN lost_position bigint")


def downgrade() -> None:
    op.execute(f"ALTER TABLE {S}.feed_head DROP COLUMN lost_position")
