"""A call that goes away takes nothing with it and leaves nothing behind."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from commerce.query.v1 import query_service_pb2 as queries
from commerce.query.v1.views_pb2 import OrderDetails
from tandem.cli.embedded import Memcached
from tests.integration.query_server.conftest import LocalQueries, ReadSide, Serve, TablesLocked, until
from tests.support.builders import identity
from tests.support.metrics import sample

ORDER, CUSTOMER = identity("order", 1), identity("customer", 1)


async def test_calls_cancelled_anywhere_leave_no_connection_behind(read_side: ReadSide, serve: Serve) -> None:
    stub = await serve(reader={"threads": 2})
    read_side.put("order_details", ORDER, OrderDetails(order_id=ORDER))
    token = read_side.token(await read_side.announce())
    chance = random.Random(7)

    def call(number: int) -> asyncio.Future[Any]:
        get = queries.GetOrderDetailsRequest(order_id=ORDER)
        match number % 4:
            case 0:
                get.consistency.at_least_as_fresh = read_side.token(read_side.position + 1000)
            case 1:
                get.consistency.at_least_as_fresh = token
            case 2:
                listing = queries.ListRecentOrdersRequest(customer_id=CUSTOMER)
                return running(stub.ListRecentOrders(listing, timeout=20))
        return running(stub.GetOrderDetails(get, timeout=20))

    def running(awaitable: Awaitable[Any]) -> asyncio.Future[Any]:
        return asyncio.ensure_future(awaitable)

    for round_ in range(10):
        calls = [call(number) for number in range(40)]
        if round_ % 2:
            with TablesLocked(read_side):
                await read_side.until_blocked()
                for it in calls:
                    it.cancel()
        for it in calls:
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
            it.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    response = await stub.GetOrderDetails(queries.GetOrderDetailsRequest(order_id=ORDER), timeout=10)
    assert response.order_details.order_id == ORDER
    await until(lambda: read_side.query_sessions("state <> 'idle'") == 0, "no connection is left in the middle")
    # Two threads for keys, two for lists, one each for positions and readiness.
    assert read_side.query_sessions("true") <= 6


@pytest.mark.parametrize("cached", [False, True])
async def test_a_call_cancelled_in_any_of_its_stages_leaves_nothing_behind(
    read_side: ReadSide, local: LocalQueries, memcached_nodes: Callable[[int], list[Memcached]], cached: bool
) -> None:
    """Without a transport: each round lets the calls get a little further."""
    read_side.put("order_details", ORDER, OrderDetails(order_id=ORDER))
    read_side.cache_epochs = {node.address: "e1" for node in memcached_nodes(int(cached))}
    token = read_side.token(await read_side.announce())
    later = read_side.token(read_side.position + 1000)
    plain, reached, waiting = (queries.GetOrderDetailsRequest(order_id=ORDER) for _ in range(3))
    reached.consistency.at_least_as_fresh = token
    waiting.consistency.at_least_as_fresh = later

    def pause(steps: int) -> None:
        for _ in range(steps):
            time.sleep(0)

    for steps in range(0, 400, 10):
        calls = local.ask("GetOrderDetails", plain, reached, waiting)
        calls += local.ask("ListRecentOrders", queries.ListRecentOrdersRequest(customer_id=CUSTOMER))
        await asyncio.to_thread(pause, steps)
        for call in calls:
            call.future.cancel()
        # A call is settled once: what is asked for next in the same queue comes after it.
        for call in local.ask("GetOrderDetails", plain):
            await asyncio.wrap_future(call.future)

    [call] = local.ask("GetOrderDetails", plain)
    answer = await asyncio.wrap_future(call.future)
    assert queries.GetOrderDetailsResponse.FromString(answer).order_details.order_id == ORDER
    await until(lambda: sample("tandem_freshness_waiters") == 0, "nobody waits")
    await until(lambda: read_side.query_sessions("state <> 'idle'") == 0, "no connection is left in the middle")
    await local.stop()
    await until(lambda: read_side.query_sessions("true") == 0, "every connection is closed")
