"""Lists as iterators: page after page, fetched when they are wanted.

    for account in rows(session.queries.ListAccounts, ListAccountsRequest(owner=owner)):

`pages` gives the pages themselves, with what else is in them; `async_pages` and `async_rows` are for asyncio. A list is
an RPC whose request has `page_token` and `consistency`, and whose response has `next_page_token` and `as_of`, and the
rows as its first field. Rows by their ids are a list too: the response names the `remaining_…_ids` that it had no room
for. The first field's name differs from list to list, so a domain says the types of its own rows (as
shop/client.py does); here a row is of any.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, TypeVar

from google.protobuf.message import Message

_REMAINING = "remaining_"

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)


def pages(call: Callable[[Request], Response], request: Request) -> Iterator[Response]:
    """The pages of a list, from the one that `request` asks for. call: a stub's method.

    No page is older than the one before it, unless the request says `minimize_latency`. Raises CallFailed.
    """
    asked: Request | None = request
    while asked is not None:
        page = call(asked)
        asked = _following(asked, page)
        yield page


async def async_pages(call: Callable[[Request], Awaitable[Response]], request: Request) -> AsyncIterator[Response]:
    """As `pages`, for asyncio."""
    asked: Request | None = request
    while asked is not None:
        page = await call(asked)
        asked = _following(asked, page)
        yield page


def rows(call: Callable[[Request], Message], request: Request) -> Iterator[Any]:
    """The rows of a list, over all its pages. call: a stub's method. Raises CallFailed."""
    for page in pages(call, request):
        yield from _rows_of(page)


async def async_rows(call: Callable[[Request], Awaitable[Message]], request: Request) -> AsyncIterator[Any]:
    """As `rows`, for asyncio."""
    async for page in async_pages(call, request):
        for row in _rows_of(page):
            yield row


def _following(request: Any, page: Any) -> Any:
    """The request for the page after this one; None after the last."""
    names = page.DESCRIPTOR.fields_by_name
    # Of a list, or of rows by their ids.
    [goes_on] = [it for it in names if it == "next_page_token" or it.startswith(_REMAINING)]
    rest = getattr(page, goes_on)
    if not rest:
        return None
    following = type(request)()
    following.CopyFrom(request)
    if goes_on == "next_page_token":
        following.page_token = rest
    else:
        getattr(following, goes_on.removeprefix(_REMAINING))[:] = rest
    consistency = following.consistency
    if consistency.WhichOneof("requirement") in (None, "at_least_as_fresh"):
        # The page includes what the tokens of its request stood for.
        consistency.ClearField("tokens")
        consistency.at_least_as_fresh = page.as_of
    return following


def _rows_of(page: Any) -> Any:
    """The page's first field: the contract keeps to AIP-158, where that is the list."""
    return getattr(page, page.DESCRIPTOR.fields_by_number[1].name)
