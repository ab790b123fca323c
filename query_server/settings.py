"""The query server's settings."""

from pathlib import Path

from pydantic import Field

from tandem.queries.server import QueryServerSettings
from tandem.read_store.search_index import SearchEngineSettings
from tandem.runtime.settings import Block


class ReportSettings(Block):
    """Sums over many rows, apart from all other reads, so that a slow one holds none of them up."""

    threads: int = Field(1, ge=1, le=32, description="Reports under way at once")
    max_waiting: int = Field(1000, ge=1, description="Calls that may wait for a report; past it they are refused")


class SearchSettings(Block):
    """Searches, apart from all other reads, so that a slow one holds none of them up."""

    threads: int = Field(2, ge=1, le=32, description="Searches under way at once")
    suggestion_threads: int = Field(1, ge=1, le=32, description="Batches of suggestions under way at once")
    max_waiting: int = Field(200, ge=1, description="Searches that may wait; past it calls are refused")
    remembered_mib: int = Field(
        48,
        ge=0,
        le=4096,
        description="MiB for what searches found by text, which holds until a product's text changes; 0: none is kept",
    )
    synonyms_file: Path | None = Field(
        None,
        description="Words that find what others find, one rule a line, as docs/search.md says; read when it changes",
    )
    engine: SearchEngineSettings | None = Field(
        None, description="A search engine that finds products by their words; the projector's, with the same prefix"
    )
    engine_rest_seconds: float = Field(
        1.0, gt=0, le=60, description="How long the engine is not asked after it failed; PostgreSQL answers meanwhile"
    )


class Settings(QueryServerSettings):
    """All settings of the query server: TANDEM_QUERY_… or the section [query]."""

    search: SearchSettings = Field(SearchSettings(), description="Searches")
    reports: ReportSettings = Field(ReportSettings(), description="Sums over many rows")
