"""The client for asyncio, at a server in the test's own process."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from grpc import aio as grpc_aio

from commerce.command.v1 import command_service_pb2 as commands
from commerce.feed.v1 import feed_service_pb2 as feed
from commerce.query.v1 import query_service_pb2 as queries
from commerce.type.v1.receipt_pb2 import CommandReceipt
from shop.client import AsyncClient
from tandem.client.channel import CallDefaults
from tandem.client.errors import CallFailed, CursorExpired, RuleBroken, Unavailable, ViewBehind
from tandem.client.session import NoAddress
from tandem.runtime.errors import InvalidArgument, OutOfRange, PreconditionFailed, Violation
from tandem.runtime.errors import Unavailable as ServerUnavailable
from tandem.testing.ports import free_port
from tandem.testing.scripted import Scripted, served

COMMANDS = commands.DESCRIPTOR.services_by_name["CommandService"]
QUERIES = queries.DESCRIPTOR.services_by_name["QueryService"]
FEED = feed.DESCRIPTOR.services_by_name["FeedService"]
PLACED = commands.PlaceOrderResponse(order_id="7", receipt=CommandReceipt(consistency_token="1token", position=3))
FOUND = queries.GetOrderDetailsResponse(as_of="1later")
STOPPING = ServerUnavailable("the server is stopping", reason="STOPPING")


def in_turn(*answers: Any) -> Callable[[object], Any]:
    """Raises those of the answers that are errors."""
    left = iter(answers)

    def answer(_: object) -> Any:
        following = next(left)
        if isinstance(following, Exception):
            raise following
        return following

    return answer


async def test_a_query_after_a_command_carries_its_token() -> None:
    placing = Scripted(COMMANDS, PlaceOrder=in_turn(PLACED))
    getting = Scripted(QUERIES, GetOrderDetails=in_turn(FOUND))
    async with served(placing, getting) as address, AsyncClient(commands=address, queries=address) as client:
        session = client.session()
        call = session.commands.PlaceOrder(commands.PlaceOrderRequest(customer_id="1"))
        assert await call == PLACED
        assert await call.code() == grpc.StatusCode.OK
        assert await session.queries.GetOrderDetails(queries.GetOrderDetailsRequest(order_id="7")) == FOUND
        assert client.session().token == ""
    assert placing.requests[0].request_id
    assert getting.requests[0].consistency.at_least_as_fresh == session.token == "1token"


async def test_a_command_is_repeated_with_the_same_request_id() -> None:
    placing = Scripted(COMMANDS, PlaceOrder=in_turn(STOPPING, STOPPING, PLACED))
    async with served(placing) as address, AsyncClient(commands=address) as client:
        assert await client.session().commands.PlaceOrder(commands.PlaceOrderRequest()) == PLACED
    assert len(placing.requests) == 3
    assert len({it.request_id for it in placing.requests} - {""}) == 1


async def test_a_command_that_is_refused_is_not_repeated() -> None:
    refusal = PreconditionFailed([Violation("products/1", "none left", "OUT_OF_STOCK")])
    placing = Scripted(COMMANDS, PlaceOrder=in_turn(refusal))
    async with served(placing) as address, AsyncClient(commands=address) as client:
        with pytest.raises(RuleBroken, match="PlaceOrder: FAILED_PRECONDITION") as raised:
            await client.session().commands.PlaceOrder(commands.PlaceOrderRequest())
    assert raised.value.reasons == {"OUT_OF_STOCK"}
    assert isinstance(raised.value.__cause__, grpc_aio.AioRpcError)


async def test_a_query_is_repeated_while_servers_come_and_go_and_no_longer() -> None:
    getting = Scripted(QUERIES, GetOrderDetails=in_turn(STOPPING, STOPPING, FOUND, *[STOPPING] * 4))
    async with served(getting) as address, AsyncClient(queries=address) as client:
        session = client.session()
        assert await session.queries.GetOrderDetails(queries.GetOrderDetailsRequest()) == FOUND
        with pytest.raises(Unavailable):
            await session.queries.GetOrderDetails(queries.GetOrderDetailsRequest())
    assert len(getting.requests) == 7


async def test_who_waits_for_a_connection_waits_for_another_than_to_a_server_that_stops(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(random, "uniform", lambda *_: 0.0)
    getting = Scripted(QUERIES, GetOrderDetails=in_turn(*[STOPPING] * 8, FOUND))
    patient = CallDefaults(wait_for_ready=True)
    async with served(getting) as address, AsyncClient(queries=address, defaults=patient) as client:
        assert await client.session().queries.GetOrderDetails(queries.GetOrderDetailsRequest()) == FOUND
    assert len(getting.requests) == 9


async def test_a_stream_that_waits_for_a_connection_may_come_before_its_server() -> None:
    async def subscribe(_: object) -> AsyncIterator[feed.SubscribeResponse]:
        yield feed.SubscribeResponse(cursor="1a")

    port = free_port()
    address = f"127.0.0.1:{port}"
    request = feed.SubscribeRequest(from_beginning=True)
    async with AsyncClient(feed=address, defaults=CallDefaults(wait_for_ready=True)) as client:

        async def first_message(**options: Any) -> Any:
            return await client.session().feed.Subscribe(request, **options).read()

        with pytest.raises(Unavailable):
            await first_message(wait_for_ready=False)
        waiting = asyncio.create_task(first_message())
        async with served(Scripted(FEED, Subscribe=subscribe), port=port):
            assert (await waiting).cursor == "1a"


@pytest.mark.parametrize(
    ("refusal", "error"),
    [
        (ServerUnavailable("3 behind", reason="PROJECTION_LAG"), ViewBehind),
        (ServerUnavailable("away", reason="STORE_UNAVAILABLE", retry_after=60), Unavailable),
    ],
    ids=["view behind", "no time"],
)
async def test_a_query_is_not_repeated_where_that_does_not_help(refusal: Exception, error: type[CallFailed]) -> None:
    getting = Scripted(QUERIES, GetOrderDetails=in_turn(refusal))
    async with served(getting) as address, AsyncClient(queries=address) as client:
        with pytest.raises(error):
            await client.session().queries.GetOrderDetails(queries.GetOrderDetailsRequest())
    assert len(getting.requests) == 1


async def test_calls_run_at_once_and_can_be_cancelled() -> None:
    getting = Scripted(QUERIES, GetOrderDetails=lambda _: FOUND)
    async with served(getting) as address, AsyncClient(queries=address) as client:
        stub = client.session().queries
        answers = await asyncio.gather(*(stub.GetOrderDetails(queries.GetOrderDetailsRequest()) for _ in range(5)))
        assert answers == [FOUND] * 5
        call = stub.GetOrderDetails(queries.GetOrderDetailsRequest())
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call


async def test_a_call_that_is_cancelled_between_two_tries_makes_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "uniform", lambda *_: 60.0)
    placing = Scripted(COMMANDS, PlaceOrder=in_turn(STOPPING, STOPPING))
    patient = CallDefaults(timeout=600)
    async with served(placing) as address, AsyncClient(commands=address, defaults=patient) as client:
        call = client.session().commands.PlaceOrder(commands.PlaceOrderRequest())
        waiting = asyncio.ensure_future(call)
        assert await call.code() == grpc.StatusCode.UNAVAILABLE
        assert call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert call.cancelled()
        assert not call.cancel(), "it has ended"
        # One whose answer nobody has asked for yet.
        unasked = client.session().commands.PlaceOrder(commands.PlaceOrderRequest())
        assert await unasked.code() == grpc.StatusCode.UNAVAILABLE
        unasked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await unasked
    assert len(placing.requests) == 2


async def test_a_cookie_with_a_bad_token_costs_one_try() -> None:
    bad = InvalidArgument([Violation("consistency.at_least_as_fresh", "must be a token", "MALFORMED")])
    getting = Scripted(QUERIES, GetOrderDetails=in_turn(bad, FOUND))
    async with served(getting) as address, AsyncClient(queries=address) as client:
        session = client.session("spoilt")
        assert await session.queries.GetOrderDetails(queries.GetOrderDetailsRequest()) == FOUND
    assert [it.consistency.at_least_as_fresh for it in getting.requests] == ["spoilt", ""]
    assert session.token == ""


async def test_a_stream_gives_its_messages_and_ends_with_a_typed_error() -> None:
    async def subscribe(_: object) -> AsyncIterator[feed.SubscribeResponse]:
        yield feed.SubscribeResponse(cursor="1a")
        raise OutOfRange("gone", reason="CURSOR_EXPIRED")

    async with served(Scripted(FEED, Subscribe=subscribe)) as address, AsyncClient(feed=address) as client:
        stream = client.session().feed.Subscribe(feed.SubscribeRequest(from_beginning=True))
        messages = aiter(stream)
        assert (await anext(messages)).cursor == "1a"
        with pytest.raises(CursorExpired):
            await anext(messages)


async def test_a_service_without_an_address_is_named() -> None:
    async with AsyncClient(queries="127.0.0.1:1") as client:
        assert client.session().queries
        with pytest.raises(NoAddress, match="CommandService"):
            _ = client.session().commands
