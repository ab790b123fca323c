import inspect
import typing
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor

from commerce.query.v1 import query_service_pb2 as queries
from commerce.query.v1.query_service_pb2 import ListRecentOrdersRequest, ListRecentOrdersResponse
from commerce.query.v1.views_pb2 import OrderSummary
from commerce.type.v1.consistency_pb2 import Consistency
from tandem.client import paging
from tandem.client.paging import async_pages, async_rows, pages, rows

LISTS = {
    method.name: (method.input_type.name, method.output_type.name, method.output_type.fields_by_number[1])
    for method in queries.DESCRIPTOR.services_by_name["QueryService"].methods
    if "page_token" in method.input_type.fields_by_name
}
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


@pytest.mark.parametrize("function", [rows, async_rows], ids=["rows", "async_rows"])
def test_every_list_of_the_contract_has_rows_with_a_type(function: Callable[..., Any]) -> None:
    assert len(LISTS) >= 3
    found = {}
    for overload in typing.get_overloads(function):
        signature = inspect.signature(overload)
        [asked], answered = typing.get_args(signature.parameters["call"].annotation)
        response = typing.get_args(answered)[0] if function is async_rows else answered
        assert signature.parameters["request"].annotation is asked
        iterator = signature.return_annotation
        assert typing.get_origin(iterator) is (AsyncIterator if function is async_rows else Iterator)
        found[asked.DESCRIPTOR.name] = (response.DESCRIPTOR.name, typing.get_args(iterator)[0].DESCRIPTOR.name)
    assert found == {request: (response, row_of(first)) for request, response, first in LISTS.values()}


def row_of(field: FieldDescriptor) -> str:
    assert field.message_type is not None
    return field.message_type.name


def test_the_first_field_of_every_page_is_its_list() -> None:
    assert [name for name, (_, _, first) in LISTS.items() if not first.is_repeated] == []


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
        (Consistency(minimize_latency=True), ["", "", ""]),
        (Consistency(fully_consistent=True), ["", "", ""]),
    ],
    ids=str,
)
def test_no_page_is_older_than_the_one_before_unless_that_is_wanted(consistency: Consistency, asked: list[str]) -> None:
    lister = Lister()
    assert list(pages(lister, ListRecentOrdersRequest(consistency=consistency))) == PAGES
    assert [it.consistency.at_least_as_fresh for it in lister.requests] == asked
    kinds = {it.consistency.WhichOneof("requirement") for it in lister.requests[1:]}
    assert kinds == {consistency.WhichOneof("requirement") or "at_least_as_fresh"}


async def test_asyncio_has_the_same_pages_and_rows() -> None:
    lister = Lister()
    assert [it async for it in async_pages(lister.later, ListRecentOrdersRequest())] == PAGES
    assert [it.order_id async for it in async_rows(lister.later, ListRecentOrdersRequest())] == ["1", "2", "3"]
    assert [it.page_token for it in lister.requests] == ["", "b", "c"] * 2


def test_the_modules_own_example_names_what_there_is() -> None:
    assert "rows(session.queries.ListRecentOrders, ListRecentOrdersRequest(" in (paging.__doc__ or "")
    assert "ListRecentOrders" in LISTS
