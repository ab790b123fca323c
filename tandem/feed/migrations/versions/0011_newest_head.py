"""The feed's head is found by the span of positions that it is in, so that the versions of before are not in the way.

One row is written anew, and a command server of the version before goes on. PostgreSQL looks at the table once a minute
and takes away what nobody sees any more, all of it at once; it does not give the room back, for which it would lock the
table.
"""

from alembic import op

revision = "0011"
down_revision = "0010"

S = "tandem_write"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("SET LOCAL statement_timeout = '60s'")
    op.execute(f"ALTER TABLE {S}.feed_head ADD COLUMN span bigint GENERATED ALWAYS AS (position >> 6) STORED")
    op.execute(f"ALTER TABLE {S}.feed_head DROP CONSTRAINT feed_head_pkey, ADD PRIMARY KEY (span)")
    op.execute(f"""
        ALTER TABLE {S}.feed_head SET (
            autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0,
            autovacuum_vacuum_cost_delay = 0, vacuum_truncate = off
        )""")


def downgrade() -> None:
    op.execute(f"ALTER TABLE {S}.feed_head DROP CONSTRAINT feed_head_pkey, ADD PRIMARY KEY (id)")
    op.execute(f"ALTER TABLE {S}.feed_head DROP COLUMN span")
    op.execute(f"""
        ALTER TABLE {S}.feed_head RESET (
            autovacuum_vacuum_threshold, autovacuum_vacuum_scale_factor, autovacuum_vacuum_cost_delay, vacuum_truncate
        )""")
