"""How a stream is refused and how it ends, and that nothing is lost by it."""

import asyncio

import pytest
from google.protobuf.duration_pb2 import Duration
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from commerce.feed.v1.feed_service_pb2 import GetHeadRequest, SubscribeRequest, SubscribeResponse
from tandem.feed.token import Token, decode_token, encode_token
from tandem.testing.stack import until
from tests.integration.projector.conftest import Stored, Stores
from tests.integration.projector.feed_service.conftest import Refusal, ServeFeed, prices, refused
from tests.support.follower import Follower, at, caught_up, feed_stub
from tests.support.metrics import sample

FEED_SERVICE = "commerce.feed.v1.FeedService"


async def test_places_that_are_not_there_are_refused_with_what_to_do(stores: Stores, serve_feed: ServeFeed) -> None:
    stores.append(prices(20))
    server = await serve_feed()
    head = decode_token((await server.stub.GetHead(GetHeadRequest(), timeout=10)).cursor)

    beyond = Follower(after_cursor=encode_token(head.epoch, 21))
    assert await refused(beyond.follow(server.stub, caught_up)) == Refusal(
        "OUT_OF_RANGE", "CURSOR_AHEAD", {"head_position": "20"}
    )

    stores.run("DELETE FROM tandem_write.event WHERE position <= 5", "write")
    for start in ({"from_beginning": True}, {"after_cursor": encode_token(head.epoch, 4)}):
        expired = await refused(Follower(**start).follow(server.stub, caught_up))
        assert (expired.code, expired.reason) == ("OUT_OF_RANGE", "CURSOR_EXPIRED")
        oldest = expired.metadata["oldest_cursor"]
        assert decode_token(oldest) == Token(head.epoch, 5)
    assert (await Follower(after_cursor=oldest).follow(server.stub, caught_up)).positions == list(range(6, 21))

    stores.run("DELETE FROM tandem_write.event", "write")
    everything_gone = await refused(Follower(after_cursor=oldest).follow(server.stub, caught_up))
    assert decode_token(everything_gone.metadata["oldest_cursor"]) == Token(head.epoch, 20)

    wrong = SubscribeRequest(from_now=True, event_types=["no_such"])
    assert (await refused(server.stub.Subscribe(wrong).read())).code == "INVALID_ARGUMENT"


async def test_after_a_restore_old_cursors_and_streams_are_refused(stores: Stores, serve_feed: ServeFeed) -> None:
    stores.append(prices(20))
    server = await serve_feed()
    follower = Follower(from_beginning=True)
    await follower.follow(server.stub, caught_up)
    following = asyncio.create_task(follower.follow(server.stub, at(21)))

    async def follows() -> bool:
        return follower.caught_up == 2

    await until(follows, "the stream is there")
    stores.new_feed_epoch()
    mismatch = Refusal("FAILED_PRECONDITION", "TOKEN_EPOCH_MISMATCH", {})
    assert await refused(_result(following)) == mismatch
    assert await refused(follower.follow(server.stub, at(21))) == mismatch
    stores.append(prices(1, first=21))
    assert (await Follower(from_beginning=True).follow(server.stub, at(21))).positions == list(range(1, 22))


async def test_a_follower_that_has_what_the_feed_lost_is_told_and_one_that_has_not_goes_on(
    stores: Stores, serve_feed: ServeFeed
) -> None:
    """A failover to a standby without the last commits, and no new epoch: positions say that nothing is amiss."""
    stores.append(prices(17))
    server = await serve_feed()
    behind = await Follower(from_beginning=True).follow(server.stub, caught_up)
    stores.append(prices(3, first=18))
    follower = await Follower(from_beginning=True).follow(server.stub, at(20))
    following = asyncio.create_task(follower.follow(server.stub, at(21)))

    async def follows() -> bool:
        return follower.caught_up == 2

    await until(follows, "the stream is there")
    stores.run(
        "DELETE FROM tandem_write.event WHERE position > 17; UPDATE tandem_write.feed_head SET position = 17", "write"
    )
    stores.append(prices(5, first=118))
    # At once, or when it comes back with its cursor.
    assert (await refused(_result(following))).code in {"UNAVAILABLE", "FAILED_PRECONDITION"}

    async def is_back() -> bool:
        return (await behind.follow_through(at(22), server.stub)).position == 22

    await until(is_back, "who had nothing of what was lost goes on")
    assert behind.positions == list(range(1, 23))
    mismatch = Refusal("FAILED_PRECONDITION", "TOKEN_EPOCH_MISMATCH", {})
    assert await refused(follower.follow_through(at(21), server.stub)) == mismatch, "in memory"
    at_head = await Follower(from_now=True).follow(server.stub, caught_up)
    stores.run("UPDATE tandem_write.event SET mark = mark + 1 WHERE position = 22", "write")
    # The server may find out at the same time, and ends all streams: who comes back is told.
    old = Follower(after_cursor=at_head.cursor)
    assert await refused(old.follow_through(at(23), server.stub)) == mismatch, "at the head"


