"""A customer's recent orders, page by page."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc import aio
from sqlalchemy import update

from commerce.query.v1 import query_service_pb2 as queries
from commerce.query.v1.views_pb2 import CustomerProfile, OrderSummary
from commerce.type.v1.consistency_pb2 import Consistency
from shop.views import order_summary
from tests.integration.query_server.conftest import ReadSide, Serve, detail, position_of, reason
from tests.support.builders import identity

if TYPE_CHECKING:
    # The stubs alone know it.
    from commerce.query.v1.query_service_pb2_grpc import QueryServiceAsyncStub

DAY = datetime(2026, 1, 31, tzinfo=UTC)
ADA, BOB = identity("customer", "ada"), identity("customer", "bob")


def place(read_side: ReadSide, number: int, *, customer: str = ADA, at: datetime | None = None) -> str:
    """Orders are placed in threes at the same moment, so that the position has to break ties."""
    key = identity("order", customer, number)
    summary = OrderSummary(order_id=key, customer_id=customer, unit_count=number)
    read_side.put_summary(key, summary, customer=customer, at=at or DAY + timedelta(microseconds=number // 3))
    return key


async def page(
    stub: "QueryServiceAsyncStub", *, customer: str = ADA, size: int = 0, token: str = ""
) -> queries.ListRecentOrdersResponse:
    request = queries.ListRecentOrdersRequest(customer_id=customer, page_size=size, page_token=token)
    return await stub.ListRecentOrders(request, timeout=10)


def ids(response: queries.ListRecentOrdersResponse) -> list[str]:
    return [it.order_id for it in response.orders]


async def all_pages(stub: "QueryServiceAsyncStub", *, size: int, customer: str = ADA) -> list[list[str]]:
    pages, token = [], ""
    while True:
        response = await page(stub, customer=customer, size=size, token=token)
        pages.append(ids(response))
        token = response.next_page_token
        if not token:
            return pages


async def test_orders_come_newest_first_over_all_pages(read_side: ReadSide, serve: Serve) -> None:
    stub = await serve()
    placed = [place(read_side, number) for number in range(23)]
    place(read_side, 1, customer=BOB)

    pages = await all_pages(stub, size=5)

    assert [len(it) for it in pages] == [5, 5, 5, 5, 3]
    assert [it for page in pages for it in page] == placed[::-1]


async def test_a_page_that_ends_with_the_last_order_has_no_next(read_side: ReadSide, serve: Serve) -> None:
    stub = await serve()
    for number in range(4):
        place(read_side, number)

    assert [len(it) for it in await all_pages(stub, size=2)] == [2, 2]


async def test_a_page_holds_twenty_orders_unless_told(read_side: ReadSide, serve: Serve) -> None:
    stub = await serve()
    for number in range(21):
        place(read_side, number)

    assert len((await page(stub)).orders) == 20


async def test_pages_stay_in_place_while_new_orders_arrive(read_side: ReadSide, serve: Serve) -> None:
    stub = await serve()
    placed = [place(read_side, number) for number in range(12)]

    first = await page(stub, size=5)
    for number in range(12, 20):
        place(read_side, number)
    second = await page(stub, size=5, token=first.next_page_token)
    place(read_side, 20)
    third = await page(stub, size=5, token=second.next_page_token)

    assert ids(first) + ids(second) + ids(third) == placed[::-1]
    assert not third.next_page_token


async def test_a_customer_without_orders_has_an_empty_page_with_a_position(read_side: ReadSide, serve: Serve) -> None:
    stub = await serve()
    position = read_side.advance()

    response = await page(stub)

    assert list(response.orders) == []
    assert not response.next_page_token
    assert position_of(response.as_of) == position


async def test_lists_that_are_asked_for_together_do_not_mix(read_side: ReadSide, serve: Serve) -> None:
    stub = await serve()
    ada = [place(read_side, number) for number in range(7)]
    bob = [place(read_side, number, customer=BOB) for number in range(5)]

    answers = await asyncio.gather(
        page(stub, size=3), page(stub, customer=BOB, size=2), page(stub, size=3), page(stub, size=100)
    )

    assert [ids(it) for it in answers] == [ada[:3:-1], bob[:2:-1], ada[:3:-1], ada[::-1]]


async def test_a_list_with_a_token_waits_for_it(read_side: ReadSide, serve: Serve) -> None:
    stub = await serve()
    wanted = await read_side.announce() + 1
    consistency = Consistency(at_least_as_fresh=read_side.token(wanted))
    consistency.max_wait.FromSeconds(10)
    request = queries.ListRecentOrdersRequest(customer_id=ADA, consistency=consistency)
    waiting = asyncio.ensure_future(stub.ListRecentOrders(request, timeout=20))
    assert ids(await page(stub)) == []
    assert not waiting.done()

    placed = place(read_side, 1)
    await read_side.announce()

    assert ids(await waiting) == [placed]


async def test_a_page_token_of_another_customer_is_refused_and_named(read_side: ReadSide, serve: Serve) -> None:
    stub = await serve()
    for number in range(3):
        place(read_side, number)
    token = (await page(stub, size=1)).next_page_token

    with pytest.raises(aio.AioRpcError) as raised:
        await page(stub, customer=BOB, size=101, token=token)

    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    violations = detail(raised.value, error_details_pb2.BadRequest).field_violations
    assert {it.field for it in violations} == {"page_token", "page_size"}


async def test_a_damaged_row_fails_the_pages_that_show_it_alone(read_side: ReadSide, serve: Serve) -> None:
    stub = await serve()
    for number in range(4):
        place(read_side, number)
    place(read_side, 1, customer=BOB)
    with read_side.engine.begin() as connection:
        connection.execute(
            update(order_summary).where(order_summary.c.key == identity("order", ADA, 1)).values(value=b"\xff")
        )
    damaged, other = await asyncio.gather(page(stub), page(stub, customer=BOB), return_exceptions=True)
    assert isinstance(damaged, aio.AioRpcError)
    assert (damaged.code().name, reason(damaged)) == ("UNAVAILABLE", "ROW_DAMAGED")
    assert not isinstance(other, BaseException)
    assert len(ids(other)) == 1
    # Newest first.
    assert len(ids(await page(stub, size=2))) == 2


async def listed(stub: "QueryServiceAsyncStub", size: int) -> list[list[str]]:
    """The ids of all customers, page by page."""
    pages, token = [], ""
    while True:
        answer = await stub.ListCustomers(queries.ListCustomersRequest(page_size=size, page_token=token), timeout=10)
        pages.append([it.customer_id for it in answer.customers])
        token = answer.next_page_token
        if not token:
            return pages


def register(read_side: ReadSide, *numbers: int, name: str = "Ada") -> list[str]:
    keys = [identity("customer", number) for number in numbers]
    for key in keys:
        read_side.put("customer_profile", key, CustomerProfile(customer_id=key, name=name))
    return sorted(keys)


async def test_all_customers_are_listed_once_in_the_order_of_their_ids(read_side: ReadSide, serve: Serve) -> None:
    stub = await serve()
    assert await listed(stub, 5) == [[]]
    known = register(read_side, *range(12))
    assert await listed(stub, 5) == [known[:5], known[5:10], known[10:]]
    assert await listed(stub, 4) == [known[:4], known[4:8], known[8:]]


async def test_who_comes_while_pages_are_read_hides_and_repeats_nobody(read_side: ReadSide, serve: Serve) -> None:
    stub = await serve()
    known = register(read_side, *range(12))
    first = await stub.ListCustomers(queries.ListCustomersRequest(page_size=5))
    register(read_side, *range(12, 30))
    request = queries.ListCustomersRequest(page_size=100, page_token=first.next_page_token)
    rest = await stub.ListCustomers(request)
    shown = [it.customer_id for it in (*first.customers, *rest.customers)]
    assert len(shown) == len(set(shown))
    assert set(known) <= set(shown)


async def test_a_page_of_long_texts_ends_early_and_the_next_goes_on(read_side: ReadSide, serve: Serve) -> None:
    stub = await serve()
    # As large as no customer is: some of a page's hundred fill an answer.
    known = register(read_side, *range(9), name="x" * 2**20)
    pages = await listed(stub, 100)
    assert [it for page in pages for it in page] == known
    assert [len(page) for page in pages] == [2, 2, 2, 2, 1]


async def test_a_list_of_all_says_of_rows_that_are_parked(read_side: ReadSide, serve: Serve) -> None:
    stub = await serve()
    register(read_side, 1)
    since = read_side.park("customer_profile", identity("customer", 2))
    answer = await stub.ListCustomers(queries.ListCustomersRequest())
    assert (answer.parked_rows, answer.parked_since) == (1, since)


async def test_a_page_token_of_another_list_is_refused(read_side: ReadSide, serve: Serve) -> None:
    stub = await serve()
    register(read_side, *range(3))
    token = (await stub.ListCustomers(queries.ListCustomersRequest(page_size=1))).next_page_token
    with pytest.raises(aio.AioRpcError) as refused:
        await stub.ListProducts(queries.ListProductsRequest(page_token=token))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
