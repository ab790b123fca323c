"""A view may have another generation, in a table of its own, and whether it was ever filled is known."""

from alembic import op

revision = "0012"
down_revision = "0011"

S = "tandem_read"
OTHER = "tandem_read_other"
# A table is here for a moment, while two are exchanged. It is empty whenever somebody looks.
PASSAGE = "tandem_read_passage"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("SET LOCAL statement_timeout = '60s'")
    op.execute(f"CREATE SCHEMA IF NOT EXISTS {OTHER}")
    op.execute(f"CREATE SCHEMA IF NOT EXISTS {PASSAGE}")
    op.execute(f"""
        CREATE TABLE {S}.generation (
            view text PRIMARY KEY,
            state text NOT NULL,
            asked text,
            rate integer,
            requested_at timestamptz NOT NULL DEFAULT now(),
            began_at timestamptz,
            comparison jsonb,
            error text
        )""")
    op.execute(f"ALTER TABLE {S}.projection ADD COLUMN filled boolean NOT NULL DEFAULT true")


def downgrade() -> None:
    op.execute(f"DROP SCHEMA {OTHER} CASCADE")
    op.execute(f"DROP SCHEMA {PASSAGE}")
    op.execute(f"DELETE FROM {S}.projection WHERE view LIKE '%@other'")  # noqa: S608
    op.execute(f"ALTER TABLE {S}.projection DROP COLUMN filled")
    op.execute(f"DROP TABLE {S}.generation")
