"""The settings that every query server has, in blocks."""

from pydantic import Field

from tandem.read_store.cache import SharedCacheSettings
from tandem.runtime.settings import Block


class ReaderSettings(Block):
    """Reading in batches: calls that arrive together are read together."""

    threads: int = Field(
        1, ge=1, le=32, description="Batches under way at once: of each query's calls, and of rows from the database"
    )
    max_batch: int = Field(256, ge=1, le=4096, description="Calls in one batch at most, and watched rows in one read")
    max_waiting: int = Field(
        16_384, ge=100, description="Calls, or ids in calls, that may wait for a batch; past it calls are refused"
    )


class CacheSettings(SharedCacheSettings):
    """The cache. Its nodes are the projector's setting; query servers learn them from the announcements."""

    enabled: bool = Field(True, description="Read from the cache where the projector announces nodes")
    timeout: float = Field(0.1, gt=0, le=10, description="Seconds for connecting to a node and for each answer")
    rest_seconds: float = Field(1.0, ge=0, le=60, description="How long a node is not asked after it failed")
    entry_seconds: int = Field(86_400, ge=60, le=2_592_000, description="How long an entry lives that a reader brought")
    max_fills: int = Field(32, ge=0, le=1024, description="Missing entries that one batch puts into the cache at most")


class FreshnessSettings(Block):
    """Following the announcements, and waiting for a position."""

    blind_after: float = Field(
        3.0, gt=0, le=60, description="Seconds without an announcement until the cache is not read"
    )
    default_max_wait: float = Field(
        2.0, ge=0, le=60, description="Seconds to wait for a token's position where the call does not say"
    )
    max_waiters: int = Field(
        1000,
        ge=1,
        description="Calls that may wait for a position, for one view at most as many as are free; past it they are"
        " refused",
    )


class WatchSettings(Block):
    """Streams that follow a row."""

    max_watchers: int = Field(
        10_000, ge=1, description="Watches open at once; past it they are refused. They are not counted as calls"
    )
    max_changes: int = Field(
        2000,
        ge=1,
        le=100_000,
        description="Entries of the change log in one look; where there are more, all watched rows are read",
    )
