"""Products have attributes."""

from alembic import op

revision = "0002"
down_revision = "0001"

S = "tandem_write"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("SET LOCAL statement_timeout = '60s'")
    # With a default, so that the version before goes on adding products.
    op.execute(f"ALTER TABLE {S}.product ADD COLUMN attributes bytea NOT NULL DEFAULT ''")
    op.execute(f"COMMENT ON COLUMN {S}.product.attributes IS 'commerce.command.v1.ProductAttributes'")


def downgrade() -> None:
    op.execute(f"ALTER TABLE {S}.product DROP COLUMN attributes")
