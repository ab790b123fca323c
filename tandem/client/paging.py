"""Lists as iterators: page after page, fetched when they are wanted.

    for order in rows(session.queries.ListRecentOrders, ListRecentOrdersRequest(customer_id=customer)):

`pages` gives the pages themselves, with what else is in them; `async_pages` and `async_rows` are for asyncio.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Protocol, TypeVar, overload

from google.protobuf.message import Message

from commerce.query.v1.query_service_pb2 import (
    ListRecentOrdersRequest,
    ListRecentOrdersResponse,
    ListSubscriptionsRequest,
    ListSubscriptionsResponse,
    ProductHit,
    SearchProductsRequest,
    SearchProductsResponse,
)
from commerce.query.v1.views_pb2 import OrderSummary, SubscriptionDetails
from commerce.type.v1.consistency_pb2 import Consistency


class PageRequest(Protocol):
    """A request for a page of a list."""

    page_token: str

    @property
    def consistency(self) -> Consistency: ...

    def CopyFrom(self, other: Any, /) -> None: ...  # noqa: N802 - Protobuf's name


class Page(Protocol):
    """The answer to it."""

    @property
    def next_page_token(self) -> str: ...

    @property
    def as_of(self) -> str: ...


Request = TypeVar("Request", bound=PageRequest)
Response = TypeVar("Response", bound=Page)


def pages(call: Callable[[Request], Response], request: Request) -> Iterator[Response]:
    """The pages of a list, from the one that `request` asks for. call: a stub's method.

    No page is older than the one before it, unless the request says `minimize_latency`. Raises CallFailed.
    """
    following = _copy(request)
    while True:
        page = call(following)
        yield page
        if not page.next_page_token:
            return
        _turn(following, page)


async def async_pages(call: Callable[[Request], Awaitable[Response]], request: Request) -> AsyncIterator[Response]:
    """As `pages`, for asyncio."""
    following = _copy(request)
    while True:
        page = await call(following)
        yield page
        if not page.next_page_token:
            return
        _turn(following, page)


# One overload for each list of the contract; a test says when one is missing.


@overload
def rows(
    call: Callable[[ListRecentOrdersRequest], ListRecentOrdersResponse], request: ListRecentOrdersRequest
) -> Iterator[OrderSummary]: ...
@overload
def rows(
    call: Callable[[ListSubscriptionsRequest], ListSubscriptionsResponse], request: ListSubscriptionsRequest
) -> Iterator[SubscriptionDetails]: ...
@overload
def rows(
    call: Callable[[SearchProductsRequest], SearchProductsResponse], request: SearchProductsRequest
) -> Iterator[ProductHit]: ...
def rows(call: Callable[[Any], Any], request: Any) -> Iterator[Any]:
    """The rows of a list, over all its pages. call: a stub's method. Raises CallFailed."""
    for page in pages(call, request):
        yield from _rows_of(page)


@overload
def async_rows(
    call: Callable[[ListRecentOrdersRequest], Awaitable[ListRecentOrdersResponse]], request: ListRecentOrdersRequest
) -> AsyncIterator[OrderSummary]: ...
@overload
def async_rows(
    call: Callable[[ListSubscriptionsRequest], Awaitable[ListSubscriptionsResponse]], request: ListSubscriptionsRequest
) -> AsyncIterator[SubscriptionDetails]: ...
@overload
def async_rows(
    call: Callable[[SearchProductsRequest], Awaitable[SearchProductsResponse]], request: SearchProductsRequest
) -> AsyncIterator[ProductHit]: ...
async def async_rows(call: Callable[[Any], Awaitable[Any]], request: Any) -> AsyncIterator[Any]:
    """As `rows`, for asyncio."""
    async for page in async_pages(call, request):
        for row in _rows_of(page):
            yield row


def _copy(request: Request) -> Request:
    copy = type(request)()
    copy.CopyFrom(request)
    return copy


def _turn(request: PageRequest, page: Page) -> None:
    """Makes the request for the page after this one."""
    request.page_token = page.next_page_token
    if request.consistency.WhichOneof("requirement") in (None, "at_least_as_fresh"):
        request.consistency.at_least_as_fresh = page.as_of


def _rows_of(page: Any) -> Any:
    """The page's first field: the contract keeps to AIP-158, where that is the list."""
    assert isinstance(page, Message)
    return getattr(page, page.DESCRIPTOR.fields_by_number[1].name)
