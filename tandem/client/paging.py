"""Lists as iterators: page after page, fetched when they are wanted.

    for account in rows(session.queries.ListAccounts, ListAccountsRequest(owner=owner)):

`pages` gives the pages themselves, with what else is in them; `async_pages` and `async_rows` are for asyncio. A list is
an RPC whose request has `page_token` and `consistency`, and whose response has `next_page_token` and `as_of`, and the
rows as its first field. That field's name differs from list to list, so a domain says the types of its own rows (as
shop/client.py does); here a row is of any.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Protocol, TypeVar


class PageRequest(Protocol):
    """A request for a page of a list."""

    page_token: str

    @property
    def consistency(self) -> Any: ...

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
        _go_on(following, page)


async def async_pages(call: Callable[[Request], Awaitable[Response]], request: Request) -> AsyncIterator[Response]:
    """As `pages`, for asyncio."""
    following = _copy(request)
    while True:
        page = await call(following)
        yield page
        if not page.next_page_token:
            return
        _go_on(following, page)


def rows(call: Callable[[Request], Page], request: Request) -> Iterator[Any]:
    """The rows of a list, over all its pages. call: a stub's method. Raises CallFailed."""
    for page in pages(call, request):
        yield from _rows_of(page)


async def async_rows(call: Callable[[Request], Awaitable[Page]], request: Request) -> AsyncIterator[Any]:
    """As `rows`, for asyncio."""
    async for page in async_pages(call, request):
        for row in _rows_of(page):
            yield row


def _copy(request: Request) -> Request:
    copy = type(request)()
    copy.CopyFrom(request)
    return copy


def _go_on(request: PageRequest, page: Page) -> None:
    """Makes the request for the page after this one."""
    request.page_token = page.next_page_token
    consistency = request.consistency
    if consistency.WhichOneof("requirement") in (None, "at_least_as_fresh"):
        # The page includes what the tokens of its request stood for.
        consistency.ClearField("tokens")
        consistency.at_least_as_fresh = page.as_of


def _rows_of(page: Any) -> Any:
    """The page's first field: the contract keeps to AIP-158, where that is the list."""
    return getattr(page, page.DESCRIPTOR.fields_by_number[1].name)
