"""Rows as large as the contract lets them be reach a client that takes what gRPC's clients take: 4 MiB."""

import uuid
from typing import Any

import pytest

from commerce.query.v1 import query_service_pb2 as queries
from commerce.query.v1.views_pb2 import OrderDetails
from shop.views import VIEWS
from tandem.client.paging import async_rows
from tests.integration.query_server.conftest import ReadSide, Serve
from tests.support.builders import identity
from tests.support.longest import long_views
from tests.support.projecting import upsert

PRODUCTS = [identity("product", number) for number in range(1, 101)]
ORDERS = [identity("order", number) for number in range(1, 31)]


@pytest.fixture(scope="module")
def rows() -> dict[str, list[tuple[Any, ...]]]:
    """By view: a hundred products, and thirty orders of two hundred lines."""
    rows: dict[str, list[tuple[Any, ...]]] = {
        view: [(uuid.UUID(bytes=key), row.position, *row.columns, row.value) for key, row in of_view.items()]
        for view, of_view in long_views(("product_card", "product_search", "order_details")).items()
    }
    [(_, position, *columns, value)] = rows["order_details"]
    rows["order_details"] = [
        (uuid.UUID(it), position, *columns, value + OrderDetails(order_id=it).SerializeToString()) for it in ORDERS
    ]
    wanted = {uuid.UUID(it) for it in (*PRODUCTS, *ORDERS)}
    return {view: [it for it in of_view if it[0] in wanted] for view, of_view in rows.items()}


async def test_what_the_contract_allows_arrives(
    read_side: ReadSide, serve: Serve, rows: dict[str, list[tuple[Any, ...]]]
) -> None:
    with read_side.engine.begin() as connection:
        for view, of_view in rows.items():
            upsert(connection, VIEWS[view], of_view)
    read_side.advance()
    stub = await serve()
    answers: list[int] = []

    def counting(method: Any) -> Any:
        async def call(request: Any) -> Any:
            response = await method(request, timeout=20)
            answers.append(response.ByteSize())
            return response

        return call

    products = queries.BatchGetProductsRequest(product_ids=PRODUCTS)
    assert [it.product_id async for it in async_rows(counting(stub.BatchGetProducts), products)] == PRODUCTS
    orders = queries.BatchGetOrderDetailsRequest(order_ids=ORDERS)
    found = [it async for it in async_rows(counting(stub.BatchGetOrderDetails), orders)]
    assert [it.order_id for it in found] == ORDERS
    assert {len(it.lines) for it in found} == {200}
    search = queries.SearchProductsRequest(page_size=100)
    hits = [it.product.product_id async for it in async_rows(counting(stub.SearchProducts), search)]
    assert sorted(hits) == sorted(PRODUCTS)
    assert len(answers) == 8, "an answer holds as many as it has room for"
    assert max(answers) < 4 * 2**20
