"""A real company's two years of trading, replayed through CommandService and read back to the cent."""

import asyncio
from collections.abc import Callable
from datetime import date, timedelta
from typing import Any

import psycopg
import pytest

from commerce.command.v1 import command_service_pb2 as commands
from commerce.query.v1 import query_service_pb2 as queries
from commerce.query.v1.sales_pb2 import SalesSummary
from commerce.query.v1.views_pb2 import OrderSummary
from commerce.type.v1.consistency_pb2 import Consistency
from tandem.testing.stack import up_to
from tests.support.builders import identity
from tests.support.northwind import FOLDER, Northwind
from tests.support.northwind_sales import NorthwindSales
from tests.support.stack import AsyncStubs, Stack

pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="the Northwind data is not beside this project, in ../shared/data/northwind"
)

DAY = timedelta(days=1)
# What the files do not tell.
_UNTOLD = ("version", "paid_at", "registered_at", "added_at")


def told(view: Any) -> Any:
    copy = type(view)()
    copy.CopyFrom(view)
    for field in _UNTOLD:
        if field in copy.DESCRIPTOR.fields_by_name:
            copy.ClearField(field)
    return copy


async def test_every_view_of_northwind_equals_the_join_of_its_files(
    new_stack: Callable[..., Stack], fresh_database: Callable[[], str]
) -> None:
    northwind = Northwind.read()
    stack = new_stack(cache_nodes=up_to(1))
    async with stack.async_stubs() as stubs:
        fresh = Consistency(at_least_as_fresh=await northwind.replay(stubs.commands))
        await _orders_are_equal(northwind, stubs, fresh)
        await _recent_orders_are_equal(northwind, stubs, fresh)
        await _products_are_equal(northwind, stubs, fresh)
        await _customers_are_equal(northwind, stubs, fresh)
        with psycopg.connect(fresh_database(), autocommit=True) as scratch:
            await _sales_are_equal(northwind, NorthwindSales(scratch, northwind), stubs, fresh)


async def _orders_are_equal(northwind: Northwind, stubs: AsyncStubs, fresh: Consistency) -> None:
    ids = northwind.order_ids()
    assert len(ids) == 830
    found: dict[str, Any] = {}
    for start in range(0, len(ids), 100):
        request = queries.BatchGetOrderDetailsRequest(order_ids=ids[start : start + 100], consistency=fresh)
        answer = await stubs.queries.BatchGetOrderDetails(request)
        assert not answer.missing_order_ids
        found |= {it.order_id: told(it) for it in answer.order_details}
    assert found == northwind.order_details
    one = await stubs.queries.GetOrderDetails(queries.GetOrderDetailsRequest(order_id=ids[0], consistency=fresh))
    assert told(one.order_details) == northwind.order_details[ids[0]]


async def _recent_orders_are_equal(northwind: Northwind, stubs: AsyncStubs, fresh: Consistency) -> None:
    pages = 0
    for customer_id in northwind.customer_ids():
        listed: list[OrderSummary] = []
        token = ""
        while True:
            request = queries.ListRecentOrdersRequest(
                customer_id=customer_id, page_size=4, page_token=token, consistency=fresh
            )
            page = await stubs.queries.ListRecentOrders(request)
            listed += [told(it) for it in page.orders]
            pages += 1
            token = page.next_page_token
            if not token:
                break
        assert listed == northwind.recent_orders(customer_id)
    assert pages > 2 * len(northwind.customers), "most customers have several pages"


async def _products_are_equal(northwind: Northwind, stubs: AsyncStubs, fresh: Consistency) -> None:
    expected = northwind.product_cards()
    request = queries.BatchGetProductsRequest(product_ids=list(expected), consistency=fresh)
    answer = await stubs.queries.BatchGetProducts(request)
    assert {it.product_id: told(it) for it in answer.products} == expected


async def _customers_are_equal(northwind: Northwind, stubs: AsyncStubs, fresh: Consistency) -> None:
    for customer_id, expected in northwind.customer_profiles().items():
        request = queries.GetCustomerRequest(customer_id=customer_id, consistency=fresh)
        assert told((await stubs.queries.GetCustomer(request)).customer) == expected


async def _sales_are_equal(northwind: Northwind, sql: NorthwindSales, stubs: AsyncStubs, fresh: Consistency) -> None:
    """Each day, days without orders too, and ranges, equal the SQL sums; and again with orders cancelled."""
    first, last = sql.days()[0] - DAY, sql.days()[-1] + DAY
    every_day = [first + number * DAY for number in range((last - first).days + 1)]
    assert len(sql.days()) > 400
    await _ranges_are_equal(sql, stubs, [(day, day) for day in every_day], fresh)
    ranges = [
        (first, first + 365 * DAY),
        (last - 365 * DAY, last),
        (date(1997, 1, 1), date(1997, 12, 31)),
        (date(1996, 12, 31), date(1997, 3, 1)),
        *((day, day + number * DAY) for number, day in enumerate(every_day[:-60:50], start=20)),
    ]
    await _ranges_are_equal(sql, stubs, ranges, fresh)

    unshipped = [it for it in northwind.orders if not it["shipped_date"]]
    assert len(unshipped) > 10
    for order in unshipped:
        order_id = identity("northwind", "order", order["order_id"])
        answer = await stubs.commands.CancelOrder(commands.CancelOrderRequest(order_id=order_id))
    sql.cancel(it["order_id"] for it in unshipped)
    after = Consistency(at_least_as_fresh=answer.receipt.consistency_token)
    days = sorted({date.fromisoformat(it["order_date"]) for it in unshipped})
    await _ranges_are_equal(sql, stubs, [(day, day) for day in days] + ranges, after)


async def _ranges_are_equal(
    sql: NorthwindSales, stubs: AsyncStubs, ranges: list[tuple[date, date]], fresh: Consistency
) -> None:
    async def ask(start: date, end: date) -> list[SalesSummary]:
        request = queries.GetSalesSummaryRequest(
            start_date=str(start), end_date=str(end), top_products=100, consistency=fresh
        )
        return list((await stubs.queries.GetSalesSummary(request)).summaries)

    for number in range(0, len(ranges), 50):
        some = ranges[number : number + 50]
        answers = await asyncio.gather(*(ask(*it) for it in some))
        for it, answer in zip(some, answers, strict=True):
            assert answer == sql.summaries(*it, products=100), it
