"""Searches as the query server does them, without a server around."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import TextClause

from commerce.query.v1.query_service_pb2 import SearchProductsRequest, SearchProductsResponse
from query_server.search.memory import SearchMemory
from query_server.search.query import SearchQuery
from query_server.search.statements import SESSION
from tandem.queries.checker import QueryChecker
from tandem.queries.encoding import room_for_rows
from tandem.queries.store import ONE_PLAN, Store
from tandem.runtime.errors import TandemError
from tandem.runtime.settings import DatabaseSettings


class Counted(Store):
    """Counts its statements."""

    count = 0

    def execute(self, statement: TextClause, arguments: dict[str, object]) -> Sequence[Any]:
        self.count += 1
        return super().execute(statement, arguments)


class Searcher:
    """Searches one database. full: how often it asked for more than cards."""

    def __init__(self, settings: DatabaseSettings, memory: SearchMemory) -> None:
        self._searched = Counted(settings, connections=1, session=SESSION)
        self._cards = Store(settings, connections=1, session=ONE_PLAN)
        self._query = SearchQuery(self._searched, self._cards, memory, room_for_rows(4 * 2**20))

    def together(self, *requests: SearchProductsRequest) -> list[bytes]:
        """The responses, serialised."""
        return answered(self._query, *requests)

    def __call__(self, query: str = "", **fields: Any) -> SearchProductsResponse:
        [found] = self.together(SearchProductsRequest(query=query, **fields))
        return SearchProductsResponse.FromString(found)

    @property
    def full(self) -> int:
        return self._searched.count

    def close(self) -> None:
        for it in (self._searched, self._cards):
            it.close()


def answered(query: SearchQuery, *requests: SearchProductsRequest) -> list[bytes]:
    """What searches that are read together are answered, serialised. Raises what is wrong with one of them."""
    check = QueryChecker(2.0)
    wanted = [query.wanted(it, check) for it in requests]
    check.finish()
    responses = []
    for answer in query.read(wanted):
        if isinstance(answer, TandemError):
            raise answer
        responses.append(answer.response)
    return responses
