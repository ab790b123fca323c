"""Commands that are done in steps: those that have steps left."""

from alembic import op

revision = "0010"
down_revision = "0008"

S = "tandem_write"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("SET LOCAL statement_timeout = '60s'")
    op.execute(f"""
        CREATE TABLE IF NOT EXISTS {S}.unfinished (
            request_id uuid PRIMARY KEY,
            request_type text NOT NULL,
            request bytea NOT NULL,
            envelope bytea NOT NULL,
            stepped_at timestamptz NOT NULL DEFAULT now()
        )""")
    op.execute(f"COMMENT ON COLUMN {S}.unfinished.envelope IS 'tandem.internal.v1.Envelope'")


def downgrade() -> None:
    op.execute(f"DROP TABLE {S}.unfinished")
