"""The query server's settings."""

from typing import ClassVar

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from tandem.runtime.settings import Block, DatabaseSettings, ServerSettings, ServiceSettings


class ReaderSettings(Block):
    """Reading in batches: calls that arrive together are read together."""

    threads: int = Field(
        1, ge=1, le=32, description="Batches under way at once of each kind: of the cache, the database, and lists"
    )
    max_batch: int = Field(256, ge=1, le=4096, description="Keys, or pages of lists, in one batch at most")
    max_waiting: int = Field(
        16_384, ge=100, description="Keys that may wait for a batch of one kind; past it calls are refused"
    )


class ReportSettings(Block):
    """Sums over many rows, apart from all other reads, so that a slow one holds none of them up."""

    threads: int = Field(1, ge=1, le=32, description="Reports under way at once")
    max_waiting: int = Field(100, ge=1, description="Different reports that may wait; past it calls are refused")


class SearchSettings(Block):
    """Searches, apart from all other reads, so that a slow one holds none of them up."""

    threads: int = Field(2, ge=1, le=32, description="Searches under way at once")
    max_waiting: int = Field(200, ge=1, description="Different searches that may wait; past it calls are refused")
    remembered_mib: int = Field(
        32,
        ge=0,
        le=4096,
        description="MiB for what searches found by text, which holds until a product's text changes; 0: none is kept",
    )


class CacheSettings(Block):
    """memcached. Its nodes are the projector's setting; query servers learn them from the announcements."""

    enabled: bool = Field(True, description="Read from memcached where the projector announces nodes")
    timeout: float = Field(0.1, gt=0, le=10, description="Seconds for connecting to a node and for each answer")
    rest_seconds: float = Field(1.0, ge=0, le=60, description="How long a node is left alone after it failed")
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
    max_waiters: int = Field(1000, ge=1, description="Calls that may wait for a position; past it they are refused")


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


class Settings(ServiceSettings):
    """All settings of the query server: TANDEM_QUERY_… or the section [query]."""

    model_config = SettingsConfigDict(env_prefix="TANDEM_QUERY_")
    section: ClassVar[str] = "query"

    database: DatabaseSettings = Field(description="The read database")
    feed_database: DatabaseSettings | None = Field(
        None,
        description="The write database, for fully_consistent queries, which are refused without it. Not a replica. A"
        " role that may read tandem_write.feed_head is enough",
    )
    server: ServerSettings = Field(ServerSettings(port=50052), description="The gRPC server")
    reader: ReaderSettings = Field(ReaderSettings(), description="Reading in batches")
    search: SearchSettings = Field(SearchSettings(), description="Searches")
    reports: ReportSettings = Field(ReportSettings(), description="Sums over many rows")
    cache: CacheSettings = Field(CacheSettings(), description="memcached")
    freshness: FreshnessSettings = Field(FreshnessSettings(), description="Announcements and waits")
    watch: WatchSettings = Field(WatchSettings(), description="Streams that follow a row")
