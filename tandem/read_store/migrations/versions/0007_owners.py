"""Who writes a view: its owner, and the sessions of projectors that there are."""

from alembic import op

revision = "0007"
down_revision = "0006"

S = "tandem_read"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("SET LOCAL statement_timeout = '60s'")
    op.execute(f"ALTER TABLE {S}.projection ADD COLUMN owner uuid")
    op.execute(f"""
        CREATE TABLE {S}.projector (
            session uuid PRIMARY KEY,
            lock integer NOT NULL,
            renewed_at timestamptz NOT NULL,
            follows boolean NOT NULL
        )""")


def downgrade() -> None:
    op.execute(f"DROP TABLE {S}.projector")
    op.execute(f"ALTER TABLE {S}.projection DROP COLUMN owner")
