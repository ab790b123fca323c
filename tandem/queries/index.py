"""A view's index in a search engine, as queries use it: while a projector announces it, and the engine answers."""

import asyncio
import threading
import time
from typing import Any

from prometheus_client import Counter

from tandem.queries.freshness import Freshness
from tandem.read_store.search_engine import SearchEngine
from tandem.read_store.search_index import EngineAway, SearchEngineSettings, SearchIndex
from tandem.runtime.telemetry import log

FAILED = Counter(
    "tandem_index_searches_failed_total",
    "Searches that the search engine did not answer, and the read database did",
    ["view"],
)
UNUSED = Counter(
    "tandem_index_searches_unused_total",
    "Searches that found no index of the view yet, and that the read database answered",
    ["view"],
)


class IndexReader:
    """For any thread. A Component, which closes its connections.

    One search finds out that the engine is silent, and waits for it; those that come within the rest after it do not.
    """

    def __init__(
        self, index: SearchIndex, settings: SearchEngineSettings, freshness: Freshness, *, rest_seconds: float
    ) -> None:
        """rest_seconds: how long the engine is not asked after it failed. Raises SettingsError."""
        self.view = index.view
        self._engine = SearchEngine(settings)
        self._freshness = freshness
        self._rest_seconds = rest_seconds
        self._lock = threading.Lock()
        self._rests_until = float("-inf")
        self._failed = False

    async def start(self) -> None:
        """Nothing connects before the first use."""

    async def stop(self) -> None:
        await asyncio.to_thread(self._engine.close)

    @property
    def is_usable(self) -> bool:
        return (
            time.monotonic() >= self._rests_until
            and self._freshness.announced(self.view) is not None
            and self._freshness.problem(self.view) is None
        )

    def search(self, name: str, body: dict[str, Any]) -> list[tuple[str, float]]:
        """As SearchEngine.search."""
        try:
            found = self._engine.search(name, body)
        except EngineAway as error:
            with self._lock:
                self._rests_until = time.monotonic() + self._rest_seconds
                said, self._failed = self._failed, True
            if not said:
                log.warning("the search engine does not answer", index=name, error=str(error))
            raise
        if self._failed:
            self._failed = False
            log.info("the search engine answers", index=name)
        return found
