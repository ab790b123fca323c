"""What reads say of rows that are parked: they lack an event that their view has passed."""

import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from google.protobuf.message import Message
from grpc import aio

from commerce.query.v1 import query_service_pb2 as queries
from commerce.query.v1.views_pb2 import OrderDetails, OrderSummary
from commerce.type.v1.consistency_pb2 import Consistency
from tandem.cli.embedded import Memcached
from tandem.testing.stack import up_to
from tests.integration.query_server.conftest import ReadSide, Serve, position_of, reason
from tests.support.builders import identity

ONE, TWO, NEW = (identity("order", number) for number in (1, 2, 3))
ALICE, BOB = identity("customer", 1), identity("customer", 2)
DAY = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture
def transport() -> str:
    """It has no part in this."""
    return "auto"


async def refused(call: Any) -> str:
    with pytest.raises(aio.AioRpcError) as raised:
        await call
    return reason(raised.value)


async def test_a_row_that_is_parked_is_as_it_was_and_says_so(
    read_side: ReadSide, serve: Serve, memcached_nodes: Callable[[int], list[Memcached]]
) -> None:
    nodes = [it.address for it in memcached_nodes(up_to(1))]
    read_side.cache_epochs = dict.fromkeys(nodes, "e1")
    before = read_side.put("order_details", ONE, OrderDetails(order_id=ONE, version=1))
    read_side.put("order_details", TWO, OrderDetails(order_id=TWO, version=1))
    stub = await serve()
    since = read_side.park("order_details", ONE)
    at = await read_side.announce()

    def get(key: str, **consistency: Any) -> Any:
        wanted = queries.GetOrderDetailsRequest(order_id=key, consistency=Consistency(**consistency))
        return stub.GetOrderDetails(wanted, timeout=20)

    for _ in range(2):
        answer = await get(ONE)
        assert (answer.order_details.version, answer.parked_since) == (1, since)
        assert position_of(answer.as_of) == since - 1, "it shows no later state"
    for node in nodes:
        assert read_side.cached(node, "order_details", ONE, "e1") in {None, b""}, "the cache could not say so"
        assert read_side.cached(node, "order_details", TWO, "e1") is None
    assert (await get(ONE, at_least_as_fresh=read_side.token(before))).parked_since == since
    assert (await get(ONE, at_least_as_fresh=answer.as_of)).parked_since == since, "its own token is good"
    for position in (since, at):
        assert await refused(get(ONE, at_least_as_fresh=read_side.token(position))) == "PARKED"
    other = await get(TWO, at_least_as_fresh=read_side.token(at))
    assert (other.parked_since, position_of(other.as_of)) == (0, at)

    # One that is not there yet is not called unknown.
    later = read_side.park("order_details", NEW)
    at = await read_side.announce()
    assert await refused(get(NEW)) == "PARKED"
    nothing = identity("nothing")
    batch = queries.BatchGetOrderDetailsRequest(order_ids=[TWO, nothing, NEW, ONE])
    several = await stub.BatchGetOrderDetails(batch, timeout=20)
    assert [it.order_id for it in several.order_details] == [TWO, ONE]
    assert (several.missing_order_ids, several.parked_order_ids) == ([nothing], [NEW, ONE])
    assert (several.parked_since, position_of(several.as_of)) == (since, since - 1)
    batch.consistency.at_least_as_fresh = read_side.token(later)
    assert await refused(stub.BatchGetOrderDetails(batch, timeout=20)) == "PARKED"

    read_side.redrive("order_details", ONE, OrderDetails(order_id=ONE, version=2), since)
    assert (await get(ONE, at_least_as_fresh=read_side.token(at))).parked_since == 0


def summary(order_id: str, customer: str) -> OrderSummary:
    return OrderSummary(order_id=order_id, customer_id=customer)


