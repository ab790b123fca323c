"""The views' positions and the change log."""

from alembic import op

revision = "0001"
down_revision = None

S = "tandem_read"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("SET LOCAL statement_timeout = '60s'")
    op.execute(f"""
        CREATE TABLE {S}.projection (
            view text PRIMARY KEY,
            feed_epoch uuid NOT NULL,
            position bigint NOT NULL,
            cache_epochs jsonb
        )""")
    # Every batch updates these few rows: room on their page lets each update stay there (HOT) and be pruned at once.
    op.execute(f"ALTER TABLE {S}.projection SET (fillfactor = 10)")
    op.execute(f"""
        CREATE TABLE {S}.change (
            position bigint NOT NULL,
            view text NOT NULL,
            key uuid NOT NULL,
            changed_at timestamptz NOT NULL DEFAULT now(),
            PRIMARY KEY (view, position, key)
        )""")
    op.execute(f"CREATE INDEX change_changed_at ON {S}.change (changed_at)")


def downgrade() -> None:
    op.execute(f"DROP TABLE {S}.change, {S}.projection")
