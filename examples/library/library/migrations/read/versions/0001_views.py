"""The views book_details and loan_summary."""

from alembic import op

revision = "0001"
down_revision = None

S = "tandem_read"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("SET LOCAL statement_timeout = '60s'")
    op.execute(f"""
        CREATE TABLE {S}.book_details (
            key uuid PRIMARY KEY,
            position bigint NOT NULL,
            value bytea NOT NULL
        )""")
    op.execute(f"""
        CREATE TABLE {S}.loan_summary (
            key uuid PRIMARY KEY,
            position bigint NOT NULL,
            member_id uuid NOT NULL,
            lent_at timestamptz NOT NULL,
            lent_position bigint NOT NULL,
            value bytea NOT NULL
        )""")
    op.execute(f"CREATE INDEX loan_summary_of_member ON {S}.loan_summary (member_id, lent_at DESC, lent_position DESC)")


def downgrade() -> None:
    op.execute(f"DROP TABLE {S}.loan_summary, {S}.book_details")
