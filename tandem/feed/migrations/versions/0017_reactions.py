"""Reactions: how far each has followed the feed, and what is to be done. Two tables come.

Who stores events, a command server, may read them from here on: it follows its own feed.
"""

from alembic import op

from tandem.runtime.backfill import grant_alike

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

S = "tandem_write"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("SET LOCAL statement_timeout = '60s'")
    op.execute(f"""
        CREATE TABLE {S}.reaction (
            name text PRIMARY KEY,
            version integer NOT NULL,
            position bigint NOT NULL,
            begun_after bigint NOT NULL,
            secret uuid NOT NULL DEFAULT gen_random_uuid(),
            begun_at timestamptz NOT NULL DEFAULT now()
        )""")
    op.execute(f"""
        CREATE TABLE {S}.reaction_task (
            reaction text NOT NULL,
            position bigint NOT NULL,
            number integer NOT NULL,
            key uuid NOT NULL,
            kind text NOT NULL,
            type text NOT NULL,
            payload bytea NOT NULL,
            request_id uuid NOT NULL,
            causation_id text NOT NULL,
            correlation_id text NOT NULL,
            at timestamptz NOT NULL,
            first_at timestamptz NOT NULL,
            attempts integer NOT NULL DEFAULT 0,
            error text NOT NULL DEFAULT '',
            outcome text NOT NULL DEFAULT '',
            parked_at timestamptz,
            done_at timestamptz,
            created_at timestamptz NOT NULL DEFAULT now(),
            PRIMARY KEY (reaction, position, number)
        )""")
    waits, parked = "done_at IS NULL AND parked_at IS NULL", "done_at IS NULL AND parked_at IS NOT NULL"
    op.execute(f"CREATE INDEX reaction_task_due ON {S}.reaction_task (reaction, kind, at) WHERE {waits}")
    op.execute(f"""
        CREATE INDEX reaction_task_tried ON {S}.reaction_task (reaction, kind, first_at)
        WHERE {waits} AND attempts > 0""")
    op.execute(f"CREATE INDEX reaction_task_parked ON {S}.reaction_task (reaction, position) WHERE {parked}")
    op.execute(f"CREATE INDEX reaction_task_open ON {S}.reaction_task (reaction, key) WHERE done_at IS NULL")
    op.execute(f"CREATE INDEX reaction_task_done ON {S}.reaction_task (done_at) WHERE done_at IS NOT NULL")
    for right in ("SELECT", "INSERT", "UPDATE", "DELETE"):
        for table in ("reaction", "reaction_task"):
            grant_alike(f"{S}.receipt", f"{S}.{table}", {right: right})
    for table in ("event", "event_supplement", "archive_file"):
        grant_alike(f"{S}.event", f"{S}.{table}", {"INSERT": "SELECT"})


def downgrade() -> None:
    op.execute(f"DROP TABLE {S}.reaction_task, {S}.reaction")
