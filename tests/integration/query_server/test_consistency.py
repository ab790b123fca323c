"""As fresh as asked for: waits, lag, deadlines, tokens of other feeds, and answers while blind."""

import asyncio
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2
from grpc import aio

from commerce.query.v1 import query_service_pb2 as queries
from commerce.query.v1.views_pb2 import OrderDetails
from commerce.type.v1.consistency_pb2 import Consistency
from tandem.cli.embedded import Memcached
from tandem.feed.token import encode_token
from tests.integration.query_server.conftest import ReadSide, Serve, detail, eventually, position_of, reason, until
from tests.support.builders import identity
from tests.support.metrics import sample

if TYPE_CHECKING:
    # The stubs alone know it.
    from commerce.query.v1.query_service_pb2_grpc import QueryServiceAsyncStub

VIEW = "order_details"
ORDER = identity("order", 1)


def order(version: int) -> OrderDetails:
    return OrderDetails(order_id=ORDER, version=version)


def request(token: str, *, wait: float | None = 10) -> queries.GetOrderDetailsRequest:
    consistency = Consistency(at_least_as_fresh=token)
    if wait is not None:
        consistency.max_wait.CopyFrom(Duration(seconds=int(wait), nanos=int(wait % 1 * 1e9)))
    return queries.GetOrderDetailsRequest(order_id=ORDER, consistency=consistency)


ANYTHING = queries.GetOrderDetailsRequest(order_id=ORDER)


async def test_a_read_with_a_token_waits_for_it_and_then_answers(read_side: ReadSide, serve: Serve) -> None:
    stub = await serve()
    read_side.put(VIEW, ORDER, order(1))
    announced = await read_side.announce()
    wanted = announced + 1

    waiting = asyncio.ensure_future(stub.GetOrderDetails(request(read_side.token(wanted)), timeout=20))
    # Calls on one connection are answered as they are ready: this one overtakes.
    assert (await stub.GetOrderDetails(ANYTHING, timeout=10)).order_details == order(1)
    assert not waiting.done()
    assert read_side.put(VIEW, ORDER, order(2)) == wanted
    await read_side.announce()
    response = await waiting

    assert response.order_details == order(2)
    assert position_of(response.as_of) >= wanted


async def test_the_as_of_of_an_answer_is_a_token_for_the_next(read_side: ReadSide, serve: Serve) -> None:
    stub = await serve()
    read_side.put(VIEW, ORDER, order(1))
    await read_side.announce()

    first = await stub.GetOrderDetails(ANYTHING, timeout=10)
    second = await stub.GetOrderDetails(request(first.as_of, wait=0), timeout=10)

    assert position_of(second.as_of) >= position_of(first.as_of)


async def test_a_view_that_does_not_reach_the_token_in_time_says_how_far_it_is(
    read_side: ReadSide, serve: Serve
) -> None:
    stub = await serve()
    announced = await read_side.announce()

    with pytest.raises(aio.AioRpcError) as raised:
        await stub.GetOrderDetails(request(read_side.token(announced + 5), wait=0.05), timeout=20)

    assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
    assert reason(raised.value) == "PROJECTION_LAG"
    assert dict(detail(raised.value, error_details_pb2.ErrorInfo).metadata) == {
        "view": VIEW,
        "position": str(announced),
        "wanted": str(announced + 5),
        "behind": "5",
    }
    assert detail(raised.value, error_details_pb2.RetryInfo).retry_delay.ToTimedelta().total_seconds() > 0


