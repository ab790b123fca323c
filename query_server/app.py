"""The query server, wired: read downward and you have seen every query and every dependency."""

from typing import Any

from commerce.query.v1.query_service_pb2 import DESCRIPTOR
from query_server.everything import all_customers, all_orders, all_products
from query_server.orders import recent_orders
from query_server.sales import SalesQuery
from query_server.search.engine import EngineSearch
from query_server.search.explanation import ExplainQuery
from query_server.search.memory import SearchMemory
from query_server.search.query import SearchQuery
from query_server.search.statements import SESSION
from query_server.search.suggestions import SuggestQuery
from query_server.search.synonyms import SynonymsInForce
from query_server.settings import Settings
from query_server.subscriptions import subscriptions
from shop.product_index import PRODUCT_INDEX
from shop.views import CACHED_VIEWS, OWNERS, REVISION, VIEWS
from tandem.queries.encoding import room_for_rows
from tandem.queries.freshness import Freshness
from tandem.queries.index import IndexReader
from tandem.queries.pages import Select
from tandem.queries.server import Further, build_query_server
from tandem.queries.statements import StatementQuery, StatementWorker
from tandem.queries.store import ONE_PLAN, Store
from tandem.runtime.server import Application

SERVICE = DESCRIPTOR.services_by_name["QueryService"]
LISTS: tuple[Select, ...] = (recent_orders, subscriptions, all_customers, all_products, all_orders)

# Searches, or sums, that a thread takes together at most: one that is slow delays those behind it.
_TOGETHER = 16


def build(settings: Settings) -> Application:
    search, reports = settings.search, settings.reports
    room = room_for_rows(settings.server.max_response_bytes)

    def further(store: Store, freshness: Freshness) -> Further:
        sales_store = Store(settings.database, connections=reports.threads)
        search_store = Store(settings.database, connections=search.threads + 1, session=SESSION)
        # What somebody types is completed while others search: with threads and connections of its own.
        suggestion_store = Store(
            settings.database, connections=search.suggestion_threads, session=(*SESSION, *ONE_PLAN)
        )
        synonyms = SynonymsInForce(search.synonyms_file)
        memory = SearchMemory(search.remembered_mib * 2**20)
        reader = (
            IndexReader(PRODUCT_INDEX, search.engine, freshness, rest_seconds=search.engine_rest_seconds)
            if search.engine is not None
            else None
        )
        engine = EngineSearch(reader, search_store) if reader is not None else None
        searches = SearchQuery(search_store, store, memory, room, synonyms.now, engine)
        suggestions = SuggestQuery(suggestion_store, memory, synonyms.now)
        # Each with how many are under way at once, and how many are taken together and may wait.
        others: list[tuple[StatementQuery[Any], int, int, int]] = [
            (searches, search.threads, _TOGETHER, search.max_waiting),
            (ExplainQuery(searches), 1, 1, search.max_waiting),
            (suggestions, search.suggestion_threads, _TOGETHER, search.max_waiting),
            (SalesQuery(sales_store), reports.threads, _TOGETHER, reports.max_waiting),
        ]
        return Further(
            stores=(sales_store, search_store, suggestion_store, synonyms, *([reader] if reader is not None else [])),
            workers=[
                StatementWorker(it, freshness, threads=threads, max_batch=together, max_waiting=waiting)
                for it, threads, together, waiting in others
            ],
        )

    return build_query_server(
        SERVICE,
        settings,
        views=VIEWS,
        indexes=[PRODUCT_INDEX.view] if search.engine is not None else (),
        revision=REVISION,
        cached=CACHED_VIEWS,
        owners=OWNERS,
        lists=LISTS,
        further=further,
        # A search reads the store too.
        further_connections=search.threads,
    )
