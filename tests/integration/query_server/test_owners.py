"""Who may see what is theirs sees nothing of the rest: not what is cached, parked or damaged, and not that it is."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from commerce.query.v1 import query_service_pb2 as queries
from commerce.query.v1.views_pb2 import OrderDetails
from commerce.type.v1.consistency_pb2 import Consistency
from tandem.cli.embedded import Memcached
from tandem.runtime.errors import NotFound, TandemError
from tandem.testing.stack import up_to
from tests.integration.query_server.conftest import LocalQueries, ReadSide
from tests.support.builders import identity

VIEW, EPOCH = "order_details", "e1"
ME, OTHER = identity("customer", 1), identity("customer", 2)
MINE, OTHERS, NOBODYS, DAMAGED = (identity("order", it) for it in (1, 2, 3, 4))
Nodes = Callable[[int], list[Memcached]]


@pytest.fixture(params=["cached", "stored"])
async def local_rows(
    request: pytest.FixtureRequest, read_side: ReadSide, memcached_nodes: Nodes, local: LocalQueries
) -> LocalQueries:
    """An order of mine and one of somebody else's, in the cache or not; and one that is damaged."""
    nodes = [it.address for it in memcached_nodes(up_to(1))] if request.param == "cached" else []
    read_side.cache_epochs = dict.fromkeys(nodes, EPOCH)
    for order_id, customer in ((MINE, ME), (OTHERS, OTHER)):
        order = OrderDetails(order_id=order_id, customer_id=customer, version=1)
        read_side.put(VIEW, order_id, order)
        for node in nodes:
            read_side.store(node, VIEW, order_id, EPOCH, order)
    read_side.put(VIEW, DAMAGED, OrderDetails(order_id=MINE, customer_id=ME))
    await read_side.announce()
    return local


async def ask(local: LocalQueries, rpc: str, **fields: Any) -> Any:
    """As customer 1. Returns the response, or the error."""
    request = getattr(queries, f"{rpc}Request")(**fields)
    [call] = local.ask(rpc, request, owner=ME)
    try:
        answer = await asyncio.wrap_future(call.future)
    except TandemError as error:
        return error
    return getattr(queries, f"{rpc}Response").FromString(answer)


async def test_a_row_of_ones_own_is_shown_and_of_others_nothing(local_rows: LocalQueries) -> None:
    assert (await ask(local_rows, "GetOrderDetails", order_id=MINE)).order_details.customer_id == ME
    with capture_logs() as logged:
        for order_id in (OTHERS, DAMAGED, NOBODYS):
            refused = await ask(local_rows, "GetOrderDetails", order_id=order_id)
            assert isinstance(refused, NotFound)
            assert str(refused) == f"orders/{order_id} is not known"
    problems = [it["problem"] for it in logged if it["event"] == "audit: refused"]
    assert len(problems) == 2, "those that are there"
    assert OTHERS.replace("-", "") in problems[0]


async def test_a_batch_has_ones_own_and_says_of_the_rest_that_it_is_missing(local_rows: LocalQueries) -> None:
    ids = [NOBODYS, OTHERS, DAMAGED, MINE]
    answer = await ask(local_rows, "BatchGetOrderDetails", order_ids=ids)
    assert [it.order_id for it in answer.order_details] == [MINE]
    assert list(answer.missing_order_ids) == ids[:3]
    alone = await ask(local_rows, "BatchGetOrderDetails", order_ids=[MINE])
    assert len(alone.order_details) == 1


async def test_that_somebody_elses_row_is_parked_is_not_said(read_side: ReadSide, local_rows: LocalQueries) -> None:
    for order_id in (OTHERS, NOBODYS):
        read_side.park(VIEW, order_id)
    at = await read_side.announce()
    token = Consistency(at_least_as_fresh=read_side.token(at))
    for node in read_side.cache_epochs:
        # A projector takes out of the cache what it parks.
        read_side.store(node, VIEW, OTHERS, EPOCH, None)
    for consistency in (Consistency(), token):
        for order_id in (OTHERS, NOBODYS):
            refused = await ask(local_rows, "GetOrderDetails", order_id=order_id, consistency=consistency)
            assert isinstance(refused, NotFound)
        answer = await ask(
            local_rows, "BatchGetOrderDetails", order_ids=[MINE, OTHERS, NOBODYS], consistency=consistency
        )
        assert list(answer.missing_order_ids) == [OTHERS, NOBODYS]
        assert (list(answer.parked_order_ids), answer.parked_since) == ([], 0)
    read_side.park(VIEW, MINE)
    await read_side.announce()
    for node in read_side.cache_epochs:
        read_side.store(node, VIEW, MINE, EPOCH, None)
    assert (await ask(local_rows, "GetOrderDetails", order_id=MINE)).parked_since, "of one's own it is"
