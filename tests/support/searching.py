"""Searches as the query server does them, without a server around."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import TextClause

from commerce.query.v1.query_service_pb2 import SearchProductsRequest, SearchProductsResponse
from query_server.database import ONE_PLAN, ReadDatabase
from query_server.queries.search.memory import SearchMemory
from query_server.queries.search.reader import SearchReader
from query_server.queries.search.request import SearchKey, search_key
from query_server.queries.search.response import Found
from query_server.queries.search.statements import SESSION
from query_server.validation import Checker
from tandem.runtime.settings import DatabaseSettings


class Counted(ReadDatabase):
    """Counts its statements."""

    count = 0

    def execute(self, view: str, statement: TextClause, arguments: dict[str, object]) -> Sequence[Any]:
        self.count += 1
        return super().execute(view, statement, arguments)


class Searcher:
    """Searches one database. full: how often it asked for more than cards."""

    def __init__(self, settings: DatabaseSettings, memory: SearchMemory) -> None:
        self._searched = Counted(settings, connections=1, session=SESSION)
        self._cards = ReadDatabase(settings, connections=1, session=ONE_PLAN)
        self._reader = SearchReader(self._searched, self._cards, memory)

    def together(self, *requests: SearchProductsRequest) -> list[Found]:
        return list(self._reader.read([key(it) for it in requests]))

    def __call__(self, query: str = "", **fields: Any) -> SearchProductsResponse:
        [found] = self.together(SearchProductsRequest(query=query, **fields))
        return SearchProductsResponse.FromString(found.response())

    @property
    def full(self) -> int:
        return self._searched.count

    def close(self) -> None:
        for it in (self._searched, self._cards):
            it._engine.dispose()


def key(request: SearchProductsRequest) -> SearchKey:
    check = Checker(2.0)
    wanted = search_key(request, check)
    check.finish()
    return wanted
