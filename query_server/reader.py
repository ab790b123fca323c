"""Reads views by key, a batch at a time: the cache first, one statement for what it lacks."""

import uuid
from collections.abc import Sequence
from typing import NamedTuple

from prometheus_client import Counter

from query_server.cache import Cache, Lookup
from query_server.database import ReadDatabase
from query_server.freshness import Freshness
from tandem.feed.token import Token

CACHE_READS = Counter(
    "tandem_cache_reads_total",
    "Views read by key: hit, miss, or bypass where the cache could not be asked",
    ["view", "result"],
)

_NOTHING = Lookup({}, {}, 0)


class ViewKey(NamedTuple):
    """A row of a view. `database`: read it from there, whatever the cache holds."""

    view: str
    key: uuid.UUID
    database: bool = False


class Found(NamedTuple):
    """A view's bytes, None where there is no such row, and the position that they include."""

    value: bytes | None
    as_of: Token


class ViewReader:
    """Reads batches. For one thread at a time: it owns the connections of its cache."""

    def __init__(self, database: ReadDatabase, cache: Cache | None, freshness: Freshness) -> None:
        self._database = database
        self._cache = cache
        self._freshness = freshness

    def __call__(self, batch: Sequence[ViewKey]) -> dict[ViewKey, Found]:
        """What is there for each key. Raises Unavailable when the database is needed and away."""
        by_view: dict[str, list[ViewKey]] = {}
        for wanted in batch:
            by_view.setdefault(wanted.view, []).append(wanted)
        answer: dict[ViewKey, Found] = {}
        for view, keys in by_view.items():
            self._read_view(view, keys, answer)
        return answer

    def _read_view(self, view: str, wanted: Sequence[ViewKey], answer: dict[ViewKey, Found]) -> None:
        # Before the cache is read: what was announced by now is in the entries, whatever comes in later.
        announced = self._freshness.announced(view)
        lookup = _NOTHING
        if self._cache is not None and announced is not None and announced.cache_epochs:
            lookup = self._cache.look_up(view, announced.cache_epochs, [it.key for it in wanted if not it.database])
            for it in wanted:
                if not it.database and it.key in lookup.values:
                    answer[it] = Found(lookup.values[it.key], announced.token)
        _count(view, len(wanted), lookup)
        rest = [it for it in wanted if it not in answer]
        if rest:
            leases = self._cache.lease(lookup.absent) if self._cache is not None else {}
            rows, as_of = self._database.rows(view, list({it.key for it in rest}))
            for it in rest:
                answer[it] = Found(rows.get(it.key), as_of)
            if self._cache is not None:
                self._cache.fill(leases, rows)


def _count(view: str, wanted: int, lookup: Lookup) -> None:
    hits = len(lookup.values)
    for result, number in (("hit", hits), ("miss", lookup.asked - hits), ("bypass", wanted - lookup.asked)):
        if number:
            CACHE_READS.labels(view, result).inc(number)
