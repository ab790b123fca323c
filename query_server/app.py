"""The query server, wired: read downward and you have seen every dependency."""

import asyncio
from functools import partial

from commerce.query.v1.query_service_pb2 import DESCRIPTOR
from commerce.query.v1.views_pb2 import OrderDetails
from query_server.batcher import Batcher
from query_server.by_id import MANY_ROWS, ONE_ROW, ManyAtOnce, OneAtOnce
from query_server.cache import Cache, Resting
from query_server.database import ONE_PLAN, ReadDatabase
from query_server.freshness import Freshness
from query_server.head import Head
from query_server.lists import LISTS
from query_server.queries.pages import read_pages
from query_server.queries.sales import SalesReader
from query_server.queries.search.memory import SearchMemory
from query_server.queries.search.reader import SearchReader
from query_server.queries.search.statements import SESSION
from query_server.reader import CacheReader, DatabaseReader, Reader
from query_server.servicers import QueryServicer
from query_server.settings import Settings
from query_server.together import PagesTogether, SearchesTogether
from query_server.views import Views
from query_server.watch import Watches
from shop.views import order_details
from tandem.read_store.tables import CHANNEL
from tandem.runtime.calls import AnswerAtOnce
from tandem.runtime.desk import Desk
from tandem.runtime.listener import Listener
from tandem.runtime.process import Application, Service

# That a thread takes together at most: one that is slow delays those behind it.
_SEARCHES = 16


def build(settings: Settings) -> Application:
    reading = settings.reader
    threads = range(reading.threads)
    limits = {"max_batch": reading.max_batch, "max_waiting": reading.max_waiting}
    reports = settings.reports
    # At the desk, and as many that read for the method.
    searching = 2 * settings.search.threads
    # A connection for each thread that reads and for each desk, one for the positions that waiters ask for, one for
    # watches, one for readiness.
    connections = 2 * reading.threads + len(LISTS) + searching + 3
    database = ReadDatabase(settings.database, connections=connections, session=ONE_PLAN)
    summed = ReadDatabase(settings.database, connections=reports.threads)
    searched = ReadDatabase(settings.database, connections=searching, session=SESSION)
    listener = Listener(settings.database, CHANNEL, "tandem-query-listen")
    freshness = Freshness(settings.freshness, listener, database.positions, with_cache=settings.cache.enabled)
    # Connections to the cache are a thread's own: some read it, the others fill it.
    resting = Resting(settings.cache.rest_seconds)
    reads, fills = ([Cache(settings.cache, resting) for _ in threads] for _ in ("read", "fill"))
    cached = Batcher("cache", [CacheReader(cache, freshness) for cache in reads], **limits)
    stored = Batcher("database", [DatabaseReader(database, cache, freshness) for cache in fills], **limits)
    pages = Batcher("list", [partial(read_pages, database) for _ in threads], **limits)
    # One at a time: sums of two ranges share nothing.
    sums = [SalesReader(summed) for _ in range(reports.threads)]
    sales = Batcher("sales", sums, max_batch=1, max_waiting=reports.max_waiting)
    search = SearchReader(searched, database, SearchMemory(settings.search.remembered_mib * 2**20))
    searchers = [search] * settings.search.threads
    searches = Batcher("search", searchers, max_batch=1, max_waiting=settings.search.max_waiting)
    at_once = Cache(settings.cache, resting)
    shortcuts: dict[str, AnswerAtOnce] = {
        **{rpc: OneAtOnce(query, at_once, freshness) for rpc, query in ONE_ROW.items()},
        **{rpc: ManyAtOnce(query, at_once, freshness) for rpc, query in MANY_ROWS.items()},
    }
    desks = {rpc: Desk(rpc, [PagesTogether(query, database, freshness)], **limits) for rpc, query in LISTS.items()}
    desks["SearchProducts"] = Desk(
        "SearchProducts",
        [SearchesTogether(it, freshness) for it in searchers],
        max_batch=_SEARCHES,
        max_waiting=settings.search.max_waiting,
    )
    head = Head(settings.feed_database)
    batchers = (cached, stored, pages, sales, searches)
    views = Views(freshness, Reader(freshness, cached, stored), head)
    orders = Watches(
        order_details.name,
        "order",
        lambda value: OrderDetails.FromString(value).version,
        freshness=freshness,
        views=views,
        source=database,
        settings=settings.watch,
        max_batch=reading.max_batch,
    )

    async def ready() -> bool:
        return await asyncio.to_thread(database.is_ready)

    servicer = QueryServicer(
        views,
        pages=pages,
        sales=sales,
        searches=searches,
        orders=orders,
        default_max_wait=settings.freshness.default_max_wait,
    )
    return Application(
        name="query_server",
        server=settings.server,
        services=(
            Service(
                DESCRIPTOR.services_by_name["QueryService"],
                servicer,
                shortcuts=shortcuts,
                later={rpc: desk.take for rpc, desk in desks.items()},
            ),
        ),
        ready=ready,
        components=(
            database,
            summed,
            searched,
            *reads,
            *fills,
            at_once,
            *batchers,
            freshness,
            head,
            *desks.values(),
            orders,
        ),
    )
