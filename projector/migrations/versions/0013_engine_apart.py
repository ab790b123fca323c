"""Nothing: from here on the engine's migrations are the engine's own. They were in this line up to this number."""

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    pass


def downgrade() -> None:
    pass
