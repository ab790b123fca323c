"""PostgreSQL keeps no statistics of the columns by which a view's row is found.

It would see eight rows, spread over as many blocks as their versions take while somebody holds a snapshot, and reckon
that to read the index in order costs more than to read all versions and sort them. Those that it has are dropped with
the columns' types, which stay as they are: nothing is written anew.
"""

from alembic import op

revision = "0013"
down_revision = "0012"

S = "tandem_read"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("SET LOCAL statement_timeout = '60s'")
    op.execute(f"ALTER TABLE {S}.projection ALTER COLUMN view TYPE text, ALTER COLUMN span TYPE bigint")
    op.execute(f"""
        ALTER TABLE {S}.projection
            ALTER COLUMN view SET STATISTICS 0, ALTER COLUMN span SET STATISTICS 0""")


def downgrade() -> None:
    op.execute(f"""
        ALTER TABLE {S}.projection
            ALTER COLUMN view SET STATISTICS -1, ALTER COLUMN span SET STATISTICS -1""")
