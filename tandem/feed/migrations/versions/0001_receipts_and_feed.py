"""Receipts and the feed."""

from alembic import op

revision = "0001"
down_revision = None

S = "tandem_write"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("SET LOCAL statement_timeout = '60s'")
    op.execute(f"""
        CREATE TABLE {S}.receipt (
            request_id uuid PRIMARY KEY,
            fingerprint bytea NOT NULL,
            subject_id uuid NOT NULL,
            position bigint NOT NULL,
            version bigint NOT NULL,
            created_at timestamptz NOT NULL DEFAULT now()
        )""")
    op.execute(f"CREATE INDEX receipt_created_at ON {S}.receipt (created_at)")
    op.execute(f"""
        CREATE TABLE {S}.feed_head (
            id smallint PRIMARY KEY CHECK (id = 1),
            epoch uuid NOT NULL,
            position bigint NOT NULL
        )""")
    # Every batch updates this row: room on its page lets each update stay there (HOT) and be pruned at once.
    op.execute(f"ALTER TABLE {S}.feed_head SET (fillfactor = 10)")
    op.execute(f"INSERT INTO {S}.feed_head VALUES (1, gen_random_uuid(), 0)")  # noqa: S608
    op.execute(f"""
        CREATE TABLE {S}.event (
            position bigint NOT NULL PRIMARY KEY,
            kind text NOT NULL,
            recorded_at timestamptz NOT NULL DEFAULT now(),
            payload bytea NOT NULL
        ) PARTITION BY RANGE (position)""")
    op.execute(f"CREATE TABLE {S}.event_0 PARTITION OF {S}.event FOR VALUES FROM (0) TO (10000000)")


def downgrade() -> None:
    op.execute(f"DROP TABLE {S}.event, {S}.feed_head, {S}.receipt")
