"""A real company's two years of trading, replayed through CommandService and read back to the cent."""

from collections.abc import Callable
from typing import Any

import pytest

from commerce.query.v1 import query_service_pb2 as queries
from commerce.query.v1.views_pb2 import OrderSummary
from commerce.type.v1.consistency_pb2 import Consistency
from tests.support.northwind import FOLDER, Northwind
from tests.support.stack import AsyncStubs, Stack, up_to

pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="the Northwind data is not beside this project, in ../shared/data/northwind"
)

# What the files do not tell.
_UNTOLD = ("version", "paid_at", "registered_at")


def told(view: Any) -> Any:
    copy = type(view)()
    copy.CopyFrom(view)
    for field in _UNTOLD:
        if field in copy.DESCRIPTOR.fields_by_name:
            copy.ClearField(field)
    return copy


async def test_every_view_of_northwind_equals_the_join_of_its_files(new_stack: Callable[..., Stack]) -> None:
    northwind = Northwind.read()
    stack = new_stack(cache_nodes=up_to(1))
    async with stack.async_stubs() as stubs:
        fresh = Consistency(at_least_as_fresh=await northwind.replay(stubs.commands))
        await _orders_are_equal(northwind, stubs, fresh)
        await _recent_orders_are_equal(northwind, stubs, fresh)
        await _products_are_equal(northwind, stubs, fresh)
        await _customers_are_equal(northwind, stubs, fresh)


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
