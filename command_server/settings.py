"""The command server's settings."""

from pydantic import Field

from tandem.commands.server import CommandServerSettings
from tandem.runtime.settings import Block


class SubscriptionSettings(Block):
    """Subscriptions end by themselves."""

    grace_days: float = Field(
        3.0, ge=0, le=366, description="How long after its period's end a subscription may be renewed before it lapses"
    )
    check_every_seconds: float = Field(5.0, gt=0, description="Time between looks for subscriptions that have ended")
    batch: int = Field(100, ge=1, le=1000, description="Subscriptions ended at once")


class Settings(CommandServerSettings):
    """All settings of the command server: TANDEM_COMMAND_… or the section [command]."""

    subscriptions: SubscriptionSettings = Field(SubscriptionSettings(), description="Subscriptions")
