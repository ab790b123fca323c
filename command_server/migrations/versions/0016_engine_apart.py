"""Nothing: from here on the engine's migrations are the engine's own. They were in this line up to this number."""

revision = "0016"
down_revision = "0010"


def upgrade() -> None:
    pass


def downgrade() -> None:
    pass
