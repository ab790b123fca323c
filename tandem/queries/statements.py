"""Lists and searches that are answered at a desk (tandem.runtime.desk): read together, by a thread of their own.

Its way through the event loop costs such a call more than all else: a task, a future, and threads that wake each other.
`QueryServicer` answers what has to wait for a token or is wrong, and says why when the database is away.
"""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Sequence
from contextlib import suppress
from itertools import repeat
from typing import Any, Generic, NamedTuple, TypeVar

from google.protobuf.message import Message

from query_server.batcher import BATCH_SIZE
from query_server.database import ReadDatabase
from query_server.freshness import Freshness
from query_server.lists import ListQuery
from query_server.queries.pages import PageKey, read_pages
from query_server.queries.search.reader import SearchReader
from query_server.queries.search.request import SEARCHED, SearchKey, search_key
from query_server.validation import Checker
from tandem.feed.token import Token
from tandem.runtime.errors import InvalidArgument, Unavailable

K = TypeVar("K", bound=Hashable)


class _Asked(NamedTuple, Generic[K]):
    """What a request wants, and what its answer must include."""

    wanted: K
    token: Token | None


class Answer(NamedTuple):
    """The response, serialised, and the position that it includes."""

    response: bytes
    as_of: Token


class ReadTogether(ABC, Generic[K]):
    """What several calls of a batch want is read once. For as many threads at once as the database has connections."""

    def __init__(self, kind: str, views: Sequence[str], freshness: Freshness) -> None:
        """kind: that of the Batcher that reads for the method. views: those that answer, all together."""
        self._views = views
        self._freshness = freshness
        self._sizes = BATCH_SIZE.labels(kind)

    def __call__(self, requests: Sequence[Message]) -> Iterator[bytes | None]:
        asked = [self._asked(it) for it in requests]
        wanted = list(dict.fromkeys(it.wanted for it in asked if it is not None))
        read = self._read_or_leave(wanted)
        answers: dict[K, Answer | None] = {}
        for it in asked:
            if it is None:
                yield None
                continue
            if it.wanted not in answers:
                answers[it.wanted] = next(read)
            answer = answers[it.wanted]
            fresh = answer is not None and (it.token is None or answer.as_of.includes(it.token))
            yield answer.response if answer is not None and fresh else None

    @abstractmethod
    def _wanted(self, message: Any, check: Checker) -> K:
        """What a request wants; `check` is told what is wrong."""

    @abstractmethod
    def _read(self, wanted: Sequence[K]) -> Iterator[Answer]:
        """In the order of `wanted`, of which there is at least one. Raises Unavailable."""

    def _read_or_leave(self, wanted: Sequence[K]) -> Iterator[Answer | None]:
        """As `_read`, and None from where the database is away."""
        if wanted:
            self._sizes.observe(len(wanted))
            with suppress(Unavailable):
                yield from self._read(wanted)
        yield from repeat(None)

    def _asked(self, message: Any) -> _Asked[K] | None:
        """None for what is wrong, or may have to wait."""
        try:
            check = Checker(default_max_wait=0)
            wanted = self._wanted(message, check)
            need = check.consistency(message.consistency)
            check.finish()
        except InvalidArgument:
            return None
        if need.fully_consistent or (need.token is not None and not self._is_announced(need.token)):
            return None
        return _Asked(wanted, need.token)

    def _is_announced(self, token: Token) -> bool:
        announced = [self._freshness.announced(view) for view in self._views]
        return all(it is not None and it.token.includes(token) for it in announced)


class PagesTogether(ReadTogether[PageKey]):
    """Pages of lists: one statement for all calls."""

    def __init__(self, query: ListQuery, database: ReadDatabase, freshness: Freshness) -> None:
        super().__init__("list", [query.view], freshness)
        self._query = query
        self._database = database

    def _wanted(self, message: Any, check: Checker) -> PageKey:
        return self._query.page(message, check)

    def _read(self, wanted: Sequence[PageKey]) -> Iterator[Answer]:
        pages = read_pages(self._database, wanted)
        for it in wanted:
            yield Answer(self._query.encode(it, pages[it]), pages[it].as_of)


class SearchesTogether(ReadTogether[SearchKey]):
    """Searches: what is remembered of them is brought up to date together, and each is answered before the next."""

    def __init__(self, reader: SearchReader, freshness: Freshness) -> None:
        super().__init__("search", SEARCHED, freshness)
        self._reader = reader

    def _wanted(self, message: Any, check: Checker) -> SearchKey:
        return search_key(message, check)

    def _read(self, wanted: Sequence[SearchKey]) -> Iterator[Answer]:
        for found in self._reader.read(wanted):
            yield Answer(found.response(), found.as_of)
