"""The query server, wired: read downward and you have seen every query and every dependency."""

import asyncio

from commerce.query.v1.query_service_pb2 import DESCRIPTOR
from query_server.orders import recent_orders
from query_server.sales import SalesQuery
from query_server.search.memory import SearchMemory
from query_server.search.query import SearchQuery
from query_server.search.statements import SESSION
from query_server.settings import Settings
from query_server.subscriptions import subscriptions
from shop.views import CACHED_VIEWS, OWNERS, REVISION, VIEWS
from tandem.feed.token_signature import sign_tokens
from tandem.queries.damage import DamageReports
from tandem.queries.encoding import room_for_rows
from tandem.queries.freshness import Freshness
from tandem.queries.head import Head
from tandem.queries.owners import owner_field, owner_fields
from tandem.queries.pages import ListQuery, Select
from tandem.queries.rows import RowQueries, queries_by_id
from tandem.queries.statements import StatementWorker
from tandem.queries.store import ONE_PLAN, Store
from tandem.queries.watch import Watches
from tandem.read_store.tables import CHANNEL, SCHEMA
from tandem.runtime.listener import Listener
from tandem.runtime.server import Application, Service
from tandem.runtime.worker import Worker

SERVICE = DESCRIPTOR.services_by_name["QueryService"]
LISTS: dict[str, Select] = {"ListRecentOrders": recent_orders, "ListSubscriptions": subscriptions}

# Searches, or sums, that a thread takes together at most: one that is slow delays those behind it.
_TOGETHER = 16


def build(settings: Settings) -> Application:
    sign_tokens(settings.tokens)
    reading, search, reports = settings.reader, settings.search, settings.reports
    # One for each thread that reads; for the positions that waiters ask for, watches, readiness, and damaged rows.
    connections = (1 + len(LISTS)) * reading.threads + search.threads + 4
    store = Store(settings.database, connections=connections, session=ONE_PLAN)
    sales_store = Store(settings.database, connections=reports.threads)
    search_store = Store(settings.database, connections=search.threads, session=SESSION)

    head = Head(settings.feed_database)
    listener = Listener(settings.database, CHANNEL, "tandem-query-listen")
    freshness = Freshness(settings.freshness, listener, store.positions, VIEWS, head, with_cache=settings.cache.enabled)

    by_id = RowQueries(queries_by_id(SERVICE, CACHED_VIEWS, OWNERS), store, freshness, reading, settings.cache)
    room = room_for_rows(settings.server.max_response_bytes)
    lists = [ListQuery(SERVICE.methods_by_name[rpc], select, store) for rpc, select in LISTS.items()]
    searches = SearchQuery(search_store, store, SearchMemory(search.remembered_mib * 2**20), room)
    sales = SalesQuery(sales_store)
    statements: list[Worker] = [
        *[
            StatementWorker(
                it, freshness, threads=reading.threads, max_batch=reading.max_batch, max_waiting=reading.max_waiting
            )
            for it in lists
        ],
        StatementWorker(
            searches, freshness, threads=search.threads, max_batch=_TOGETHER, max_waiting=search.max_waiting
        ),
        StatementWorker(
            sales, freshness, threads=reports.threads, max_batch=_TOGETHER, max_waiting=reports.max_waiting
        ),
    ]
    watch = SERVICE.methods_by_name["WatchOrderDetails"]
    watches = Watches(
        watch, store, freshness, settings.watch, max_batch=reading.max_batch, owner=owner_field(watch, OWNERS)
    )
    damage = DamageReports(store)

    async def ready() -> bool:
        return await asyncio.to_thread(lambda: store.has_revision(SCHEMA, REVISION) and store.are_filled(VIEWS))

    return Application(
        name="query_server",
        server=settings.server,
        services=(
            Service(
                SERVICE,
                workers={**by_id.workers, **{it.name: it for it in statements}},
                streams={watch.name: watches.answer},
                owner_fields=owner_fields(SERVICE, OWNERS, look={*by_id.workers, watch.name}),
            ),
        ),
        ready=ready,
        components=(store, sales_store, search_store, head, by_id, *statements, freshness, watches, damage),
    )
