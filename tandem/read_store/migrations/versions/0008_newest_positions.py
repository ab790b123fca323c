"""A view's position is found by the span of positions that it is in, so that the versions of before are not in the way.

Some rows are written anew. A projector of the version before goes on with the views that it holds, and can take no
others over: replace it soon. PostgreSQL looks at the table once a minute and takes away what nobody sees any more, all
of it at once; it does not give the room back, for which it would lock the table.
"""

from alembic import op

revision = "0008"
down_revision = "0007"

S = "tandem_read"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("SET LOCAL statement_timeout = '60s'")
    op.execute(f"ALTER TABLE {S}.projection ADD COLUMN span bigint GENERATED ALWAYS AS (position >> 6) STORED")
    op.execute(f"ALTER TABLE {S}.projection DROP CONSTRAINT projection_pkey, ADD PRIMARY KEY (view, span)")
    op.execute(f"""
        ALTER TABLE {S}.projection SET (
            autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0,
            autovacuum_vacuum_cost_delay = 0, vacuum_truncate = off
        )""")


def downgrade() -> None:
    op.execute(f"ALTER TABLE {S}.projection DROP CONSTRAINT projection_pkey, ADD PRIMARY KEY (view)")
    op.execute(f"ALTER TABLE {S}.projection DROP COLUMN span")
    op.execute(f"""
        ALTER TABLE {S}.projection RESET (
            autovacuum_vacuum_threshold, autovacuum_vacuum_scale_factor, autovacuum_vacuum_cost_delay, vacuum_truncate
        )""")
