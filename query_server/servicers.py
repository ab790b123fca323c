"""QueryService: each RPC validates, reads, and puts bytes behind bytes."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from uuid import UUID

from commerce.query.v1 import query_service_pb2 as queries
from commerce.type.v1.consistency_pb2 import Consistency
from query_server.batcher import Batcher
from query_server.by_id import MANY_ROWS, ONE_ROW, ManyRows, OneRow
from query_server.encoding import EncodedField
from query_server.lists import LISTS, ListQuery, ListRequest
from query_server.queries.pages import Page, PageKey
from query_server.queries.sales import Sales, SalesKey, sales_key
from query_server.queries.search.request import SEARCHED, SearchKey, search_key
from query_server.queries.search.response import Found
from query_server.validation import Checker
from query_server.views import Views, as_of_text
from query_server.watch import Watches
from shop.views import product_search, sales_summary
from tandem.runtime.calls import Call, StreamCall
from tandem.runtime.errors import NotFound

_WATCHED_ORDER = EncodedField(queries.WatchOrderDetailsResponse, "order_details")
_WATCH_AS_OF = EncodedField(queries.WatchOrderDetailsResponse, "as_of")
_HEARTBEAT = EncodedField(queries.WatchOrderDetailsResponse, "heartbeat")(b"")

_SALES_AS_OF = EncodedField(queries.GetSalesSummaryResponse, "as_of")


class QueryServicer:
    def __init__(
        self,
        views: Views,
        *,
        pages: Batcher[PageKey, Page],
        sales: Batcher[SalesKey, Sales],
        searches: Batcher[SearchKey, Found],
        orders: Watches,
        default_max_wait: float,
    ) -> None:
        self._views = views
        self._pages = pages
        self._sales = sales
        self._searches = searches
        self._orders = orders
        self._default_max_wait = default_max_wait

    async def GetOrderDetails(self, request: queries.GetOrderDetailsRequest, call: Call) -> bytes:
        return await self._get_one(ONE_ROW["GetOrderDetails"], request.order_id, request.consistency, call)

    async def BatchGetOrderDetails(self, request: queries.BatchGetOrderDetailsRequest, call: Call) -> bytes:
        return await self._get_many(MANY_ROWS["BatchGetOrderDetails"], request.order_ids, request.consistency, call)

    async def WatchOrderDetails(
        self, request: queries.WatchOrderDetailsRequest, call: StreamCall
    ) -> AsyncGenerator[bytes, None]:
        check = Checker(self._default_max_wait)
        key = check.uuid("order_id", request.order_id)
        need = check.consistency(request.consistency)
        resume_from = check.resume_from(request.resume_from)
        heartbeat = check.heartbeat_interval(request)
        check.finish()
        async with aclosing(self._orders.watch(key, need, resume_from, heartbeat, call)) as states:
            async for value, as_of, skipped in states:
                rest = queries.WatchOrderDetailsResponse(skipped_versions=skipped).SerializeToString()
                yield (_HEARTBEAT if value is None else _WATCHED_ORDER(value)) + _WATCH_AS_OF(as_of_text(as_of)) + rest

    async def ListRecentOrders(self, request: queries.ListRecentOrdersRequest, call: Call) -> bytes:
        return await self._list(LISTS["ListRecentOrders"], request, call)

    async def GetProduct(self, request: queries.GetProductRequest, call: Call) -> bytes:
        return await self._get_one(ONE_ROW["GetProduct"], request.product_id, request.consistency, call)

    async def BatchGetProducts(self, request: queries.BatchGetProductsRequest, call: Call) -> bytes:
        return await self._get_many(MANY_ROWS["BatchGetProducts"], request.product_ids, request.consistency, call)

    async def SearchProducts(self, request: queries.SearchProductsRequest, call: Call) -> bytes:
        check = Checker(self._default_max_wait)
        wanted = search_key(request, check)
        need = check.consistency(request.consistency)
        check.finish()
        for view in SEARCHED:
            need = await self._views.reach(view, need, call)
        found = await self._views.read(product_search.name, self._searches, wanted, need, call)
        return found.response()

    async def GetCustomer(self, request: queries.GetCustomerRequest, call: Call) -> bytes:
        return await self._get_one(ONE_ROW["GetCustomer"], request.customer_id, request.consistency, call)

    async def GetSubscription(self, request: queries.GetSubscriptionRequest, call: Call) -> bytes:
        return await self._get_one(ONE_ROW["GetSubscription"], request.subscription_id, request.consistency, call)

    async def ListSubscriptions(self, request: queries.ListSubscriptionsRequest, call: Call) -> bytes:
        return await self._list(LISTS["ListSubscriptions"], request, call)

    async def GetSalesSummary(self, request: queries.GetSalesSummaryRequest, call: Call) -> bytes:
        check = Checker(self._default_max_wait)
        wanted = sales_key(request, check)
        need = check.consistency(request.consistency)
        check.finish()
        sales = await self._views.read(sales_summary.name, self._sales, wanted, need, call)
        return sales.summaries + _SALES_AS_OF(as_of_text(sales.as_of))

    async def _get_one(self, query: OneRow, text: str, consistency: Consistency, call: Call) -> bytes:
        check = Checker(self._default_max_wait)
        key = check.uuid(query.id_field, text)
        need = check.consistency(consistency)
        check.finish()
        rows = await self._views.get(query.view, [key], need, call)
        [value] = rows.values
        if value is None:
            raise NotFound(query.resource, f"{query.resource}s/{key}")
        return query.value(value) + query.as_of(rows.as_of)

    async def _get_many(self, query: ManyRows, texts: Sequence[str], consistency: Consistency, call: Call) -> bytes:
        check = Checker(self._default_max_wait)
        keys: list[UUID] = check.uuids(query.id_field, texts)
        need = check.consistency(consistency)
        check.finish()
        rows = await self._views.get(query.view, keys, need, call)
        found = [query.value(value) for value in rows.values if value is not None]
        missing = [
            query.missing(text.encode()) for text, value in zip(texts, rows.values, strict=True) if value is None
        ]
        return b"".join([*found, *missing, query.as_of(rows.as_of)])

    async def _list(self, query: ListQuery, request: ListRequest, call: Call) -> bytes:
        check = Checker(self._default_max_wait)
        wanted = query.page(request, check)
        need = check.consistency(request.consistency)
        check.finish()
        page = await self._views.read(query.view, self._pages, wanted, need, call)
        return query.encode(wanted, page)
