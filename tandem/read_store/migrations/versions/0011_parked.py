"""Keys that are parked, and what operators ask for and did: ADR 38."""

from alembic import op

revision = "0011"
down_revision = "0009"

S = "tandem_read"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("SET LOCAL statement_timeout = '60s'")
    op.execute(f"ALTER TABLE {S}.projection ADD COLUMN parked integer NOT NULL DEFAULT 0")
    op.execute(f"""
        CREATE TABLE {S}.parked (
            view text NOT NULL,
            key uuid NOT NULL,
            position bigint NOT NULL,
            kind text NOT NULL,
            error text,
            scope text,
            parked_at timestamptz NOT NULL DEFAULT now(),
            PRIMARY KEY (view, key, position)
        )""")
    op.execute(f"CREATE INDEX parked_first ON {S}.parked (view, position) WHERE error IS NOT NULL")
    op.execute(f"""
        CREATE TABLE {S}.operation (
            id uuid PRIMARY KEY,
            view text NOT NULL,
            action text NOT NULL,
            key uuid,
            actor text NOT NULL,
            reason text NOT NULL,
            asked_at timestamptz NOT NULL DEFAULT now(),
            done_at timestamptz,
            outcome jsonb NOT NULL DEFAULT '{{}}'
        )""")
    op.execute(f"CREATE INDEX operation_asked ON {S}.operation (view, asked_at) WHERE done_at IS NULL")


def downgrade() -> None:
    op.execute(f"DROP TABLE {S}.operation")
    op.execute(f"DROP TABLE {S}.parked")
    op.execute(f"ALTER TABLE {S}.projection DROP COLUMN parked")
