"""Members and books."""

from alembic import op

revision = "0001"
down_revision = None

S = "tandem_write"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("SET LOCAL statement_timeout = '60s'")
    op.execute(f"""
        CREATE TABLE {S}.member (
            id uuid PRIMARY KEY,
            version bigint NOT NULL,
            name text NOT NULL,
            erased boolean NOT NULL
        )""")
    op.execute(f"""
        CREATE TABLE {S}.book (
            id uuid PRIMARY KEY,
            version bigint NOT NULL,
            title text NOT NULL,
            member_id uuid REFERENCES {S}.member (id),
            loan_id uuid
        )""")


def downgrade() -> None:
    op.execute(f"DROP TABLE {S}.book, {S}.member")
