"""The reads of QueryService as they are written without CQRS: joins over normalised tables, when they are asked for.

`python -m benchmarks.contenders.joins URL --port 50072` serves GetOrderDetails, BatchGetOrderDetails, ListRecentOrders
and SearchProducts of Tandem's own contract from the tables in joins_tables.py until SIGTERM.

It is meant to be good at that: grpc.aio on uvloop, SQLAlchemy's asyncio engine with a pool, Core statements that are
built once, without sessions and objects, prepared by the driver, and in autocommit since each answer is one or two
reads; one statement for an order with all its lines, one for many orders, an index for each; full-text search in a
stored tsvector with a GIN index.
"""

import argparse
import asyncio
import re
import signal
import uuid
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

import grpc
import uvloop
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import Row, bindparam, func, literal, select, text, tuple_
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.types import Uuid

from benchmarks.contenders.joins_tables import address, customer, customer_order, order_line, payment, product
from commerce.query.v1 import query_service_pb2 as pb
from commerce.query.v1.query_service_pb2_grpc import QueryServiceServicer, add_QueryServiceServicer_to_server
from commerce.query.v1.views_pb2 import OrderDetails, OrderDetailsLine, OrderSummary, ProductCard
from commerce.type.v1.address_pb2 import Address
from commerce.type.v1.money_pb2 import Money
from commerce.type.v1.product_attribute_pb2 import ProductAttribute

Context = grpc.aio.ServicerContext

# More do not answer faster: PostgreSQL's processes share the same processors.
_POOL = 16
_DEFAULT_PAGE = 20

_ORDER = (
    select(
        customer_order,
        customer.c.name.label("customer_name"),
        address.c.street,
        address.c.city,
        address.c.region,
        address.c.postal_code,
        address.c.country_code,
        order_line.c.product_id,
        product.c.name.label("product_name"),
        order_line.c.unit_price,
        order_line.c.quantity,
        order_line.c.discount_basis_points,
        order_line.c.line_total,
        payment.c.reference,
        payment.c.paid_at,
    )
    .join_from(customer_order, customer, customer.c.id == customer_order.c.customer_id)
    .join(address, address.c.id == customer_order.c.address_id)
    .join(order_line, order_line.c.order_id == customer_order.c.id)
    .join(product, product.c.id == order_line.c.product_id)
    .outerjoin(payment, payment.c.order_id == customer_order.c.id)
)
_ONE_ORDER = _ORDER.where(customer_order.c.id == bindparam("id")).order_by(order_line.c.line_number)
_ORDERS = _ORDER.where(customer_order.c.id == bindparam("ids", type_=ARRAY(Uuid)).any_()).order_by(
    customer_order.c.id, order_line.c.line_number
)

_page = (
    select(customer_order)
    .where(
        customer_order.c.customer_id == bindparam("customer"),
        tuple_(customer_order.c.placed_at, customer_order.c.id) < tuple_(bindparam("at"), bindparam("id")),
    )
    .order_by(customer_order.c.placed_at.desc(), customer_order.c.id.desc())
    .limit(bindparam("most"))
    .subquery()
)
_RECENT = (
    select(
        _page,
        func.count().label("line_count"),
        func.sum(order_line.c.quantity).label("unit_count"),
    )
    .join_from(_page, order_line, order_line.c.order_id == _page.c.id)
    .group_by(*_page.c)
    .order_by(_page.c.placed_at.desc(), _page.c.id.desc())
)

_wanted = func.to_tsquery(text("'english'"), bindparam("query"))
_matching = (product.c.document.op("@@")(_wanted), ~product.c.discontinued)
_found = (
    select(product, func.ts_rank(product.c.document, _wanted).label("rank"))
    .where(*_matching)
    .order_by(func.ts_rank(product.c.document, _wanted).desc(), product.c.id)
    .limit(bindparam("most"))
    .subquery()
)
_MARKS = literal("StartSel=<em>, StopSel=</em>, HighlightAll=true")
_HITS = select(
    _found,
    func.ts_headline(text("'english'"), _found.c.name, _wanted, _MARKS).label("marked_name"),
    func.ts_headline(text("'english'"), _found.c.description, _wanted, _MARKS).label("marked_description"),
).order_by(_found.c.rank.desc(), _found.c.id)
_FACETS = (
    select(
        product.c.category,
        product.c.currency,
        func.count().label("number"),
        func.count().filter(product.c.stock > 0).label("in_stock"),
        func.min(product.c.price).label("lowest"),
        func.max(product.c.price).label("highest"),
    )
    .where(*_matching)
    .group_by(product.c.category, product.c.currency)
)


