"""A follower of the feed misses and repeats nothing: through cut connections, kill -9 of its projector, and a stop."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import psycopg
from grpc import aio

from commerce.event.v1.event_pb2 import Event
from commerce.projection.v1.projection_service_pb2 import ListProjectionsRequest, ProjectionState
from tandem.testing.stack import kill, wait_until
from tests.support.follower import Follower, caught_up, feed_stub
from tests.support.proxy import CuttingProxy
from tests.support.shop import CUSTOMERS, PRODUCTS, Load, open_shop
from tests.support.stack import Stack

if TYPE_CHECKING:
    from commerce.feed.v1.feed_service_pb2_grpc import FeedServiceAsyncStub

CUTS = 25
ORDERS = 800
# The shop is opened before the first order.
BEFORE = CUSTOMERS + PRODUCTS


def test_a_follower_misses_and_repeats_nothing_whatever_breaks(new_stack: Callable[..., Stack]) -> None:
    stack = new_stack()
    standby = stack.new_projector()
    standby.start()
    standby.wait_until_serving()
    asyncio.run(_open(stack))
    load = Load(ORDERS)
    proxy = CuttingProxy(("127.0.0.1", stack.projector.port))
    at_proxy, at_first, at_standby = f"127.0.0.1:{proxy.port}", stack.projector.address, standby.address
    follower = Follower(from_beginning=True, max_batch_events=10)

    with ThreadPoolExecutor(2) as pool:
        # Each stream is cut off at its first message, while orders are placed.
        cut_off: set[int] = set()

        def cut_each(it: Follower) -> bool:
            if len(it.ends) not in cut_off and len(cut_off) < CUTS:
                cut_off.add(len(it.ends))
                proxy.cut_all()
            return len(cut_off) == CUTS and it.position >= BEFORE + ORDERS // 2

        buying = pool.submit(asyncio.run, _buy(stack, load, 1, ORDERS // 2))
        asyncio.run(_follow(follower, cut_each, at_proxy))
        buying.result(timeout=120)
        assert proxy.cuts == CUTS
        assert len(follower.ends) >= CUTS - 1

        # Its projector is killed; the standby, which holds no view yet, serves it.
        half = follower.position
        buying = pool.submit(asyncio.run, _buy(stack, load, ORDERS // 2 + 1, ORDERS * 3 // 4))
        following = _in_thread(pool, follower, lambda it: it.position >= half + ORDERS // 4, at_first, at_standby)
        wait_until(lambda: follower.position > half, "it follows")
        kill(stack.projector)
        buying.result(timeout=120)
        following.result(timeout=120)
        wait_until(lambda: _holds_all_views(stack, standby), "the standby has taken the views over")

        # The projector that serves it is stopped; the other one is back.
        stack.projector.start()
        stack.projector.wait_until_serving()
        before = follower.position
        buying = pool.submit(asyncio.run, _buy(stack, load, ORDERS * 3 // 4 + 1, ORDERS))
        following = _in_thread(pool, follower, lambda it: it.position >= BEFORE + ORDERS, at_standby, at_first)
        wait_until(lambda: follower.position > before, "it follows")
        assert standby.stop() == 0
        following.result(timeout=120)
        buying.result(timeout=120)
    assert "the server is stopping" in follower.ends[-1]
    proxy.close()

    stored = _stored(stack.write_url)
    assert follower.positions == [position for position, _ in stored] == list(range(1, BEFORE + ORDERS + 1))
    assert [_without_personal_data(item.event) for item in follower.items] == [
        _without_personal_data(event) for _, event in stored
    ]
    placed = [item.event.order_placed.order_id for item in follower.items if item.type == "order_placed"]
    assert sorted(placed) == sorted(load.receipts)
    assert asyncio.run(_follow(Follower(from_beginning=True), caught_up, at_first)).items == follower.items


async def _open(stack: Stack) -> None:
    async with stack.async_stubs() as stubs:
        await open_shop(stubs.commands)


async def _buy(stack: Stack, load: Load, first: int, last: int) -> None:
    part = Load(last - first + 1, receipts=load.receipts)
    async with stack.async_stubs() as stubs:
        await part.run(stubs.commands, first=first)


def _in_thread(
    pool: ThreadPoolExecutor, follower: Follower, until: Callable[[Follower], bool], *addresses: str
) -> "Future[Any]":
    return pool.submit(asyncio.run, _follow(follower, until, *addresses))


async def _follow(follower: Follower, until: Callable[[Follower], bool], *addresses: str) -> Follower:
    async with _stubs(addresses) as stubs:
        return await follower.follow_through(until, *stubs)


@asynccontextmanager
async def _stubs(addresses: tuple[str, ...]) -> AsyncIterator[list["FeedServiceAsyncStub"]]:
    options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)]
    channels = [aio.insecure_channel(address, options) for address in addresses]
    yield [feed_stub(channel) for channel in channels]
    for channel in channels:
        await channel.close()


def _holds_all_views(stack: Stack, projector: Any) -> bool:
    from commerce.projection.v1.projection_service_pb2_grpc import ProjectionServiceStub

    answer = ProjectionServiceStub(stack.channel(projector)).ListProjections(ListProjectionsRequest(), timeout=10)
    return all(it.state == ProjectionState.PROJECTION_STATE_RUNNING for it in answer.projections)


def _without_personal_data(event: Event) -> Event:
    """It is sealed in the store."""
    copy = Event.FromString(event.SerializeToString())
    payload = getattr(copy, str(copy.WhichOneof("kind")))
    if "personal" in payload.DESCRIPTOR.fields_by_name:
        payload.ClearField("personal")
    return copy


def _stored(url: str) -> list[tuple[int, Event]]:
    with psycopg.connect(url) as connection:
        rows = connection.execute("SELECT position, payload FROM tandem_write.event ORDER BY position").fetchall()
    return [(position, Event.FromString(payload)) for position, payload in rows]
