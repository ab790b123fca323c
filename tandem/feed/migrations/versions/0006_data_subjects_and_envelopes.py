"""The feed speaks of data subjects, and has an envelope for each event.

Names alone change, and a column comes that is NULL in the events that are there, so it takes no longer for a long feed.
Stop the services of the version before first: they look for the old names.
"""

from alembic import op

revision = "0006"
down_revision = "0003"

S = "tandem_write"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("SET LOCAL statement_timeout = '60s'")
    op.execute(f"ALTER TABLE {S}.personal_key RENAME TO subject_key")
    op.execute(f"ALTER TABLE {S}.subject_key RENAME COLUMN customer_id TO subject_id")
    op.execute(f"ALTER TABLE {S}.subject_key RENAME CONSTRAINT personal_key_pkey TO subject_key_pkey")
    op.execute(f"ALTER TABLE {S}.event RENAME COLUMN customer_id TO subject_id")
    op.execute(f"ALTER TABLE {S}.event ADD COLUMN envelope bytea")
    op.execute(f"COMMENT ON COLUMN {S}.event.envelope IS 'tandem.internal.v1.Envelope'")


def downgrade() -> None:
    op.execute(f"ALTER TABLE {S}.event DROP COLUMN envelope")
    op.execute(f"ALTER TABLE {S}.event RENAME COLUMN subject_id TO customer_id")
    op.execute(f"ALTER TABLE {S}.subject_key RENAME CONSTRAINT subject_key_pkey TO personal_key_pkey")
    op.execute(f"ALTER TABLE {S}.subject_key RENAME COLUMN subject_id TO customer_id")
    op.execute(f"ALTER TABLE {S}.subject_key RENAME TO personal_key")
