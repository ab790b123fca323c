"""The command server's settings."""

from typing import ClassVar

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from tandem.runtime.settings import Block, DatabaseSettings, ServerSettings, ServiceSettings


class ExecutorSettings(Block):
    """Group commit."""

    lanes: int = Field(
        2, ge=1, le=32, description="Transactions under way at once, each with a thread and a connection"
    )
    max_batch: int = Field(128, ge=1, le=1024, description="Commands in one transaction at most")
    max_waiting: int = Field(
        2048, ge=1, description="Commands that may wait for a transaction; past it they are refused"
    )
    retry_seconds: float = Field(
        3.0, ge=0, le=60, description="How long a batch is tried again while the database is away"
    )


class ReceiptSettings(Block):
    """Receipts make repeated commands harmless."""

    keep_days: float = Field(7.0, gt=0, description="How long a request_id is remembered")
    purge_batch: int = Field(1000, ge=1, le=10_000, description="Old receipts deleted in one statement")
    purge_every_seconds: float = Field(60.0, gt=0, description="Time between purges")


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
    executor: ExecutorSettings = Field(ExecutorSettings(), description="Group commit")
    receipts: ReceiptSettings = Field(ReceiptSettings(), description="Receipts")
    subscriptions: SubscriptionSettings = Field(SubscriptionSettings(), description="Subscriptions")
