import pytest

from commerce.query.v1.query_service_pb2 import (
    BatchGetProductsRequest,
    BatchGetProductsResponse,
    ListRecentOrdersRequest,
    ListRecentOrdersResponse,
)
from commerce.query.v1.views_pb2 import OrderSummary, ProductCard
from commerce.type.v1.consistency_pb2 import Consistency
from tandem.client.paging import async_pages, async_rows, pages, rows

PAGES = [
    ListRecentOrdersResponse(orders=[OrderSummary(order_id="1"), OrderSummary(order_id="2")], next_page_token="b"),
    ListRecentOrdersResponse(next_page_token="c"),
    ListRecentOrdersResponse(orders=[OrderSummary(order_id="3")]),
]
for number, page in enumerate(PAGES):
    page.as_of = f"1as_of_{number}"


class Lister:
    """A stub's method that has three pages."""

    def __init__(self) -> None:
        self.requests: list[ListRecentOrdersRequest] = []

    def __call__(self, request: ListRecentOrdersRequest) -> ListRecentOrdersResponse:
        copy = ListRecentOrdersRequest()
        copy.CopyFrom(request)
        self.requests.append(copy)
        return PAGES[{"": 0, "b": 1, "c": 2}[request.page_token]]

    async def later(self, request: ListRecentOrdersRequest) -> ListRecentOrdersResponse:
        return self(request)


def test_rows_come_from_page_after_page_when_they_are_wanted() -> None:
    lister = Lister()
    request = ListRecentOrdersRequest(customer_id="9", page_size=2)
    iterator = rows(lister, request)
    assert lister.requests == []
    assert [next(iterator).order_id, next(iterator).order_id] == ["1", "2"]
    assert len(lister.requests) == 1
    assert [it.order_id for it in iterator] == ["3"]
    assert [(it.customer_id, it.page_size, it.page_token) for it in lister.requests] == [
        ("9", 2, ""),
        ("9", 2, "b"),
        ("9", 2, "c"),
    ]
    assert request == ListRecentOrdersRequest(customer_id="9", page_size=2)


@pytest.mark.parametrize(
    ("consistency", "asked"),
    [
        (Consistency(), ["", "1as_of_0", "1as_of_1"]),
        (Consistency(at_least_as_fresh="1t"), ["1t", "1as_of_0", "1as_of_1"]),
        (Consistency(at_least_as_fresh="1t", tokens=["1u"]), ["1t", "1as_of_0", "1as_of_1"]),
        (Consistency(tokens=["1t", "1u"]), ["", "1as_of_0", "1as_of_1"]),
        (Consistency(minimize_latency=True), ["", "", ""]),
        (Consistency(fully_consistent=True), ["", "", ""]),
    ],
    ids=str,
)
def test_no_page_is_older_than_the_one_before_unless_that_is_wanted(consistency: Consistency, asked: list[str]) -> None:
    lister = Lister()
    assert list(pages(lister, ListRecentOrdersRequest(consistency=consistency))) == PAGES
    assert [it.consistency.at_least_as_fresh for it in lister.requests] == asked
    assert list(lister.requests[0].consistency.tokens) == list(consistency.tokens)
    assert not any(it.consistency.tokens for it in lister.requests[1:]), "the page before includes them"
    kinds = {it.consistency.WhichOneof("requirement") for it in lister.requests[1:]}
    assert kinds == {consistency.WhichOneof("requirement") or "at_least_as_fresh"}


def test_rows_by_their_ids_go_on_with_those_that_an_answer_had_no_room_for() -> None:
    asked: list[BatchGetProductsRequest] = []

    def answer(request: BatchGetProductsRequest) -> BatchGetProductsResponse:
        asked.append(request)
        first, *rest = request.product_ids
        return BatchGetProductsResponse(
            products=[ProductCard(product_id=first)], remaining_product_ids=rest, as_of="1t"
        )

    request = BatchGetProductsRequest(product_ids=["a", "b", "c"])
    assert [it.product_id for it in rows(answer, request)] == ["a", "b", "c"]
    assert [list(it.product_ids) for it in asked] == [["a", "b", "c"], ["b", "c"], ["c"]]
    assert [it.consistency.at_least_as_fresh for it in asked] == ["", "1t", "1t"]


async def test_asyncio_has_the_same_pages_and_rows() -> None:
    lister = Lister()
    assert [it async for it in async_pages(lister.later, ListRecentOrdersRequest())] == PAGES
    assert [it.order_id async for it in async_rows(lister.later, ListRecentOrdersRequest())] == ["1", "2", "3"]
    assert [it.page_token for it in lister.requests] == ["", "b", "c"] * 2
