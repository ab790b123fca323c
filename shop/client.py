"""The shop's client: sessions of its three services, its lists with the types of their rows, its reasons for errors.

    with Client(commands="127.0.0.1:50051", queries="127.0.0.1:50052") as client:
        session = client.session()
        placed = session.commands.PlaceOrder(PlaceOrderRequest(...))
        order = session.queries.GetOrderDetails(GetOrderDetailsRequest(order_id=placed.order_id)).order_details

        for order in rows(session.queries.ListRecentOrders, ListRecentOrdersRequest(customer_id=customer)):

All else is the engine's: `tandem.client` has the errors, pages, streams that go on, and optimistic pages.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from enum import StrEnum
from typing import Any, Unpack, overload

from commerce.command.v1.command_service_pb2_grpc import CommandServiceStub
from commerce.feed.v1.feed_service_pb2_grpc import FeedServiceStub
from commerce.query.v1.query_service_pb2 import (
    BatchGetOrderDetailsRequest,
    BatchGetOrderDetailsResponse,
    BatchGetProductsRequest,
    BatchGetProductsResponse,
    ListCustomersRequest,
    ListCustomersResponse,
    ListOrdersRequest,
    ListOrdersResponse,
    ListProductsRequest,
    ListProductsResponse,
    ListRecentOrdersRequest,
    ListRecentOrdersResponse,
    ListSubscriptionsRequest,
    ListSubscriptionsResponse,
    ProductHit,
    SearchProductsRequest,
    SearchProductsResponse,
)
from commerce.query.v1.query_service_pb2_grpc import QueryServiceStub
from commerce.query.v1.views_pb2 import CustomerProfile, OrderDetails, OrderSummary, ProductCard, SubscriptionDetails
from tandem.client import aio, paging, sync
from tandem.client.session import Connection


class Session(sync.Session):
    """One caller, for threads: what it has written its queries see."""

    commands = sync.Stub(CommandServiceStub)
    queries = sync.Stub(QueryServiceStub)
    feed = sync.Stub(FeedServiceStub)


class Client(sync.Client[Session]):
    """Connections to the shop's services, to be shared by a process's threads; each caller has a session."""

    def __init__(
        self, *, commands: str = "", queries: str = "", feed: str = "", **connection: Unpack[Connection]
    ) -> None:
        """commands, queries, feed: the addresses; one that is not called needs none."""
        super().__init__(Session, {"commands": commands, "queries": queries, "feed": feed}, **connection)


class AsyncSession(aio.Session):
    """One caller, for asyncio: what it has written its queries see."""

    commands = aio.Stub(CommandServiceStub)
    queries = aio.Stub(QueryServiceStub)
    feed = aio.Stub(FeedServiceStub)


class AsyncClient(aio.Client[AsyncSession]):
    """Connections to the shop's services, to be shared by an event loop's tasks; each caller has a session."""

    def __init__(
        self, *, commands: str = "", queries: str = "", feed: str = "", **connection: Unpack[Connection]
    ) -> None:
        """commands, queries, feed: the addresses; one that is not called needs none."""
        super().__init__(AsyncSession, {"commands": commands, "queries": queries, "feed": feed}, **connection)


# One overload for each list of the contract, of rows by their ids too; a test says when one is missing.


@overload
def rows(
    call: Callable[[ListRecentOrdersRequest], ListRecentOrdersResponse], request: ListRecentOrdersRequest
) -> Iterator[OrderSummary]: ...
@overload
def rows(
    call: Callable[[ListCustomersRequest], ListCustomersResponse], request: ListCustomersRequest
) -> Iterator[CustomerProfile]: ...
@overload
def rows(
    call: Callable[[ListOrdersRequest], ListOrdersResponse], request: ListOrdersRequest
) -> Iterator[OrderSummary]: ...
@overload
def rows(
    call: Callable[[ListProductsRequest], ListProductsResponse], request: ListProductsRequest
) -> Iterator[ProductCard]: ...
@overload
def rows(
    call: Callable[[ListSubscriptionsRequest], ListSubscriptionsResponse], request: ListSubscriptionsRequest
) -> Iterator[SubscriptionDetails]: ...
@overload
def rows(
    call: Callable[[SearchProductsRequest], SearchProductsResponse], request: SearchProductsRequest
) -> Iterator[ProductHit]: ...
@overload
def rows(
    call: Callable[[BatchGetOrderDetailsRequest], BatchGetOrderDetailsResponse], request: BatchGetOrderDetailsRequest
) -> Iterator[OrderDetails]: ...
@overload
def rows(
    call: Callable[[BatchGetProductsRequest], BatchGetProductsResponse], request: BatchGetProductsRequest
) -> Iterator[ProductCard]: ...
def rows(call: Callable[[Any], Any], request: Any) -> Iterator[Any]:
    """The rows of a list, over all its pages. call: a stub's method. Raises CallFailed."""
    return paging.rows(call, request)


