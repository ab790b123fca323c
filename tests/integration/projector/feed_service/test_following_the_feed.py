"""A follower gets every event that it asked for, once, in order, from where it began."""

import asyncio
import threading
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from commerce.feed.v1.feed_service_pb2 import GetHeadRequest
from tandem.feed.reader import read_events
from tandem.feed.token import decode_token, encode_token
from tandem.internal.v1.stored_pb2 import Envelope
from tandem.testing.stack import until
from tests.integration.projector.conftest import Stored, Stores
from tests.integration.projector.feed_service.conftest import ServeFeed, prices, refused
from tests.support import events
from tests.support.builders import identity
from tests.support.events import a_history
from tests.support.follower import Follower, at, caught_up

HISTORY = a_history(500, seed=5)
SECOND = Duration(seconds=1)


async def test_a_follower_from_the_beginning_gets_all_events_and_then_every_new_one(
    stores: Stores, serve_feed: ServeFeed
) -> None:
    head = stores.append(HISTORY[:350])
    server = await serve_feed()
    follower = Follower(from_beginning=True, max_batch_events=30)
    await follower.follow(server.stub, caught_up)
    assert (follower.position, follower.head) == (head, head)
    assert [item.event for item in follower.items] == HISTORY[:350]
    assert max(follower.sizes) == 30

    stores.append(HISTORY[350:400])
    await follower.follow(server.stub, at(400))
    for count in range(400, 500, 20):
        stores.append(HISTORY[count : count + 20])
    await follower.follow(server.stub, at(500))
    assert follower.positions == list(range(1, 501))
    assert [item.event for item in follower.items] == HISTORY
    assert [item.type for item in follower.items] == [event.WhichOneof("kind") for event in HISTORY]
    assert max(follower.sizes) == 30


async def test_catching_up_is_told_once_in_a_stream_that_keeps_up(stores: Stores, serve_feed: ServeFeed) -> None:
    stores.append(prices(250))
    server = await serve_feed()
    follower = Follower(from_beginning=True)
    told: list[tuple[bool, int]] = []
    call = server.stub.Subscribe(follower.request())
    async for response in call:
        follower.take(response)
        told.append((response.caught_up, response.position))
        if response.position == 250:
            stores.append(prices(50, first=251))
        if response.position == 300:
            break
    call.cancel()
    assert [position for flag, position in told if flag] == [250]


async def test_a_follower_from_now_gets_a_cursor_at_once_and_nothing_that_was_before(
    stores: Stores, serve_feed: ServeFeed
) -> None:
    stores.append(prices(10))
    server = await serve_feed()
    follower = await Follower(from_now=True).follow(server.stub, caught_up)
    assert (follower.items, follower.position) == ([], 10)
    stores.append(prices(5, first=11))
    await follower.follow(server.stub, at(15))
    assert follower.positions == [11, 12, 13, 14, 15]


