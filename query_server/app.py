"""The query server, wired: read downward and you have seen every query and every dependency."""

from commerce.query.v1.query_service_pb2 import DESCRIPTOR
from query_server.orders import recent_orders
from query_server.sales import SalesQuery
from query_server.search.memory import SearchMemory
from query_server.search.query import SearchQuery
from query_server.search.statements import SESSION
from query_server.settings import Settings
from query_server.subscriptions import subscriptions
from shop.views import CACHED_VIEWS, OWNERS, REVISION, VIEWS
from tandem.queries.encoding import room_for_rows
from tandem.queries.freshness import Freshness
from tandem.queries.pages import Select
from tandem.queries.server import Further, build_query_server
from tandem.queries.statements import StatementWorker
from tandem.queries.store import Store
from tandem.runtime.server import Application

SERVICE = DESCRIPTOR.services_by_name["QueryService"]
LISTS: dict[str, Select] = {"ListRecentOrders": recent_orders, "ListSubscriptions": subscriptions}

# Searches, or sums, that a thread takes together at most: one that is slow delays those behind it.
_TOGETHER = 16


def build(settings: Settings) -> Application:
    search, reports = settings.search, settings.reports
    room = room_for_rows(settings.server.max_response_bytes)

    def further(store: Store, freshness: Freshness) -> Further:
        sales_store = Store(settings.database, connections=reports.threads)
        search_store = Store(settings.database, connections=search.threads, session=SESSION)
        searches = SearchQuery(search_store, store, SearchMemory(search.remembered_mib * 2**20), room)
        return Further(
            stores=(sales_store, search_store),
            workers=(
                StatementWorker(
                    searches, freshness, threads=search.threads, max_batch=_TOGETHER, max_waiting=search.max_waiting
                ),
                StatementWorker(
                    SalesQuery(sales_store),
                    freshness,
                    threads=reports.threads,
                    max_batch=_TOGETHER,
                    max_waiting=reports.max_waiting,
                ),
            ),
        )

    return build_query_server(
        SERVICE,
        settings,
        views=VIEWS,
        revision=REVISION,
        cached=CACHED_VIEWS,
        owners=OWNERS,
        lists=LISTS,
        watches=["WatchOrderDetails"],
        further=further,
        # A search reads the store too.
        further_connections=search.threads,
    )
