"""A view knows which history it was made from, which time it was made, and why it cannot go on.

Of `projection` alone, which has a row for each view.
"""

from alembic import op

revision = "0009"
down_revision = "0008"

S = "tandem_read"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("SET LOCAL statement_timeout = '60s'")
    op.execute(f"""
        ALTER TABLE {S}.projection
        ADD COLUMN mark bigint NOT NULL DEFAULT 0,
        ADD COLUMN generation bigint NOT NULL DEFAULT 0,
        ADD COLUMN problem text,
        ADD COLUMN error text""")
    op.execute(f"UPDATE {S}.projection SET generation = 1 + floor(random() * 9e15)")  # noqa: S608


def downgrade() -> None:
    op.execute(f"""
        ALTER TABLE {S}.projection DROP COLUMN mark, DROP COLUMN generation, DROP COLUMN problem, DROP COLUMN error""")