async def test_events_that_are_missing_between_others_are_named_and_not_passed_over(
    stores: Stores, serve_feed: ServeFeed
) -> None:
    stores.append(prices(20))
    stores.run("DELETE FROM tandem_write.event WHERE position BETWEEN 8 AND 9", "write")
    server = await serve_feed()
    follower = Follower(from_beginning=True, max_batch_events=7)
    assert await refused(follower.follow(server.stub, caught_up)) == Refusal(
        "UNAVAILABLE", "EVENTS_MISSING", {"position": "8"}
    )
    assert follower.positions == list(range(1, 8))


async def _result(task: "asyncio.Task[Follower]") -> Follower:
    return await task


async def test_without_the_write_database_streams_end_and_go_on_when_it_is_back(
    stores: Stores, serve_feed: ServeFeed
) -> None:
    stores.append(prices(20))
    server = await serve_feed()
    follower = Follower(from_beginning=True)
    await follower.follow(server.stub, caught_up)
    following = asyncio.create_task(follower.follow(server.stub, at(21)))
    health = health_pb2_grpc.HealthStub(server.channel)

    async def feed_health() -> bool:
        answer = await health.Check(health_pb2.HealthCheckRequest(service=FEED_SERVICE), timeout=10)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def no_feed_health() -> bool:
        return not await feed_health()

    await until(feed_health, "the feed is served though the read database is not there")
    with stores.refused("write"):
        assert (await refused(_result(following))).reason == "STORE_UNAVAILABLE"
        assert (await refused(follower.follow(server.stub, at(21)))).reason == "STORE_UNAVAILABLE"
        with pytest.raises(aio.AioRpcError):
            await server.stub.GetHead(GetHeadRequest(), timeout=10)
        await until(no_feed_health, "the feed's health tells")
    stores.append(prices(5, first=21))
    await follower.follow_through(at(25), server.stub)
    assert follower.positions == list(range(1, 26))


async def test_a_session_that_ended_while_it_was_idle_fails_no_call(stores: Stores, serve_feed: ServeFeed) -> None:
    stores.append(prices(20))
    server = await serve_feed(catch_up_threads=1)
    for _ in range(2):
        await server.stub.GetHead(GetHeadRequest(), timeout=10)
        await Follower(from_beginning=True).follow(server.stub, at(20))
        for name in ("tandem-feed-head", "tandem-feed-history"):
            stores.end_sessions("write", name)
    await server.stub.GetHead(GetHeadRequest(), timeout=10)
    await Follower(from_beginning=True).follow(server.stub, at(20))


async def test_an_event_that_cannot_be_read_ends_the_streams_that_want_it_right_before_it(
    stores: Stores, serve_feed: ServeFeed
) -> None:
    server = await serve_feed()
    watching = await Follower(from_now=True).follow(server.stub, caught_up)
    stores.append(prices(3))
    stores.append_stored([Stored("of_a_newer_server", b""), Stored("order_paid", b"\xff")])
    stores.append(prices(3, first=6))
    others = Follower(from_beginning=True, event_types=["price_changed"])
    await others.follow(server.stub, at(8))
    assert others.positions == [1, 2, 3, 6, 7, 8]

    in_memory, in_database = watching, Follower(from_beginning=True)
    await refused(in_database.follow(server.stub, at(8)))
    for follower in (in_memory, in_database):
        end = await refused(follower.follow(server.stub, at(8)))
        assert end == Refusal("UNAVAILABLE", "EVENT_UNREADABLE", {"position": "4"})
        assert follower.positions == [1, 2, 3]
    damaged = Follower(from_beginning=True, event_types=["order_paid"])
    assert (await refused(damaged.follow(server.stub, at(8)))).metadata == {"position": "5"}