async def test_who_begins_now_waits_for_nobody_who_is_behind(
    stores: Stores, serve_feed: ServeFeed, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores.append(prices(10))
    server = await serve_feed(catch_up_threads=2)
    begun = threading.Semaphore(0)
    go_on = threading.Event()

    def slow_read(*arguments: Any, **named: Any) -> Any:
        begun.release()
        assert go_on.wait(20)
        return read_events(*arguments, **named)

    monkeypatch.setattr("tandem.feed.service.read_events", slow_read)
    behind = [Follower(from_beginning=True) for _ in range(10)]
    following = [asyncio.ensure_future(it.follow(server.stub, at(10))) for it in behind]
    for _ in range(2):
        assert await asyncio.to_thread(begun.acquire, timeout=20)

    newest = Follower(from_now=True)
    async with asyncio.timeout(10):
        await newest.follow(server.stub, caught_up)
        assert (await server.stub.GetHead(GetHeadRequest(), timeout=10)).position == newest.position == 10

    go_on.set()
    await asyncio.gather(*following)


async def test_a_receipts_token_and_a_head_are_cursors(stores: Stores, serve_feed: ServeFeed) -> None:
    stores.append(prices(10))
    server = await serve_feed()
    head = await server.stub.GetHead(GetHeadRequest(), timeout=10)
    token = decode_token(head.cursor)
    assert (head.position, token.position) == (10, 10)
    stores.append(prices(2, first=11))
    assert (await Follower(after_cursor=head.cursor).follow(server.stub, at(12))).positions == [11, 12]
    receipt = encode_token(token.epoch, 4)
    follower = await Follower(after_cursor=receipt).follow(server.stub, at(12))
    assert follower.positions == list(range(5, 13))
    assert decode_token(follower.cursor).position == 12


@pytest.mark.parametrize("where", ["in the database", "in memory"])
async def test_a_follower_gets_the_types_and_the_aggregates_that_it_asked_for(
    stores: Stores, serve_feed: ServeFeed, where: str
) -> None:
    server = await serve_feed()
    if where == "in the database":
        stores.append(HISTORY)
    waiting = await Follower(from_now=True).follow(server.stub, caught_up)
    if where == "in memory":
        stores.append(HISTORY)
        await waiting.follow(server.stub, at(len(HISTORY)))

    def expected(kinds: set[str], ids: set[str]) -> list[int]:
        return [
            position
            for position, event in enumerate(HISTORY, start=1)
            if (not kinds or event.WhichOneof("kind") in kinds) and (not ids or ids & set(str(event).split('"')))
        ]

    customer, product, order = identity("customer", 1), identity("product", 2), identity("order", 3)
    for kinds, ids in (
        ({"order_placed", "order_paid"}, set()),
        (set(), {customer}),
        (set(), {product.upper(), order}),
        ({"order_placed", "stock_adjusted"}, {product}),
        ({"customer_erased"}, set()),
    ):
        follower = Follower(from_beginning=True, event_types=kinds, aggregate_ids=ids)
        await follower.follow(server.stub, at(len(HISTORY)))
        assert follower.positions == expected(kinds, {it.lower() for it in ids})
        assert follower.caught_up == 1


def envelope_of(number: int) -> Envelope:
    """Of one of three business processes."""
    trace = f"00-{number:032x}-{number:016x}-01"
    return Envelope(
        actor="user-7",
        request_id=f"request {number}",
        causation_id=f"cause {number}",
        correlation_id=f"process {number % 3}",
        traceparent=trace,
    )


@pytest.mark.parametrize("where", ["in the database", "in memory"])
async def test_events_come_with_their_envelopes_and_can_be_selected_by_correlation(
    stores: Stores, serve_feed: ServeFeed, where: str
) -> None:
    server = await serve_feed()
    waiting = await Follower(from_now=True).follow(server.stub, caught_up)
    if where == "in the database":
        await server.running.stop()
    stores.append(HISTORY[:10])
    head = 10
    for number in range(1, 31):
        head = stores.append(HISTORY[head : head + 5], envelope_of(number))
    if where == "in memory":
        await waiting.follow(server.stub, at(head))
        assert [it.position for it in waiting.items] == list(range(1, head + 1)), "they are all in memory"
    else:
        server = await serve_feed()
        waiting = await Follower(from_beginning=True).follow(server.stub, at(head))
    assert not any(it.HasField("envelope") for it in waiting.items[:10]), "from before there were envelopes"
    for item in waiting.items[10:]:
        envelope = envelope_of((item.position - 10 + 4) // 5)
        assert item.envelope.SerializeToString() == envelope.SerializeToString()

    def expected(processes: set[str], kinds: set[str]) -> list[int]:
        return [
            item.position
            for item in waiting.items
            if item.envelope.correlation_id in processes and (not kinds or item.type in kinds)
        ]

    some_kinds = {item.type for item in waiting.items[10::3]}
    for processes, kinds in (
        ({"process 1"}, set()),
        ({"process 0", "process 2"}, set()),
        ({"process 2", "no such"}, some_kinds),
        ({"no such"}, set()),
    ):
        follower = Follower(from_beginning=True, event_types=kinds, correlation_ids=processes)
        await follower.follow(server.stub, at(head))
        assert follower.positions == expected(processes, kinds)


async def test_an_envelope_that_cannot_be_read_ends_the_streams_that_may_want_it(
    stores: Stores, serve_feed: ServeFeed
) -> None:
    server = await serve_feed()
    stores.append(prices(1), Envelope(correlation_id="one"))
    stores.append_stored([Stored("price_changed", prices(1)[0].SerializeToString(), None, b"\xff")])
    for filters in ({}, {"correlation_ids": ["one"]}):
        follower = Follower(from_beginning=True, **filters)
        end = await refused(follower.follow(server.stub, at(2)))
        assert (end.reason, end.metadata) == ("EVENT_UNREADABLE", {"position": "2"})
        assert follower.positions == [1]
    others = Follower(from_beginning=True, event_types=["order_paid"], correlation_ids=["one"])
    await others.follow(server.stub, at(2))


async def test_heartbeats_carry_a_cursor_that_moves_over_what_was_not_asked_for(
    stores: Stores, serve_feed: ServeFeed
) -> None:
    server = await serve_feed()
    follower = Follower(from_beginning=True, event_types=["order_paid"], heartbeat_interval=SECOND)
    following = asyncio.create_task(follower.follow(server.stub, at(3000)))

    async def follows() -> bool:
        return follower.caught_up == 1

    await until(follows, "it follows")
    await asyncio.to_thread(stores.append, prices(3000))
    await following
    assert (follower.items, follower.caught_up) == ([], 1)
    stores.append([events.order_paid()])
    await follower.follow(server.stub, at(3001))
    assert follower.positions == [3001]


async def test_large_events_come_in_messages_that_every_client_takes(stores: Stores, serve_feed: ServeFeed) -> None:
    big = [events.product_added(number, description="x" * 100_000) for number in range(1, 61)]
    stores.append(big)
    server = await serve_feed()
    follower = await Follower(from_beginning=True, max_batch_events=1000).follow(server.stub, at(60))
    assert [item.event for item in follower.items] == big
    # The eleventh is the one that passes 1 MiB.
    assert max(follower.sizes) == 11


async def test_what_was_erased_comes_without_personal_data_from_memory_too(
    stores: Stores, serve_feed: ServeFeed
) -> None:
    server = await serve_feed()
    watched = identity("customer", 1)
    watching = await Follower(from_now=True).follow(server.stub, caught_up)
    stores.append([events.customer_registered(1), events.customer_registered(2), events.order_placed(1, customer=1)])
    await watching.follow(server.stub, at(3))
    assert watching.items[0].event.customer_registered.personal.name == "Customer 1"

    stores.run(f"UPDATE tandem_write.subject_key SET key = NULL WHERE subject_id = '{watched}'", "write")
    stores.append([events.customer_erased(1)])
    await watching.follow(server.stub, at(4))
    assert watching.items[-1].event.customer_erased.customer_id == watched

    later = await Follower(from_beginning=True).follow(server.stub, at(4))
    assert not later.items[0].event.customer_registered.HasField("personal")
    assert later.items[1].event.customer_registered.personal.name == "Customer 2"
    assert not later.items[2].event.order_placed.HasField("personal")
    assert later.items[2].event.order_placed.lines == watching.items[2].event.order_placed.lines


async def test_many_followers_at_once_get_the_same(stores: Stores, serve_feed: ServeFeed) -> None:
    stores.append(HISTORY[:40])
    server = await serve_feed()
    followers = [Follower(from_beginning=True) for _ in range(200)]
    following = [asyncio.create_task(it.follow(server.stub, at(100))) for it in followers]

    async def all_follow() -> bool:
        return all(follower.position == 40 for follower in followers)

    await until(all_follow, "all have the first part", seconds=60)
    for count in range(40, 100, 20):
        stores.append(HISTORY[count : count + 20])
    await asyncio.gather(*following)
    assert all(follower.positions == list(range(1, 101)) for follower in followers)
    assert all(follower.caught_up == 1 for follower in followers)


async def test_past_the_limit_followers_are_refused_and_one_that_leaves_makes_room(
    stores: Stores, serve_feed: ServeFeed
) -> None:
    server = await serve_feed(max_subscribers=2)
    first, second = (server.stub.Subscribe(Follower(from_now=True).request()) for _ in range(2))
    await first.read()
    await second.read()
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await Follower(from_now=True).follow(server.stub, caught_up)
    assert raised.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    first.cancel()

    async def there_is_room() -> bool:
        try:
            await Follower(from_now=True).follow(server.stub, caught_up)
        except grpc.aio.AioRpcError:
            return False
        return True

    await until(there_is_room, "there is room again")
    second.cancel()
