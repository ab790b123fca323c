"""The command server's settings."""

from typing import ClassVar

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from tandem.commands.archiving import ArchivingSettings
from tandem.commands.partitions import FeedSettings
from tandem.commands.settings import ExecutorSettings, LedgerSettings, ReceiptSettings, StepSettings
from tandem.feed.token_signature import SignedTokenSettings
from tandem.runtime.settings import Block, DatabaseSettings, ServerSettings, ServiceSettings


class SubscriptionSettings(Block):
    """Subscriptions end by themselves."""

    grace_days: float = Field(
        3.0, ge=0, le=366, description="How long after its period's end a subscription may be renewed before it lapses"
    )
    check_every_seconds: float = Field(5.0, gt=0, description="Time between looks for subscriptions that have ended")
    batch: int = Field(100, ge=1, le=1000, description="Subscriptions ended at once")


class Settings(ServiceSettings):
    """All settings of the command server: TANDEM_COMMAND_… or the section [command]."""

    model_config = SettingsConfigDict(env_prefix="TANDEM_COMMAND_")
    section: ClassVar[str] = "command"

    database: DatabaseSettings = Field(description="The write database")
    server: ServerSettings = Field(ServerSettings(port=50051), description="The gRPC server")
    tokens: SignedTokenSettings = Field(SignedTokenSettings(), description="The signature of tokens")
    executor: ExecutorSettings = Field(ExecutorSettings(), description="Group commit")
    receipts: ReceiptSettings = Field(ReceiptSettings(), description="Receipts")
    feed: FeedSettings = Field(FeedSettings(), description="The feed's table")
    archive: ArchivingSettings = Field(ArchivingSettings(), description="The feed's archive, for `archive`")
    ledger: LedgerSettings = Field(LedgerSettings(file=None), description="The ledger")
    steps: StepSettings = Field(StepSettings(), description="Commands in steps")
    subscriptions: SubscriptionSettings = Field(SubscriptionSettings(), description="Subscriptions")