class Reads(QueryServiceServicer):
    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def GetOrderDetails(
        self, request: pb.GetOrderDetailsRequest, context: "Context[Any, Any]"
    ) -> pb.GetOrderDetailsResponse:
        rows = await self._rows(_ONE_ORDER, {"id": uuid.UUID(request.order_id)})
        if not rows:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no order {request.order_id}")
        return pb.GetOrderDetailsResponse(order_details=_order(rows))

    async def BatchGetOrderDetails(
        self, request: pb.BatchGetOrderDetailsRequest, context: "Context[Any, Any]"
    ) -> pb.BatchGetOrderDetailsResponse:
        rows = await self._rows(_ORDERS, {"ids": [uuid.UUID(it) for it in request.order_ids]})
        found = {str(order_id): _order(list(lines)) for order_id, lines in groupby(rows, key=lambda row: row.id)}
        return pb.BatchGetOrderDetailsResponse(
            order_details=[found[it] for it in request.order_ids if it in found],
            missing_order_ids=[it for it in request.order_ids if it not in found],
        )

    async def ListRecentOrders(
        self, request: pb.ListRecentOrdersRequest, context: "Context[Any, Any]"
    ) -> pb.ListRecentOrdersResponse:
        size = request.page_size or _DEFAULT_PAGE
        at, after = _cursor(request.page_token)
        arguments = {"customer": uuid.UUID(request.customer_id), "at": at, "id": after, "most": size + 1}
        rows = await self._rows(_RECENT, arguments)
        response = pb.ListRecentOrdersResponse(orders=map(_summary, rows[:size]))
        if len(rows) > size:
            last = rows[size - 1]
            response.next_page_token = f"{last.placed_at.isoformat()} {last.id}"
        return response

    async def SearchProducts(
        self, request: pb.SearchProductsRequest, context: "Context[Any, Any]"
    ) -> pb.SearchProductsResponse:
        size = request.page_size or _DEFAULT_PAGE
        query = " & ".join(f"{word}:*" for word in re.findall(r"\w+", request.query))
        async with self._engine.connect() as connection:
            hits = (await connection.execute(_HITS, {"query": query, "most": size})).all()
            facets = (await connection.execute(_FACETS, {"query": query})).all()
        return pb.SearchProductsResponse(hits=map(_hit, hits), facets=_facets(facets))

    async def _rows(self, statement: Any, arguments: dict[str, Any]) -> Sequence[Row[Any]]:
        async with self._engine.connect() as connection:
            return (await connection.execute(statement, arguments)).all()


def _order(rows: Sequence[Row[Any]]) -> OrderDetails:
    """rows: of one order, one for each of its lines."""
    first = rows[0]
    currency = first.currency
    details = OrderDetails(
        order_id=str(first.id),
        customer_id=str(first.customer_id),
        customer_name=first.customer_name,
        status=first.status,
        shipping_address=Address(
            recipient=first.customer_name,
            street=first.street,
            city=first.city,
            region=first.region,
            postal_code=first.postal_code,
            country_code=first.country_code,
        ),
        lines=[
            OrderDetailsLine(
                product_id=str(row.product_id),
                product_name=row.product_name,
                unit_price=Money(minor_units=row.unit_price, currency_code=currency),
                quantity=row.quantity,
                discount_basis_points=row.discount_basis_points,
                line_total=Money(minor_units=row.line_total, currency_code=currency),
            )
            for row in rows
        ],
        subtotal=Money(minor_units=first.total - first.shipping_fee, currency_code=currency),
        shipping_fee=Money(minor_units=first.shipping_fee, currency_code=currency),
        total=Money(minor_units=first.total, currency_code=currency),
        placed_at=_timestamp(first.placed_at),
        payment_reference=first.reference or "",
        version=first.version,
    )
    if first.paid_at is not None:
        details.paid_at.CopyFrom(_timestamp(first.paid_at))
    return details


def _summary(row: Row[Any]) -> OrderSummary:
    return OrderSummary(
        order_id=str(row.id),
        customer_id=str(row.customer_id),
        status=row.status,
        total=Money(minor_units=row.total, currency_code=row.currency),
        line_count=row.line_count,
        unit_count=row.unit_count,
        placed_at=_timestamp(row.placed_at),
        version=row.version,
    )


def _hit(row: Row[Any]) -> pb.ProductHit:
    return pb.ProductHit(
        product=ProductCard(
            product_id=str(row.id),
            name=row.name,
            description=row.description,
            category=row.category,
            price=Money(minor_units=row.price, currency_code=row.currency),
            available=row.stock,
            discontinued=row.discontinued,
            version=row.version,
            attributes=[ProductAttribute(name=name, value=value) for name, value in row.attributes],
        ),
        highlighted_name=row.marked_name,
        highlighted_description=row.marked_description,
    )


def _facets(rows: Iterable[Row[Any]]) -> pb.ProductFacets:
    categories: dict[str, int] = {}
    prices: dict[str, tuple[int, int]] = {}
    in_stock = 0
    for row in rows:
        categories[row.category] = categories.get(row.category, 0) + row.number
        low, high = prices.get(row.currency, (row.lowest, row.highest))
        prices[row.currency] = min(low, row.lowest), max(high, row.highest)
        in_stock += row.in_stock
    return pb.ProductFacets(
        total_count=sum(categories.values()),
        categories=[
            pb.CategoryCount(category=category, count=count)
            for category, count in sorted(categories.items(), key=lambda it: (-it[1], it[0]))
        ],
        in_stock_count=in_stock,
        prices=[
            pb.PriceRange(
                lowest=Money(minor_units=low, currency_code=currency),
                highest=Money(minor_units=high, currency_code=currency),
            )
            for currency, (low, high) in sorted(prices.items())
        ],
    )


def _timestamp(moment: datetime) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(moment)
    return timestamp


def _cursor(token: str) -> tuple[datetime, uuid.UUID]:
    if not token:
        return datetime.max.replace(tzinfo=UTC), uuid.UUID(int=2**128 - 1)
    at, after = token.split(" ")
    return datetime.fromisoformat(at), uuid.UUID(after)


async def serve(url: str, port: int) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    engine = create_async_engine(
        url.replace("postgresql://", "postgresql+psycopg://"),
        isolation_level="AUTOCOMMIT",
        pool_size=_POOL,
        max_overflow=0,
        # From the first time: these are the only statements.
        connect_args={"prepare_threshold": 0},
    )
    server = grpc.aio.server()
    add_QueryServiceServicer_to_server(Reads(engine), server)  # type: ignore[abstract]  # the rest is not asked for
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await stop.wait()
    await server.stop(0)
    await engine.dispose()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.contenders.joins", description=__doc__)
    parser.add_argument("url", help="the database in which joins_tables.fill has made the tables")
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    uvloop.run(serve(arguments.url, arguments.port))


if __name__ == "__main__":
    main()
