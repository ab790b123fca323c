"""The files of the feed's archive. Who may read the feed may read which files there are."""

from alembic import op

from tandem.runtime.backfill import grant_alike

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

S = "tandem_write"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("SET LOCAL statement_timeout = '60s'")
    op.execute(f"""
        CREATE TABLE {S}.archive_file (
            first bigint PRIMARY KEY,
            last bigint NOT NULL,
            name text NOT NULL,
            sha256 bytea NOT NULL,
            size bigint NOT NULL,
            archived_at timestamptz NOT NULL DEFAULT now()
        )""")
    grant_alike(f"{S}.event", f"{S}.archive_file", {"SELECT": "SELECT"})


def downgrade() -> None:
    op.execute(f"DROP TABLE {S}.archive_file")
