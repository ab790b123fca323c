"""The settings of whoever takes commands."""

from pathlib import Path

from pydantic import Field

from tandem.runtime.settings import Block


class ExecutorSettings(Block):
    """Group commit."""

    threads: int = Field(
        2, ge=1, le=32, description="Transactions under way at once, each with a thread and a connection"
    )
    max_batch: int = Field(128, ge=1, le=1024, description="Commands in one transaction at most")
    max_waiting: int = Field(
        2048, ge=1, description="Commands that may wait for a transaction; past it they are refused"
    )
    retry_seconds: float = Field(
        3.0,
        ge=0,
        le=60,
        description="How long a batch is tried again while the database is away, and a command while others keep rows"
        " locked that it needs",
    )
    row_wait_seconds: float = Field(
        0.5,
        ge=0.01,
        le=60,
        description="How long a batch waits for locked rows before the commands that need them are set aside; the"
        " database's `lock_timeout` where that is shorter",
    )


class ReceiptSettings(Block):
    """Receipts make repeated commands harmless."""

    keep_days: float = Field(7.0, gt=0, description="How long a request_id is remembered, and up to a third longer")
    purge_every_seconds: float = Field(60.0, gt=0, description="Time between looks for receipts that are old")


class LedgerSettings(Block):
    """What must stay true when the database is restored from a backup: see docs/runbook.md."""

    file: Path | None = Field(
        None,
        description="A file, not on the database's disk, of who was erased and of the feed's epochs; without it, nobody"
        " knows after a restore whom to erase again",
    )


class StepSettings(Block):
    """Commands that are done in steps, each a transaction: such as the erasure of somebody with many orders."""

    resume_after_seconds: float = Field(
        5.0, gt=0, description="A command that does no step is gone on with by any server within so long"
    )