@overload
def async_rows(
    call: Callable[[ListRecentOrdersRequest], Awaitable[ListRecentOrdersResponse]], request: ListRecentOrdersRequest
) -> AsyncIterator[OrderSummary]: ...
@overload
def async_rows(
    call: Callable[[ListCustomersRequest], Awaitable[ListCustomersResponse]], request: ListCustomersRequest
) -> AsyncIterator[CustomerProfile]: ...
@overload
def async_rows(
    call: Callable[[ListOrdersRequest], Awaitable[ListOrdersResponse]], request: ListOrdersRequest
) -> AsyncIterator[OrderSummary]: ...
@overload
def async_rows(
    call: Callable[[ListProductsRequest], Awaitable[ListProductsResponse]], request: ListProductsRequest
) -> AsyncIterator[ProductCard]: ...
@overload
def async_rows(
    call: Callable[[ListSubscriptionsRequest], Awaitable[ListSubscriptionsResponse]], request: ListSubscriptionsRequest
) -> AsyncIterator[SubscriptionDetails]: ...
@overload
def async_rows(
    call: Callable[[SearchProductsRequest], Awaitable[SearchProductsResponse]], request: SearchProductsRequest
) -> AsyncIterator[ProductHit]: ...
@overload
def async_rows(
    call: Callable[[BatchGetOrderDetailsRequest], Awaitable[BatchGetOrderDetailsResponse]],
    request: BatchGetOrderDetailsRequest,
) -> AsyncIterator[OrderDetails]: ...
@overload
def async_rows(
    call: Callable[[BatchGetProductsRequest], Awaitable[BatchGetProductsResponse]], request: BatchGetProductsRequest
) -> AsyncIterator[ProductCard]: ...
def async_rows(call: Callable[[Any], Awaitable[Any]], request: Any) -> AsyncIterator[Any]:
    """As `rows`, for asyncio."""
    return paging.async_rows(call, request)


