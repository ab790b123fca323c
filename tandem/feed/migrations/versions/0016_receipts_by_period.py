"""Receipts are in a table for each period of some days, and old ones are emptied instead of their rows deleted.

The receipts that are there become the first of these tables as they are. A command server of the version before goes on
beside one of this version, for a day: it writes to the first table also when others write to the next. The index by
time is taken away one release later, since the purge of the version before needs it.
"""

from alembic import op

from tandem.runtime.backfill import grant_alike, validate_constraint

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

S = "tandem_write"
PERIODS = 9


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("SET LOCAL statement_timeout = '60s'")
    op.execute(f"ALTER TABLE {S}.receipt ADD COLUMN IF NOT EXISTS period smallint NOT NULL DEFAULT 0")
    op.execute(f"ALTER TABLE {S}.receipt DROP CONSTRAINT IF EXISTS receipt_0_period")
    op.execute(f"ALTER TABLE {S}.receipt ADD CONSTRAINT receipt_0_period CHECK (period = 0) NOT VALID")
    validate_constraint(f"{S}.receipt", "receipt_0_period")
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("SET LOCAL statement_timeout = '60s'")
    op.execute(f"ALTER TABLE {S}.receipt RENAME TO receipt_0")
    op.execute(f"ALTER INDEX {S}.receipt_pkey RENAME TO receipt_0_pkey")
    op.execute(f"""
        CREATE TABLE {S}.receipt (LIKE {S}.receipt_0 INCLUDING DEFAULTS INCLUDING COMMENTS)
        PARTITION BY LIST (period)""")
    # Nothing is read for it: the check says what is in it.
    op.execute(f"ALTER TABLE {S}.receipt ATTACH PARTITION {S}.receipt_0 FOR VALUES IN (0)")
    op.execute(f"""
        CREATE TABLE {S}.receipt_period (
            period smallint PRIMARY KEY,
            began_at timestamptz,
            ended_at timestamptz
        )""")
    op.execute(f"INSERT INTO {S}.receipt_period VALUES (0, now(), NULL)")  # noqa: S608
    grant_alike(f"{S}.receipt_0", f"{S}.receipt", {it: it for it in ("SELECT", "INSERT", "UPDATE", "DELETE")})
    grant_alike(f"{S}.receipt_0", f"{S}.receipt_period", {"SELECT": "SELECT", "UPDATE": "UPDATE"})
    for period in range(PERIODS):
        if period:
            op.execute(f"""
                CREATE TABLE {S}.receipt_{period} PARTITION OF {S}.receipt (PRIMARY KEY (request_id))
                FOR VALUES IN ({period})""")
            op.execute(f"INSERT INTO {S}.receipt_period VALUES ({period}, NULL, NULL)")  # noqa: S608
        grant_alike(f"{S}.receipt", f"{S}.receipt_{period}", {"DELETE": "TRUNCATE"})


def downgrade() -> None:
    op.execute(f"CREATE TABLE {S}.receipt_before (LIKE {S}.receipt_0 INCLUDING ALL)")
    op.execute(f"ALTER TABLE {S}.receipt_before DROP CONSTRAINT receipt_0_period")
    op.execute(f"INSERT INTO {S}.receipt_before SELECT * FROM {S}.receipt")  # noqa: S608
    op.execute(f"DROP TABLE {S}.receipt, {S}.receipt_period")
    op.execute(f"ALTER TABLE {S}.receipt_before RENAME TO receipt")
    op.execute(f"ALTER TABLE {S}.receipt DROP COLUMN period")
