"""Queries for pages of lists: what they are made of. Where their rows are is in `query_server.queries`."""

from collections.abc import Callable
from typing import Any

from google.protobuf.message import Message

from commerce.query.v1 import query_service_pb2 as queries
from query_server.encoding import EncodedField
from query_server.page_token import encode_page_token
from query_server.queries.orders import recent_orders
from query_server.queries.pages import Page, PageKey, Selection
from query_server.queries.subscriptions import subscriptions
from query_server.validation import Checker
from query_server.views import as_of_text
from shop.views import order_summary, subscription_details

ListRequest = queries.ListRecentOrdersRequest | queries.ListSubscriptionsRequest


class ListQuery:
    """A query for pages of a list: which rows it wants, and how the request and the response are put together."""

    def __init__(
        self,
        view: str,
        request: type[Message],
        response: type[Message],
        field: str,
        selection: Callable[[Any, Checker], Selection],
    ) -> None:
        """selection: of a request; it tells its Checker what is wrong."""
        self.view = view
        self._name = request.DESCRIPTOR.name.removesuffix("Request")
        self._selection = selection
        self._value = EncodedField(response, field)
        self._next_page_token = EncodedField(response, "next_page_token")
        self._as_of = EncodedField(response, "as_of")

    def page(self, message: Any, check: Checker) -> PageKey:
        """What a request asks for; `check` is told what is wrong."""
        selection = self._selection(message, check)
        size = check.page_size(message.page_size)
        return PageKey(selection, check.page_token(message.page_token, *self._query(selection)), size)

    def encode(self, wanted: PageKey, page: Page) -> bytes:
        """The response."""
        parts = [self._value.each(page.rows)]
        if page.last is not None:
            token = encode_page_token(page.last, *self._query(wanted.selection))
            parts.append(self._next_page_token(token.encode()))
        parts.append(self._as_of(as_of_text(page.as_of)))
        return b"".join(parts)

    def _query(self, selection: Selection) -> tuple[str, ...]:
        """What page tokens are bound to."""
        return self._name, *selection.words


LISTS = {
    "ListRecentOrders": ListQuery(
        order_summary.name, queries.ListRecentOrdersRequest, queries.ListRecentOrdersResponse, "orders", recent_orders
    ),
    "ListSubscriptions": ListQuery(
        subscription_details.name,
        queries.ListSubscriptionsRequest,
        queries.ListSubscriptionsResponse,
        "subscriptions",
        subscriptions,
    ),
}
"""By RPC."""
