"""Events have versions, and what an event of an older version does not say stands beside it.

A command server of the version before goes on beside one of this version.
"""

from alembic import op

revision = "0008"
down_revision = "0007"

S = "tandem_write"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("SET LOCAL statement_timeout = '60s'")
    op.execute(f"ALTER TABLE {S}.event ADD COLUMN IF NOT EXISTS version smallint NOT NULL DEFAULT 1")
    op.execute(f"""
        CREATE TABLE IF NOT EXISTS {S}.event_supplement (
            position bigint PRIMARY KEY,
            payload bytea NOT NULL
        )""")


def downgrade() -> None:
    op.execute(f"DROP TABLE {S}.event_supplement")
    op.execute(f"ALTER TABLE {S}.event DROP COLUMN version")