class Reason(StrEnum):
    """commerce.type.v1.ErrorReason, as errors have it; docs/contract.md says what each means and what to do."""

    INVALID_REQUEST = "INVALID_REQUEST"
    REQUEST_ID_REUSED = "REQUEST_ID_REUSED"
    NOT_FOUND = "NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    VERSION_MISMATCH = "VERSION_MISMATCH"
    OVERLOADED = "OVERLOADED"
    STORE_UNAVAILABLE = "STORE_UNAVAILABLE"
    OUTCOME_UNKNOWN = "OUTCOME_UNKNOWN"
    ROWS_BUSY = "ROWS_BUSY"
    STOPPING = "STOPPING"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    INTERNAL = "INTERNAL"
    PROJECTION_LAG = "PROJECTION_LAG"
    TOKEN_EPOCH_MISMATCH = "TOKEN_EPOCH_MISMATCH"  # noqa: S105 - no secret
    TOKEN_AHEAD = "TOKEN_AHEAD"  # noqa: S105 - no secret
    FULLY_CONSISTENT_NOT_CONFIGURED = "FULLY_CONSISTENT_NOT_CONFIGURED"
    MESSAGE_TOO_LARGE = "MESSAGE_TOO_LARGE"
    UNKNOWN_METHOD = "UNKNOWN_METHOD"
    IDENTITY_REQUIRED = "IDENTITY_REQUIRED"
    IDENTITY_INVALID = "IDENTITY_INVALID"
    TOKEN_EXPIRED = "TOKEN_EXPIRED"  # noqa: S105 - no secret
    KEYS_UNAVAILABLE = "KEYS_UNAVAILABLE"
    NOT_PERMITTED = "NOT_PERMITTED"
    ROW_DAMAGED = "ROW_DAMAGED"
    CUSTOMER_UNKNOWN = "CUSTOMER_UNKNOWN"
    CUSTOMER_ERASED = "CUSTOMER_ERASED"
    ADDRESS_LIMIT = "ADDRESS_LIMIT"
    ADDRESS_UNKNOWN = "ADDRESS_UNKNOWN"
    ADDRESS_REQUIRED = "ADDRESS_REQUIRED"
    DEFAULT_ADDRESS = "DEFAULT_ADDRESS"
    PRODUCT_UNKNOWN = "PRODUCT_UNKNOWN"
    PRODUCT_DISCONTINUED = "PRODUCT_DISCONTINUED"
    ALREADY_DISCONTINUED = "ALREADY_DISCONTINUED"
    OUT_OF_STOCK = "OUT_OF_STOCK"
    STOCK_LIMIT = "STOCK_LIMIT"
    STOCK_UNLIMITED = "STOCK_UNLIMITED"
    CURRENCY_MISMATCH = "CURRENCY_MISMATCH"
    TOTAL_LIMIT = "TOTAL_LIMIT"
    ORDER_NOT_PLACED = "ORDER_NOT_PLACED"
    ORDER_NOT_PAID = "ORDER_NOT_PAID"
    ORDER_NOT_SHIPPED = "ORDER_NOT_SHIPPED"
    ORDER_NOT_READDRESSABLE = "ORDER_NOT_READDRESSABLE"
    ORDER_NOT_CANCELLABLE = "ORDER_NOT_CANCELLABLE"
    NOTHING_TO_SHIP = "NOTHING_TO_SHIP"
    TIME_BEFORE_PLACED = "TIME_BEFORE_PLACED"
    DISCOUNT_LIMIT = "DISCOUNT_LIMIT"
    REFUND_LIMIT = "REFUND_LIMIT"
    TOTAL_MISMATCH = "TOTAL_MISMATCH"
    SUBSCRIPTION_ENDED = "SUBSCRIPTION_ENDED"
    SUBSCRIPTION_CANCELING = "SUBSCRIPTION_CANCELING"
    SUBSCRIPTION_NOT_CANCELING = "SUBSCRIPTION_NOT_CANCELING"
    RENEWAL_TOO_EARLY = "RENEWAL_TOO_EARLY"
    TOO_MANY_CURRENCIES = "TOO_MANY_CURRENCIES"
    CURSOR_EXPIRED = "CURSOR_EXPIRED"
    CURSOR_AHEAD = "CURSOR_AHEAD"
    EVENT_UNREADABLE = "EVENT_UNREADABLE"
    HISTORY_CHANGED = "HISTORY_CHANGED"
    EVENTS_MISSING = "EVENTS_MISSING"
    VIEW_FAILED = "VIEW_FAILED"
    PARKED = "PARKED"
    GENERATION_EXISTS = "GENERATION_EXISTS"
    GENERATION_NOT_READY = "GENERATION_NOT_READY"
    REPLAY_TOO_FAR = "REPLAY_TOO_FAR"
    REPLAY_AHEAD = "REPLAY_AHEAD"
