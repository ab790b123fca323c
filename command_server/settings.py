"""The command server's settings."""

from pydantic import Field

from tandem.commands.server import CommandServerSettings
from tandem.runtime.settings import Block


class OrderSettings(Block):
    """Orders that nobody pays."""

    unpaid_days: float = Field(
        14.0, gt=0, le=3660, description="How long after it was stored an order may be paid before it is cancelled"
    )


class StockSettings(Block):
    """Products that run low, of which a webhook tells."""

    low: int = Field(
        10, ge=1, description="A product runs low when fewer units than these can be ordered, and so many could before"
    )


class SubscriptionSettings(Block):
    """Subscriptions end by themselves."""

    grace_days: float = Field(
        3.0, ge=0, le=366, description="How long after its period's end a subscription may be renewed before it lapses"
    )


class Settings(CommandServerSettings):
    """All settings of the command server: TANDEM_COMMAND_… or the section [command]."""

    orders: OrderSettings = Field(OrderSettings(), description="Orders")
    stock: StockSettings = Field(StockSettings(), description="Stock")
    subscriptions: SubscriptionSettings = Field(SubscriptionSettings(), description="Subscriptions")