async def test_a_stop_tells_each_follower_its_cursor_and_ends_the_stream(stores: Stores, serve_feed: ServeFeed) -> None:
    stores.append(prices(250))
    server = await serve_feed()
    keeping_up = Follower(from_beginning=True)
    no_events = Follower(from_now=True, event_types=["order_paid"])
    ends = [asyncio.create_task(refused(it.follow(server.stub, at(999)))) for it in (keeping_up, no_events)]

    async def both_follow() -> bool:
        return keeping_up.position == 250 and no_events.caught_up == 1

    await until(both_follow, "both follow")
    messages = len(no_events.sizes)
    await server.running.stop()
    assert [await end for end in ends] == [Refusal("UNAVAILABLE", "STOPPING", {})] * 2
    assert keeping_up.positions == list(range(1, 251))
    assert len(no_events.sizes) == messages + 1, "a last message with the cursor"

    another = await serve_feed()
    stores.append(prices(50, first=251))
    await keeping_up.follow(another.stub, at(300))
    assert keeping_up.positions == list(range(1, 301))


def streams_open() -> float:
    return sample("tandem_streams_open", method="Subscribe") or 0.0


async def test_nothing_is_left_of_followers_who_vanish(
    stores: Stores, serve_feed: ServeFeed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tandem.feed.live._LINGER_SECONDS", 0.05)
    before = streams_open()
    stores.append(prices(300))
    server = await serve_feed()
    channels = [server.another_channel() for _ in range(5)]
    calls = [
        feed_stub(channel).Subscribe(SubscribeRequest(from_beginning=True)) for channel in channels for _ in range(4)
    ]
    for call in calls:
        await call.read()
    assert streams_open() == before + 20
    for channel in channels:
        await channel.close()

    async def all_gone() -> bool:
        return streams_open() == before

    await until(all_gone, "no stream is open")

    async def nobody_reads() -> bool:
        sessions = stores.run(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND application_name LIKE 'tandem-feed-tail%'",
            "write",
        )
        return bool(sessions == 0)

    await until(nobody_reads, "nothing is read for nobody")


async def next_of(call: "aio.UnaryStreamCall[SubscribeRequest, SubscribeResponse]") -> SubscribeResponse:
    response = await call.read()
    assert isinstance(response, SubscribeResponse)
    return response


async def test_one_who_does_not_read_holds_nobody_up_costs_bounded_memory_and_gets_all_in_the_end(
    stores: Stores, serve_feed: ServeFeed
) -> None:
    total = 50_000
    server = await serve_feed(ring_events=1000)
    async with server.another_channel() as channel:
        slow = Follower(from_now=True, max_batch_events=50)
        call = feed_stub(channel).Subscribe(slow.request())
        slow.take(await next_of(call))
        fast = Follower(from_now=True, max_batch_events=1000)
        await fast.follow(server.stub, caught_up)
        reading = asyncio.create_task(fast.follow(server.stub, at(total)))
        for first in range(1, total, 5000):
            await asyncio.to_thread(stores.append, prices(5000, first=first))
        await reading
        assert fast.positions == list(range(1, total + 1))
        assert sample("tandem_feed_events_in_memory") == 1000

        while slow.position < total:
            slow.take(await next_of(call))
        assert slow.positions == list(range(1, total + 1))
        # Once at the beginning, once after it had fallen behind what is in memory, and not for each message.
        assert slow.caught_up == 2
        call.cancel()


async def test_heartbeats_come_while_nothing_happens(stores: Stores, serve_feed: ServeFeed) -> None:
    server = await serve_feed()
    follower = Follower(from_now=True, heartbeat_interval=Duration(seconds=1))
    await follower.follow(server.stub, lambda it: it.heartbeats == 3)
    assert follower.caught_up == 1
