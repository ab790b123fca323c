"""G8 over real sockets, on both transports: order, resumption, slow watchers, thousands of them, a lost database."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2
from grpc import aio

from commerce.query.v1 import query_service_pb2 as queries
from commerce.query.v1.views_pb2 import OrderDetails
from commerce.type.v1.consistency_pb2 import Consistency
from tandem.feed.token import encode_token
from tests.integration.query_server.conftest import ReadSide, Serve, detail, eventually, position_of, reason
from tests.support.builders import identity
from tests.support.metrics import sample

if TYPE_CHECKING:
    # The stubs alone know it.
    from commerce.query.v1.query_service_pb2_grpc import QueryServiceAsyncStub

VIEW = "order_details"
ORDER = identity("order", 1)
Message = queries.WatchOrderDetailsResponse
METHOD = {"method": "WatchOrderDetails"}


def order(version: int, name: str = "", key: str = ORDER) -> OrderDetails:
    return OrderDetails(order_id=key, version=version, customer_name=name)


def watch(stub: "QueryServiceAsyncStub", key: str = ORDER, **fields: Any) -> AsyncIterator[Message]:
    call = stub.WatchOrderDetails(queries.WatchOrderDetailsRequest(order_id=key, **fields), timeout=120)
    messages: AsyncIterator[Message] = aiter(call)
    return messages


async def following(messages: AsyncIterator[Message]) -> Message:
    async with asyncio.timeout(60):
        return await anext(messages)


async def state(messages: AsyncIterator[Message]) -> Message:
    """The next state: heartbeats are passed over, which come between two on a busy machine."""
    while (message := await following(messages)).WhichOneof("event") == "heartbeat":
        pass
    return message


async def version(messages: AsyncIterator[Message]) -> int:
    return (await state(messages)).order_details.version


async def refusal(stub: "QueryServiceAsyncStub", **fields: Any) -> aio.AioRpcError:
    with pytest.raises(aio.AioRpcError) as raised:
        await following(watch(stub, **fields))
    return raised.value


async def nobody_watches() -> bool:
    return sample("tandem_streams_open", **METHOD) == 0


async def test_an_orders_life_is_seen_in_order_and_a_watch_goes_on_where_it_ended(
    read_side: ReadSide, serve: Serve
) -> None:
    stub = await serve()
    placed = read_side.put(VIEW, ORDER, order(1))
    messages = watch(stub, consistency=Consistency(at_least_as_fresh=read_side.token(placed)))
    first = await state(messages)
    assert first.order_details == order(1)
    assert position_of(first.as_of) == placed
    for number in range(2, 6):
        read_side.put(VIEW, identity("order", 2), order(number, key=identity("order", 2)))
        read_side.put(VIEW, ORDER, order(number))
        await read_side.announce()
        message = await state(messages)
        assert (message.order_details, message.skipped_versions) == (order(number), 0)

    again = watch(stub, resume_from=message.as_of)
    assert (await following(again)).WhichOneof("event") == "heartbeat"
    read_side.put(VIEW, ORDER, order(6))
    await read_side.announce()
    assert [await version(messages), await version(again)] == [6, 6]
    late = watch(stub, resume_from=message.as_of)
    assert await version(late) == 6


async def test_a_wrong_request_names_every_field(serve: Serve) -> None:
    error = await refusal(
        await serve(),
        key="7",
        resume_from="here",
        heartbeat_interval=Duration(nanos=1),
        consistency=Consistency(fully_consistent=False),
    )
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert {it.field for it in detail(error, error_details_pb2.BadRequest).field_violations} == {
        "order_id",
        "resume_from",
        "heartbeat_interval",
        "consistency.fully_consistent",
    }


async def test_an_order_that_is_not_known_and_a_limit_that_is_reached_are_said(
    read_side: ReadSide, serve: Serve
) -> None:
    stub = await serve(watch={"max_watchers": 1})
    error = await refusal(stub)
    assert error.code() == grpc.StatusCode.NOT_FOUND
    assert detail(error, error_details_pb2.ResourceInfo).resource_name == f"orders/{ORDER}"
    read_side.put(VIEW, ORDER, order(1))
    messages = watch(stub)
    assert await version(messages) == 1
    error = await refusal(stub)
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert detail(error, error_details_pb2.RetryInfo).retry_delay.ToTimedelta().total_seconds() > 0


async def test_a_watch_begins_with_what_all_of_its_tokens_stand_for(read_side: ReadSide, serve: Serve) -> None:
    stub = await serve()
    read_side.put(VIEW, ORDER, order(1))
    announced = await read_side.announce()
    here, next_one, after = (read_side.token(announced + it) for it in (0, 1, 2))
    watching = watch(stub, consistency=Consistency(tokens=[here, next_one]), resume_from=here)
    further = watch(
        stub, consistency=Consistency(at_least_as_fresh=here, tokens=[after], max_wait=Duration(seconds=20))
    )
    first, second = (asyncio.ensure_future(state(it)) for it in (watching, further))
    assert read_side.put(VIEW, ORDER, order(2)) == announced + 1
    await eventually(lambda: waiting_for(2), "both wait")
    await read_side.announce()
    assert (await first).order_details == order(2)
    assert position_of((await second).as_of) >= announced + 2

    for fields, subject in (
        ({"consistency": Consistency(tokens=[here, elsewhere()])}, "consistency.tokens[1]"),
        ({"consistency": Consistency(tokens=[here]), "resume_from": elsewhere()}, "resume_from"),
    ):
        error = await refusal(stub, **fields)
        assert error.code() == grpc.StatusCode.FAILED_PRECONDITION
        [violation] = detail(error, error_details_pb2.PreconditionFailure).violations
        assert (violation.type, violation.subject) == ("TOKEN_EPOCH_MISMATCH", subject)


def elsewhere() -> str:
    """A token of another feed."""
    return encode_token(uuid.uuid4(), 1)


async def waiting_for(count: int) -> bool:
    return sample("tandem_freshness_waiters") == count


async def test_a_watcher_that_leaves_while_it_waits_for_its_token_is_let_go_of(
    read_side: ReadSide, serve: Serve
) -> None:
    stub = await serve()
    ahead = read_side.token(await read_side.announce() + 1)
    call = stub.WatchOrderDetails(
        queries.WatchOrderDetailsRequest(
            order_id=ORDER, consistency=Consistency(at_least_as_fresh=ahead, max_wait=Duration(seconds=50))
        )
    )
    first = asyncio.ensure_future(anext(aiter(call)))
    await eventually(lambda: waiting_for(1), "it waits")
    call.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await eventually(lambda: waiting_for(0), "it is let go of")
    await eventually(nobody_watches, "the watch has ended")


async def test_while_nothing_changes_heartbeats_move_on(read_side: ReadSide, serve: Serve) -> None:
    stub = await serve()
    read_side.put(VIEW, ORDER, order(1))
    messages = watch(stub, heartbeat_interval=Duration(seconds=1))
    assert await version(messages) == 1
    announced = await read_side.announce()
    message = await following(messages)
    assert message.WhichOneof("event") == "heartbeat"
    assert position_of(message.as_of) == announced


async def test_a_watcher_that_does_not_read_is_sent_little_and_ends_at_the_latest(
    read_side: ReadSide, serve: Serve
) -> None:
    stub = await serve()
    count, name = 60, "x" * 200_000
    read_side.put(VIEW, ORDER, order(1, name))
    slow, quick = watch(stub), watch(stub)
    assert [await version(slow), await version(quick)] == [1, 1]
    before = sample("tandem_stream_messages_total", **METHOD) or 0
    seen = [1]
    for number in range(2, count + 1):
        read_side.put(VIEW, ORDER, order(number, name))
        await read_side.announce()
        while seen[-1] != number:
            seen.append(await version(quick))
    sent = (sample("tandem_stream_messages_total", **METHOD) or 0) - before
    assert sent - (len(seen) - 1) < count - 10, "what was sent to the one that does not read"
    shown, skipped = [1], 0
    while shown[-1] != count:
        message = await state(slow)
        shown.append(message.order_details.version)
        skipped += message.skipped_versions
    assert shown == sorted(set(shown))
    assert len(shown) + skipped == count
    assert skipped > 0


async def test_two_thousand_watchers_in_one_process_all_end_at_the_latest(read_side: ReadSide, serve: Serve) -> None:
    stub = await serve()
    keys = [identity("order", number) for number in range(100)]
    for key in keys:
        read_side.put(VIEW, key, order(1, key=key))
    await read_side.announce()
    # One connection for all.
    calls = [stub.WatchOrderDetails(queries.WatchOrderDetailsRequest(order_id=key)) for key in keys for _ in range(20)]
    watchers = [aiter(call) for call in calls]
    assert set(await asyncio.gather(*(version(messages) for messages in watchers))) == {1}
    assert sample("tandem_streams_open", **METHOD) == 2000

    async def follow(messages: AsyncIterator[Message]) -> list[int]:
        seen = [1]
        while seen[-1] < 5:
            seen.append(await version(messages))
        return seen

    following_all = asyncio.gather(*(follow(messages) for messages in watchers))
    for number in range(2, 6):
        for key in keys:
            read_side.put(VIEW, key, order(number, key=key))
        await read_side.announce()
    for seen in await following_all:
        assert seen == sorted(set(seen))
    for call in calls:
        call.cancel()
    await eventually(nobody_watches, "the server has noticed that all have left")


async def test_a_database_that_goes_away_and_comes_back_ends_no_watch(read_side: ReadSide, serve: Serve) -> None:
    stub = await serve(freshness={"blind_after": 0.5})
    read_side.put(VIEW, ORDER, order(1))
    messages = watch(stub, heartbeat_interval=Duration(seconds=1))
    assert await version(messages) == 1
    read_side.let_in(anybody=False)
    assert (await following(messages)).WhichOneof("event") == "heartbeat"
    error = await refusal(stub, key=identity("order", 2))
    assert (error.code(), reason(error)) == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
    read_side.let_in(anybody=True)
    read_side.put(VIEW, ORDER, order(2))
    assert (await state(messages)).order_details == order(2)
