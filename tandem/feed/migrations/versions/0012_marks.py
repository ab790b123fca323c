"""Each event has a mark that only its history has, and the feed knows the epochs that it had.

Columns come that are NULL in the rows that are there, so it takes no longer for a long feed. A command server of the
version before goes on beside one of this version; its events have no mark.
"""

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

S = "tandem_write"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("SET LOCAL statement_timeout = '60s'")
    op.execute(f"ALTER TABLE {S}.event ADD COLUMN mark bigint")
    op.execute(f"ALTER TABLE {S}.receipt ADD COLUMN mark bigint")
    op.execute(f"""
        CREATE TABLE {S}.ended_epoch (
            epoch uuid PRIMARY KEY,
            ended_at timestamptz NOT NULL DEFAULT now()
        )""")


def downgrade() -> None:
    op.execute(f"DROP TABLE {S}.ended_epoch")
    op.execute(f"ALTER TABLE {S}.receipt DROP COLUMN mark")
    op.execute(f"ALTER TABLE {S}.event DROP COLUMN mark")
