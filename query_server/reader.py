"""Reads views by key, a batch at a time, in two stages: the cache, and the database for what the cache lacks.

Each stage has threads of its own, so a database that is slow or away delays nobody whose rows are cached.
"""

import uuid
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from prometheus_client import Counter

from query_server.batcher import Batcher
from query_server.cache import Cache, entry_value
from query_server.database import ReadDatabase
from query_server.freshness import Freshness
from tandem.feed.token import Token

CACHE_READS = Counter(
    "tandem_cache_reads_total",
    "Views read by key: hit, miss, or bypass where the cache could not be asked",
    ["view", "result"],
)


class ViewKey(NamedTuple):
    """A row of a view."""

    view: str
    key: uuid.UUID


class Found(NamedTuple):
    """A view's bytes, None where there is no such row, and the position that they include."""

    value: bytes | None
    as_of: Token


class CacheReader:
    """Reads batches from the cache. For one thread at a time: it owns the cache's connections."""

    def __init__(self, cache: Cache, freshness: Freshness) -> None:
        self._cache = cache
        self._freshness = freshness

    def __call__(self, batch: Sequence[ViewKey]) -> dict[ViewKey, Found | None]:
        """What is cached for each key; None where only the database knows."""
        answer: dict[ViewKey, Found | None] = dict.fromkeys(batch)
        for view, keys in _by_view(batch).items():
            # Before the cache is read: what was announced by now is in the entries, whatever comes in later.
            announced = self._freshness.announced(view)
            if announced is None or not announced.cache_epochs:
                count_reads(view, bypass=len(keys))
                continue
            by_digits = {key.hex: key for key in keys}
            lookup = self._cache.look_up(view, announced.cache_epochs, by_digits)
            values = {digits: entry_value(entry) for digits, entry in lookup.entries.items()}
            hits = 0
            for digits, value in values.items():
                if value is not None:
                    answer[ViewKey(view, by_digits[digits])] = Found(value, announced.token)
                    hits += 1
            count_reads(view, hit=hits, miss=lookup.asked - hits, bypass=len(keys) - lookup.asked)
        return answer


class DatabaseReader:
    """Reads batches from the database, and fills the cache with them. For one thread at a time, as CacheReader."""

    def __init__(self, database: ReadDatabase, cache: Cache, freshness: Freshness) -> None:
        self._database = database
        self._cache = cache
        self._freshness = freshness

    def __call__(self, batch: Sequence[ViewKey]) -> dict[ViewKey, Found]:
        """What is stored for each key. Raises Unavailable."""
        answer: dict[ViewKey, Found] = {}
        for view, keys in _by_view(batch).items():
            announced = self._freshness.announced(view)
            epochs = announced.cache_epochs if announced is not None else {}
            # The leases first: a row that is written after it was read here ends its lease.
            leases = self._cache.lease(view, epochs, keys) if epochs else {}
            rows, as_of = self._database.rows(view, keys)
            for key in keys:
                answer[ViewKey(view, key)] = Found(rows.get(key), as_of)
            # A database that lost commits in a failover is behind what was announced, and must not fill.
            if announced is not None and as_of.includes(announced.token):
                self._cache.fill(leases, rows)
        return answer


class Reader:
    """Both stages, for the event loop."""

    def __init__(
        self, freshness: Freshness, cached: Batcher[ViewKey, Found | None], stored: Batcher[ViewKey, Found]
    ) -> None:
        self._freshness = freshness
        self._cached = cached
        self._stored = stored

    async def read(self, view: str, keys: Sequence[uuid.UUID]) -> list[Found]:
        """What there is for each key, from wherever is nearest. Raises Unavailable and Overloaded."""
        wanted = [ViewKey(view, key) for key in keys]
        announced = self._freshness.announced(view)
        if announced is None or not announced.cache_epochs:
            count_reads(view, bypass=len(wanted))
            return await self._stored.read(wanted)
        cached = await self._cached.read(wanted)
        missing = [key for key, it in zip(wanted, cached, strict=True) if it is None]
        stored = iter(await self._stored.read(missing) if missing else ())
        return [it if it is not None else next(stored) for it in cached]

    async def read_stored(self, view: str, keys: Sequence[uuid.UUID]) -> list[Found]:
        """As `read`, from the database alone."""
        return await self._stored.read([ViewKey(view, key) for key in keys])


def _by_view(batch: Sequence[ViewKey]) -> dict[str, list[uuid.UUID]]:
    keys: dict[str, list[uuid.UUID]] = {}
    for wanted in batch:
        keys.setdefault(wanted.view, []).append(wanted.key)
    return keys


def count_reads(view: str, **results: int) -> None:
    """results: how many keys were a hit, a miss, or a bypass."""
    for result, number in results.items():
        if number:
            _reads(view, result).inc(number)


@cache
def _reads(view: str, result: str) -> Counter:
    return CACHE_READS.labels(view, result)
