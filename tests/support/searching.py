"""Searches as the query server does them, without a server around."""

import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from google.protobuf.message import Message
from sqlalchemy import TextClause

from commerce.event.v1.event_pb2 import Event
from commerce.query.v1.query_service_pb2 import (
    ExplainSearchRequest,
    ExplainSearchResponse,
    SearchProductsRequest,
    SearchProductsResponse,
    SuggestProductsRequest,
    SuggestProductsResponse,
)
from query_server.search.engine import EngineSearch
from query_server.search.explanation import ExplainQuery
from query_server.search.memory import SearchMemory
from query_server.search.query import SearchQuery
from query_server.search.statements import SESSION
from query_server.search.suggestions import SuggestQuery
from query_server.search.synonyms import NO_SYNONYMS, Synonyms
from shop.views import VIEWS
from tandem.queries.checker import QueryChecker
from tandem.queries.encoding import room_for_rows
from tandem.queries.index import IndexReader
from tandem.queries.statements import StatementQuery
from tandem.queries.store import ONE_PLAN, Store
from tandem.read_store.tables import change
from tandem.runtime.errors import TandemError
from tandem.runtime.settings import DatabaseSettings
from tests.support import events
from tests.support.builders import usd
from tests.support.events import feed_events
from tests.support.projecting import PROJECTIONS, fold, steps, upsert

if TYPE_CHECKING:
    # It imports this.
    from tests.integration.query_server.conftest import ReadSide


_SEARCHED = PROJECTIONS["product_search"]


class Counted(Store):
    """Counts its statements."""

    count = 0

    def execute(self, statement: TextClause, arguments: dict[str, object]) -> Sequence[Any]:
        self.count += 1
        return super().execute(statement, arguments)


class Searcher:
    """Searches one database. full: how often it asked for more than cards."""

    def __init__(
        self,
        settings: DatabaseSettings,
        memory: SearchMemory,
        synonyms: Synonyms = NO_SYNONYMS,
        reader: IndexReader | None = None,
    ) -> None:
        """reader: of the products' index, where a search engine is to find them."""
        self._searched = Counted(settings, connections=1, session=SESSION)
        self._cards = Store(settings, connections=1, session=ONE_PLAN)
        engine = EngineSearch(reader, self._searched) if reader is not None else None
        room = room_for_rows(4 * 2**20)
        self._query = SearchQuery(self._searched, self._cards, memory, room, lambda: synonyms, engine)

    def together(self, *requests: SearchProductsRequest) -> list[bytes]:
        """The responses, serialised."""
        return answered(self._query, *requests)

    def explain(self, query: str = "", **fields: Any) -> ExplainSearchResponse:
        [found] = answered(ExplainQuery(self._query), ExplainSearchRequest(query=query, **fields))
        return ExplainSearchResponse.FromString(found)

    def __call__(self, query: str = "", **fields: Any) -> SearchProductsResponse:
        [found] = self.together(SearchProductsRequest(query=query, **fields))
        return SearchProductsResponse.FromString(found)

    @property
    def full(self) -> int:
        return self._searched.count

    def close(self) -> None:
        for it in (self._searched, self._cards):
            it.close()


class Suggester:
    """Suggests from one database. statements: how many it took."""

    def __init__(self, settings: DatabaseSettings, synonyms: Synonyms = NO_SYNONYMS) -> None:
        self._store = Counted(settings, connections=1, session=(*SESSION, *ONE_PLAN))
        self._query = SuggestQuery(self._store, SearchMemory(2**20), lambda: synonyms)

    def __call__(self, query: str, most: int = 0) -> SuggestProductsResponse:
        [found] = answered(self._query, SuggestProductsRequest(query=query, max_suggestions=most))
        return SuggestProductsResponse.FromString(found)

    @property
    def statements(self) -> int:
        return self._store.count

    def close(self) -> None:
        self._store.close()


class Shelf:
    """Products as a projector would show them: each change folds the whole history anew."""

    def __init__(self, read_side: "ReadSide") -> None:
        self._read_side = read_side
        self._history: list[Event] = []
        self._numbers: dict[str, int] = {}

    def add(self, name: str, *, category: str = "", price: Any = None, stock: int = 5, **texts: Any) -> str:
        """texts: its description, and attributes."""
        number = self._numbers[name] = len(self._numbers) + 1
        event = events.product_added(number, stock=stock, description=texts.pop("description", ""))
        added = event.product_added
        added.name, added.category = name, category
        added.price.CopyFrom(price or usd(1000))
        for key, value in texts.items():
            added.attributes.add(name=key, value=value)
        return self.happen(event)

    def happen(self, *later: Event) -> str:
        """Commits the views after these events too; returns a token for them."""
        self._history += later
        history = feed_events(self._history)
        position = self._read_side.position + 1
        keys = {key for _, parts in steps(_SEARCHED, feed_events(later)).steps for key in parts}
        with self._read_side.engine.begin() as connection:
            # As with an index, which follows it.
            logged = [(position, _SEARCHED.view, uuid.UUID(bytes=key)) for key in keys]
            upsert(connection, change, logged)
            for view in ("product_card", "product_search", "search_word"):
                rows = fold(PROJECTIONS[view], history, {}).rows
                present = [
                    (uuid.UUID(bytes=key), row.position, *row.columns, row.value) for key, row in rows.items() if row
                ]
                upsert(connection, VIEWS[view], present)
        return self._read_side.token(self._read_side.advance())

    def number(self, name: str) -> int:
        return self._numbers[name]


def answered(query: StatementQuery[Any], *requests: Message) -> list[bytes]:
    """What queries that are read together are answered, serialised. Raises what is wrong with one of them."""
    check = QueryChecker(2.0)
    wanted = [query.wanted_of(it, check) for it in requests]
    check.finish()
    responses = []
    for answer in query.read(wanted):
        if isinstance(answer, TandemError):
            raise answer
        responses.append(answer.response)
    return responses