@pytest.mark.parametrize("blind", [False, True])
async def test_a_deadline_shorter_than_the_wait_still_gets_the_reason(
    read_side: ReadSide, serve: Serve, blind: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A busy machine is later than the tenth of a second that the answer has for its way: here it is half a second.
    monkeypatch.setattr("tandem.queries.freshness._MARGIN_SECONDS", 0.5)
    stub = await serve()
    position = read_side.advance() if blind else await read_side.announce()

    with pytest.raises(aio.AioRpcError) as raised:
        await stub.GetOrderDetails(request(read_side.token(position + 1), wait=60), timeout=2)

    assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
    assert reason(raised.value) == "PROJECTION_LAG"


@pytest.mark.parametrize("wait", [0, 10])
@pytest.mark.parametrize("blind", [False, True])
async def test_a_token_of_another_feed_is_refused(read_side: ReadSide, serve: Serve, wait: float, blind: bool) -> None:
    stub = await serve()
    if not blind:
        await read_side.announce()

    with pytest.raises(aio.AioRpcError) as raised:
        await stub.GetOrderDetails(request(encode_token(uuid.uuid4(), 1), wait=wait), timeout=20)

    assert raised.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert reason(raised.value) == "TOKEN_EPOCH_MISMATCH"


async def test_tokens_of_a_new_feed_are_taken_once_the_views_follow_it(read_side: ReadSide, serve: Serve) -> None:
    stub = await serve()
    before = read_side.token(await read_side.announce())
    read_side.feed = uuid.uuid4()
    read_side.position = 1
    read_side.put(VIEW, ORDER, order(1))
    await read_side.announce()

    response = await stub.GetOrderDetails(request(read_side.token(2)), timeout=10)

    assert response.order_details == order(1)
    with pytest.raises(aio.AioRpcError) as raised:
        await stub.GetOrderDetails(request(before), timeout=10)
    assert reason(raised.value) == "TOKEN_EPOCH_MISMATCH"


async def test_while_blind_the_database_answers_with_its_own_position(
    read_side: ReadSide, serve: Serve, memcached_nodes: Callable[[int], list[Memcached]]
) -> None:
    [node] = memcached_nodes(1)
    stub = await serve(freshness={"blind_after": 0.05})
    read_side.cache_epochs = {node.address: "e1"}
    read_side.put(VIEW, ORDER, order(1))
    await read_side.announce()
    read_side.store(node.address, VIEW, ORDER, "e1", order(1))
    position = read_side.put(VIEW, ORDER, order(2))

    async def sees_the_database() -> bool:
        response = await stub.GetOrderDetails(ANYTHING, timeout=10)
        assert response.order_details.version == (2 if position_of(response.as_of) >= position else 1)
        return bool(position_of(response.as_of) == position)

    await eventually(sees_the_database, "the server is blind")


async def test_while_blind_a_token_is_waited_for_in_the_database(read_side: ReadSide, serve: Serve) -> None:
    stub = await serve()
    wanted = read_side.position + 1
    waiting = [
        asyncio.ensure_future(stub.GetOrderDetails(request(read_side.token(wanted)), timeout=20)) for _ in range(5)
    ]
    assert (await _missing(stub)) == [ORDER]
    assert not any(it.done() for it in waiting)
    assert read_side.put(VIEW, ORDER, order(1)) == wanted

    for response in await asyncio.gather(*waiting):
        assert response.order_details == order(1)
        assert position_of(response.as_of) == wanted


async def test_the_connection_that_listens_is_made_again(read_side: ReadSide, serve: Serve) -> None:
    stub = await serve()
    await read_side.announce()
    read_side.end_sessions("tandem-query-listen")
    read_side.put(VIEW, ORDER, order(1))

    announced = await read_side.announce()

    assert (await stub.GetOrderDetails(request(read_side.token(announced)), timeout=10)).order_details == order(1)


async def test_past_the_limit_of_waiters_a_call_is_refused_at_once(read_side: ReadSide, serve: Serve) -> None:
    stub = await serve(freshness={"max_waiters": 1})
    wanted = await read_side.announce() + 2
    calls = [asyncio.ensure_future(stub.GetOrderDetails(request(read_side.token(wanted)), timeout=20)) for _ in "ab"]

    [refused], [waiting] = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    error = refused.exception()
    assert isinstance(error, aio.AioRpcError)
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert reason(error) == "OVERLOADED"
    read_side.put(VIEW, ORDER, order(1))
    await read_side.announce()
    await waiting


async def _missing(stub: "QueryServiceAsyncStub") -> list[str]:
    answer = await stub.BatchGetOrderDetails(queries.BatchGetOrderDetailsRequest(order_ids=[ORDER]), timeout=10)
    return list(answer.missing_order_ids)


def asks(token: str, *, wait: float = 10) -> dict[str, Any]:
    """A query by key, a list and a search that need a token, by RPC."""
    consistency = Consistency(at_least_as_fresh=token)
    consistency.max_wait.FromMilliseconds(int(1000 * wait))
    customer = identity("customer", 1)
    return {
        "BatchGetOrderDetails": queries.BatchGetOrderDetailsRequest(order_ids=[ORDER], consistency=consistency),
        "ListRecentOrders": queries.ListRecentOrdersRequest(customer_id=customer, consistency=consistency),
        "SearchProducts": queries.SearchProductsRequest(query="boat", consistency=consistency),
    }


async def reset(read_side: ReadSide) -> int:
    """Takes the views back, as a rebuild after a restore does; returns where they were announced."""
    announced = await read_side.announce()
    read_side.position = announced - 5
    read_side.write_positions()
    return announced


@pytest.mark.parametrize("rpc", asks(""))
async def test_a_view_that_is_made_anew_is_waited_for_as_any_other(rpc: str, read_side: ReadSide, serve: Serve) -> None:
    stub = await serve()
    announced = await reset(read_side)

    waiting = asyncio.ensure_future(getattr(stub, rpc)(asks(read_side.token(announced))[rpc], timeout=20))
    await until(lambda: sample("tandem_freshness_waiters") == 1, "the call waits")
    read_side.position = announced + 1
    read_side.write_positions()

    assert position_of((await waiting).as_of) == announced + 1


@pytest.mark.parametrize("rpc", asks(""))
async def test_a_view_that_is_made_anew_and_not_there_in_time_lags(rpc: str, read_side: ReadSide, serve: Serve) -> None:
    stub = await serve()
    announced = await reset(read_side)

    with pytest.raises(aio.AioRpcError) as refused:
        await getattr(stub, rpc)(asks(read_side.token(announced), wait=0.2)[rpc], timeout=20)
    assert reason(refused.value) == "PROJECTION_LAG"


def tokens(*texts: str, wait: float = 10, **others: Any) -> queries.GetOrderDetailsRequest:
    consistency = Consistency(tokens=texts, **others)
    consistency.max_wait.FromMilliseconds(int(1000 * wait))
    return queries.GetOrderDetailsRequest(order_id=ORDER, consistency=consistency)


async def test_an_answer_includes_what_each_of_several_tokens_stands_for(read_side: ReadSide, serve: Serve) -> None:
    stub = await serve()
    read_side.put(VIEW, ORDER, order(1))
    announced = await read_side.announce()
    one, other, third = (read_side.token(announced + it) for it in (2, 1, 3))

    reached = await stub.GetOrderDetails(tokens(read_side.token(announced), read_side.token(1)), timeout=20)
    assert (reached.order_details, position_of(reached.as_of)) == (order(1), announced)
    waiting = asyncio.ensure_future(stub.GetOrderDetails(tokens(one, other, at_least_as_fresh=third), timeout=20))
    for version in (2, 3):
        assert read_side.put(VIEW, ORDER, order(version)) < announced + 3
    with pytest.raises(aio.AioRpcError) as late:
        await stub.GetOrderDetails(tokens(one, third, wait=0.05), timeout=20)
    assert reason(late.value) == "PROJECTION_LAG"
    assert not waiting.done()
    read_side.put(VIEW, ORDER, order(4))
    await read_side.announce()

    response = await waiting
    assert response.order_details == order(4)
    assert position_of(response.as_of) >= announced + 3


@pytest.mark.parametrize("blind", [False, True])
async def test_of_several_tokens_the_one_of_another_feed_is_named(
    read_side: ReadSide, serve: Serve, blind: bool
) -> None:
    stub = await serve()
    if not blind:
        await read_side.announce()
    ours, theirs, later = read_side.token(1), encode_token(uuid.uuid4(), 1), read_side.token(read_side.position + 10)

    for request_, field in (
        (tokens(ours, theirs), "consistency.tokens[1]"),
        (tokens(later, theirs), "consistency.tokens[1]"),
        (tokens(theirs, at_least_as_fresh=ours), "consistency.tokens[0]"),
        (tokens(ours, at_least_as_fresh=theirs), "consistency.at_least_as_fresh"),
    ):
        with pytest.raises(aio.AioRpcError) as raised:
            await stub.GetOrderDetails(request_, timeout=20)
        assert raised.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        [violation] = detail(raised.value, error_details_pb2.PreconditionFailure).violations
        assert (violation.type, violation.subject) == ("TOKEN_EPOCH_MISMATCH", field)


async def test_wrong_tokens_are_named_one_by_one(read_side: ReadSide, serve: Serve) -> None:
    stub = await serve()
    ours = read_side.token(1)
    for request_, fields in (
        (tokens(ours, "x", "", ours), ["consistency.tokens[1]", "consistency.tokens[2]"]),
        (tokens(*[ours] * 21), ["consistency.tokens"]),
        (tokens(ours, minimize_latency=True), ["consistency.tokens"]),
        (tokens(ours, fully_consistent=True), ["consistency.tokens"]),
    ):
        with pytest.raises(aio.AioRpcError) as raised:
            await stub.GetOrderDetails(request_, timeout=20)
        assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert [it.field for it in detail(raised.value, error_details_pb2.BadRequest).field_violations] == fields
