"""The query server's settings."""

from typing import ClassVar

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from tandem.feed.token_signature import SignedTokenSettings
from tandem.queries.settings import CacheSettings, FreshnessSettings, ReaderSettings, WatchSettings
from tandem.runtime.settings import Block, DatabaseSettings, ServerSettings, ServiceSettings


class ReportSettings(Block):
    """Sums over many rows, apart from all other reads, so that a slow one holds none of them up."""

    threads: int = Field(1, ge=1, le=32, description="Reports under way at once")
    max_waiting: int = Field(1000, ge=1, description="Calls that may wait for a report; past it they are refused")


class SearchSettings(Block):
    """Searches, apart from all other reads, so that a slow one holds none of them up."""

    threads: int = Field(2, ge=1, le=32, description="Searches under way at once")
    max_waiting: int = Field(200, ge=1, description="Searches that may wait; past it calls are refused")
    remembered_mib: int = Field(
        32,
        ge=0,
        le=4096,
        description="MiB for what searches found by text, which holds until a product's text changes; 0: none is kept",
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
    tokens: SignedTokenSettings = Field(SignedTokenSettings(), description="The signature of tokens")
    reader: ReaderSettings = Field(ReaderSettings(), description="Reading in batches")
    search: SearchSettings = Field(SearchSettings(), description="Searches")
    reports: ReportSettings = Field(ReportSettings(), description="Sums over many rows")
    cache: CacheSettings = Field(CacheSettings(), description="memcached")
    freshness: FreshnessSettings = Field(FreshnessSettings(), description="Announcements and waits")
    watch: WatchSettings = Field(WatchSettings(), description="Streams that follow a row")