async def test_a_list_is_incomplete_where_a_parked_row_may_belong_to_it_and_no_other_is(
    read_side: ReadSide, serve: Serve
) -> None:
    read_side.put_summary(ONE, summary(ONE, ALICE), customer=ALICE, at=DAY)
    read_side.put_summary(TWO, summary(TWO, BOB), customer=BOB, at=DAY)
    stub = await serve()
    since = read_side.park("order_summary", ONE, scope=ALICE)
    token = read_side.token(await read_side.announce())

    async def page(customer: str, **consistency: Any) -> queries.ListRecentOrdersResponse:
        wanted = queries.ListRecentOrdersRequest(customer_id=customer, consistency=Consistency(**consistency))
        found: queries.ListRecentOrdersResponse = await stub.ListRecentOrders(wanted, timeout=20)
        return found

    of_alice = await page(ALICE)
    assert [it.order_id for it in of_alice.orders] == [ONE]
    assert (of_alice.parked_rows, of_alice.parked_since) == (1, since)
    assert position_of(of_alice.as_of) == since - 1
    assert await refused(page(ALICE, at_least_as_fresh=token)) == "PARKED"
    of_bob = await page(BOB, at_least_as_fresh=token)
    assert ([it.order_id for it in of_bob.orders], of_bob.parked_rows) == ([TWO], 0)
    # One of which nobody knows whose it is may be anybody's.
    read_side.park("order_summary", NEW)
    await read_side.announce()
    assert (await page(ALICE)).parked_rows == 2
    assert (await page(BOB)).parked_rows == 1
    assert await refused(page(BOB, at_least_as_fresh=read_side.token(read_side.position))) == "PARKED"


async def test_sums_and_searches_are_incomplete_where_a_row_of_theirs_is_parked(
    read_side: ReadSide, serve: Serve
) -> None:
    stub = await serve()
    since = read_side.park("sales_summary", str(uuid.uuid4()), scope="2026-03-01")
    in_search = read_side.park("product_card", identity("product", 1))
    token = read_side.token(await read_side.announce())

    async def ask(rpc: str, wanted: Any, *, fresh: bool = False) -> Any:
        if fresh:
            wanted.consistency.at_least_as_fresh = token
        return await getattr(stub, rpc)(wanted, timeout=20)

    def sales(first: str, last: str) -> Message:
        return queries.GetSalesSummaryRequest(start_date=first, end_date=last)

    within = await ask("GetSalesSummary", sales("2026-02-27", "2026-03-01"))
    assert (within.parked_rows, within.parked_since, position_of(within.as_of)) == (1, since, since - 1)
    assert await refused(ask("GetSalesSummary", sales("2026-03-01", "2026-03-31"), fresh=True)) == "PARKED"
    beside = await ask("GetSalesSummary", sales("2026-03-02", "2026-03-31"), fresh=True)
    assert beside.parked_rows == 0
    # In full, and remembered.
    for _ in range(2):
        found = await ask("SearchProducts", queries.SearchProductsRequest(query="tea"))
        assert (found.parked_rows, found.parked_since) == (1, in_search)
        assert position_of(found.as_of) == in_search - 1
    assert await refused(ask("SearchProducts", queries.SearchProductsRequest(query="tea"), fresh=True)) == "PARKED"


async def test_a_watch_of_a_row_that_is_parked_says_so_and_goes_on_when_it_is_redriven(
    read_side: ReadSide, serve: Serve
) -> None:
    read_side.put("order_details", ONE, OrderDetails(order_id=ONE, version=1))
    stub = await serve()
    await read_side.announce()
    watch = stub.WatchOrderDetails(queries.WatchOrderDetailsRequest(order_id=ONE), timeout=60)
    first = await anext(aiter(watch))
    assert (first.order_details.version, first.parked_since) == (1, 0)
    since = read_side.park("order_details", ONE)
    token = read_side.token(await read_side.announce())
    told = await anext(aiter(watch))
    assert told.HasField("heartbeat")
    assert (told.parked_since, position_of(told.as_of)) == (since, since - 1)

    # Others that begin meanwhile: as it was, and not with a token that it lacks.
    wanted = queries.WatchOrderDetailsRequest(order_id=ONE)
    second = stub.WatchOrderDetails(wanted, timeout=60)
    shown = await anext(aiter(second))
    assert (shown.order_details.version, shown.parked_since) == (1, since)
    wanted.consistency.at_least_as_fresh = token
    assert await refused(anext(aiter(stub.WatchOrderDetails(wanted, timeout=20)))) == "PARKED"
    read_side.park("order_details", NEW)
    await read_side.announce()
    new = queries.WatchOrderDetailsRequest(order_id=NEW)
    assert await refused(anext(aiter(stub.WatchOrderDetails(new, timeout=20)))) == "PARKED"

    # Redriven: the row has the position of the event that waited, which is long past.
    read_side.redrive("order_details", ONE, OrderDetails(order_id=ONE, version=2), since)
    for it in (watch, second):
        on = await anext(aiter(it))
        assert (on.order_details.version, on.parked_since) == (2, 0)
    # So does one that was cut off meanwhile.
    resumed = stub.WatchOrderDetails(queries.WatchOrderDetailsRequest(order_id=ONE, resume_from=told.as_of), timeout=60)
    assert (await anext(aiter(resumed))).order_details.version == 2
