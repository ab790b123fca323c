"""Reads by key through the cache: hits, lease-filled misses, the fence, and nodes that go away."""

import asyncio
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from google.rpc import error_details_pb2
from grpc import aio
from pydantic import SecretStr

from commerce.query.v1 import query_service_pb2 as queries
from commerce.query.v1.views_pb2 import OrderDetails
from tandem.read_store.cache import Signer, encode_entry
from tandem.read_store.nodes import node_client
from tandem.testing.stack import kill, pause
from tests.integration.query_server.conftest import (
    ReadSide,
    Serve,
    TablesLocked,
    counted,
    detail,
    eventually,
    position_of,
    reason,
    until,
)
from tests.support.builders import identity
from tests.support.caches import CLOSES_IDLE_CONNECTIONS, KINDS, TAKES_SMALL_VALUES, Node
from tests.support.metrics import sample

VIEW = "order_details"
ORDER = identity("order", 1)
EPOCH = "e1"
Nodes = Callable[..., list[Node]]


def order(number: int = 1, *, name: str = "Ada", version: int = 1) -> OrderDetails:
    return OrderDetails(order_id=identity("order", number), customer_name=name, version=version)


def asked(*numbers: int) -> queries.BatchGetOrderDetailsRequest:
    return queries.BatchGetOrderDetailsRequest(order_ids=[identity("order", it) for it in numbers])


@pytest.fixture(params=KINDS)
def node_kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def transport(node_kind: str) -> str:
    """The other one answers in the same way, and other kinds of nodes have nothing to do with it."""
    return "native" if node_kind == "memcached" else "grpcio"


@pytest.fixture
def node(cache_nodes: Nodes, read_side: ReadSide) -> Node:
    [node] = cache_nodes(1)
    read_side.cache_epochs = {node.address: EPOCH}
    return node


async def test_a_cached_read_does_not_touch_the_database(read_side: ReadSide, serve: Serve, node: Node) -> None:
    stub = await serve()
    read_side.store(node.address, VIEW, ORDER, EPOCH, order())
    announced = await read_side.announce()
    read_side.advance()

    with TablesLocked(read_side):
        response = await stub.GetOrderDetails(queries.GetOrderDetailsRequest(order_id=ORDER.upper()), timeout=10)

    assert response.order_details == order()
    assert position_of(response.as_of) == announced


async def test_a_token_that_was_announced_is_answered_from_the_cache_and_a_later_one_waits(
    read_side: ReadSide, serve: Serve, node: Node
) -> None:
    stub = await serve()
    read_side.store(node.address, VIEW, ORDER, EPOCH, order())
    announced = await read_side.announce()
    request = queries.GetOrderDetailsRequest(order_id=ORDER)
    request.consistency.max_wait.nanos = 50_000_000

    with TablesLocked(read_side):
        request.consistency.at_least_as_fresh = read_side.token(announced)
        response = await stub.GetOrderDetails(request, timeout=10)
    request.consistency.at_least_as_fresh = read_side.token(announced + 1)
    with pytest.raises(aio.AioRpcError) as late:
        await stub.GetOrderDetails(request, timeout=10)

    assert response.order_details == order()
    assert position_of(response.as_of) == announced
    assert reason(late.value) == "PROJECTION_LAG"


async def test_a_wrong_request_is_refused_where_others_are_answered_from_the_cache(
    read_side: ReadSide, serve: Serve, node: Node
) -> None:
    stub = await serve()
    read_side.store(node.address, VIEW, ORDER, EPOCH, order())
    await read_side.announce()
    wrong = queries.GetOrderDetailsRequest(order_id=f"{ORDER}0")
    wrong.consistency.at_least_as_fresh = "?"

    both: Any = await asyncio.gather(
        stub.GetOrderDetails(queries.GetOrderDetailsRequest(order_id=ORDER), timeout=10),
        stub.GetOrderDetails(wrong, timeout=10),
        return_exceptions=True,
    )

    answer, refusal = both
    assert isinstance(answer, queries.GetOrderDetailsResponse)
    assert isinstance(refusal, aio.AioRpcError)
    violations = detail(refusal, error_details_pb2.BadRequest).field_violations
    assert [it.field for it in violations] == ["order_id", "consistency.at_least_as_fresh"]


async def test_a_miss_is_read_from_the_database_and_fills_the_cache(
    read_side: ReadSide, serve: Serve, node: Node
) -> None:
    stub = await serve()
    read_side.put(VIEW, ORDER, order())
    await read_side.announce()
    request = queries.GetOrderDetailsRequest(order_id=ORDER)
    later = read_side.advance()
    before = counted("miss"), counted("hit")

    from_database = await stub.GetOrderDetails(request, timeout=10)
    with TablesLocked(read_side):
        from_cache = await stub.GetOrderDetails(request, timeout=10)

    assert from_database.order_details == from_cache.order_details == order()
    assert position_of(from_database.as_of) == later
    assert (counted("miss"), counted("hit")) == (before[0] + 1, before[1] + 1)


async def test_an_answer_from_both_says_the_lower_position(read_side: ReadSide, serve: Serve, node: Node) -> None:
    stub = await serve()
    read_side.put(VIEW, identity("order", 2), order(2))
    read_side.store(node.address, VIEW, ORDER, EPOCH, order())
    announced = await read_side.announce()
    read_side.advance()

    response = await stub.BatchGetOrderDetails(asked(2, 3, 1), timeout=10)

    assert list(response.order_details) == [order(2), order(1)]
    assert list(response.missing_order_ids) == [identity("order", 3)]
    assert position_of(response.as_of) == announced


@pytest.mark.parametrize("evicted", [False, True])
async def test_a_slow_reader_does_not_put_an_old_value_over_a_newer_one(
    read_side: ReadSide, serve: Serve, node: Node, evicted: bool
) -> None:
    stub = await serve()
    read_side.put(VIEW, ORDER, order(version=1))
    await read_side.announce()

    with TablesLocked(read_side):
        reading = asyncio.ensure_future(
            stub.GetOrderDetails(queries.GetOrderDetailsRequest(order_id=ORDER), timeout=10)
        )
        await read_side.until_blocked()
        assert read_side.cached(node.address, VIEW, ORDER, EPOCH) == b"", "the reader holds a lease"
        read_side.store(node.address, VIEW, ORDER, EPOCH, order(version=2))
        if evicted:
            read_side.store(node.address, VIEW, ORDER, EPOCH, None)

    assert (await reading).order_details.version == 1
    newer = order(version=2).SerializeToString(deterministic=True)
    assert read_side.cached(node.address, VIEW, ORDER, EPOCH) == (None if evicted else newer)


async def test_a_database_that_hangs_delays_nobody_whose_row_is_cached(
    read_side: ReadSide, serve: Serve, node: Node
) -> None:
    stub = await serve()
    read_side.store(node.address, VIEW, ORDER, EPOCH, order())
    await read_side.announce()

    with TablesLocked(read_side):
        missing = asyncio.ensure_future(stub.BatchGetOrderDetails(asked(1, 2), timeout=10))
        await read_side.until_blocked()
        response = await stub.GetOrderDetails(queries.GetOrderDetailsRequest(order_id=ORDER), timeout=10)
        assert response.order_details == order()
        assert not missing.done()

    assert list((await missing).order_details) == [order()]


async def test_a_placeholder_of_another_reader_is_a_miss_and_is_left_to_it(
    read_side: ReadSide, serve: Serve, node: Node
) -> None:
    stub = await serve()
    other = await serve()
    read_side.put(VIEW, ORDER, order())
    await read_side.announce()
    request = queries.GetOrderDetailsRequest(order_id=ORDER)

    with TablesLocked(read_side):
        first = asyncio.ensure_future(stub.GetOrderDetails(request, timeout=10))
        await read_side.until_blocked()
        second = asyncio.ensure_future(other.GetOrderDetails(request, timeout=10))
        await until(lambda: read_side.query_sessions("wait_event_type = 'Lock'") == 2, "both read the database")

    assert (await first).order_details == (await second).order_details == order()


async def test_a_database_that_lost_commits_does_not_fill_the_cache(
    read_side: ReadSide, serve: Serve, node: Node
) -> None:
    stub = await serve()
    read_side.put(VIEW, ORDER, order())
    await read_side.announce(lost=True)
    request = queries.GetOrderDetailsRequest(order_id=ORDER)

    response = await stub.GetOrderDetails(request, timeout=10)
    # The next read comes after the first one's fill.
    await stub.GetOrderDetails(request, timeout=10)

    assert position_of(response.as_of) == read_side.position
    assert read_side.cached(node.address, VIEW, ORDER, EPOCH) == b""


async def test_an_order_that_is_not_there_is_not_cached(read_side: ReadSide, serve: Serve, node: Node) -> None:
    stub = await serve()
    await read_side.announce()
    assert list((await stub.BatchGetOrderDetails(asked(1), timeout=10)).missing_order_ids) == [ORDER]

    read_side.put(VIEW, ORDER, order())
    response = await stub.BatchGetOrderDetails(asked(1), timeout=10)

    assert list(response.order_details) == [order()]


async def test_a_node_that_is_fenced_off_is_not_read(read_side: ReadSide, serve: Serve, node: Node) -> None:
    stub = await serve()
    read_side.put(VIEW, ORDER, order(version=2))
    read_side.store(node.address, VIEW, ORDER, EPOCH, order(version=1))
    read_side.cache_epochs = {node.address: None}
    await read_side.announce()
    before = counted("bypass")

    response = await stub.GetOrderDetails(queries.GetOrderDetailsRequest(order_id=ORDER), timeout=10)

    assert response.order_details.version == 2
    assert counted("bypass") == before + 1


async def test_entries_of_an_ended_epoch_are_not_read(read_side: ReadSide, serve: Serve, node: Node) -> None:
    stub = await serve()
    read_side.put(VIEW, ORDER, order(version=2))
    read_side.store(node.address, VIEW, ORDER, EPOCH, order(version=1))
    read_side.cache_epochs = {node.address: "e2"}
    await read_side.announce()

    response = await stub.GetOrderDetails(queries.GetOrderDetailsRequest(order_id=ORDER), timeout=10)

    assert response.order_details.version == 2


SECRET = "a secret of sixteen letters"


@pytest.mark.parametrize("wrong", ["no entry", "another order's", "another view's", "a flipped bit", "a forged total"])
async def test_an_entry_that_was_not_stored_for_its_key_is_a_miss_counted_and_replaced(
    read_side: ReadSide, serve: Serve, node: Node, wrong: str
) -> None:
    stub = await serve(cache={"secret": SecretStr(SECRET)} if wrong == "a forged total" else {})
    read_side.put(VIEW, ORDER, order())
    epoch = read_side.prefix(node.address, VIEW, EPOCH)
    name = epoch + uuid.UUID(ORDER).hex
    other = encode_entry(order(2, name="Eve").SerializeToString())
    match wrong:
        case "no entry":
            entry = b"\xff\xff\xff"
        case "another order's":
            entry = Signer().sign(epoch + uuid.UUID(identity("order", 2)).hex, other)
        case "another view's":
            entry = Signer().sign(name.replace(VIEW, "order_summary"), other)
        case "a flipped bit":
            entry = Signer().sign(name, other).replace(b"Eve", b"Eva")
        case _:
            # By somebody who knows all but the secret.
            entry = Signer().sign(name, other)
    client = node_client(node.address, timeout=2)
    client.store({name: entry}, 60)
    client.close()
    await read_side.announce()
    request = queries.GetOrderDetailsRequest(order_id=ORDER)
    before = refused(node), counted("miss")

    response = await stub.GetOrderDetails(request, timeout=10)
    assert response.order_details == order()
    await until(lambda: (refused(node), counted("miss")) == (before[0] + 1, before[1] + 1), "it is counted")
    with TablesLocked(read_side):
        response = await stub.GetOrderDetails(request, timeout=10)
    assert response.order_details == order()
    assert refused(node) == before[0] + 1


def refused(node: Node) -> float:
    return sample("tandem_cache_entries_refused_total", node=node.address) or 0


async def test_a_node_that_is_killed_loses_no_read_and_brings_hits_back(
    read_side: ReadSide, serve: Serve, cache_nodes: Nodes
) -> None:
    nodes = cache_nodes(3)
    read_side.cache_epochs = {node.address: EPOCH for node in nodes}
    stub = await serve(cache={"rest_seconds": 0.05})
    for number in range(30):
        read_side.put(VIEW, identity("order", number), order(number))
    await read_side.announce()
    everything = [order(number) for number in range(30)]
    # Twice: the second time from the cache.
    for _ in range(2):
        assert list((await stub.BatchGetOrderDetails(asked(*range(30)), timeout=10)).order_details) == everything

    kill(nodes[0])
    for _ in range(5):
        assert list((await stub.BatchGetOrderDetails(asked(*range(30)), timeout=10)).order_details) == everything

    read_side.cache_epochs[nodes[0].address] = None
    await read_side.announce()
    nodes[0].start()
    read_side.cache_epochs[nodes[0].address] = "e2"
    await read_side.announce()

    async def all_hit() -> bool:
        before = counted("hit")
        assert list((await stub.BatchGetOrderDetails(asked(*range(30)), timeout=10)).order_details) == everything
        return counted("hit") == before + 30

    await eventually(all_hit, "all entries come from the cache again")


async def test_a_node_that_hangs_loses_no_read(read_side: ReadSide, serve: Serve, node: Node) -> None:
    stub = await serve(cache={"timeout": 0.05})
    read_side.put(VIEW, ORDER, order())
    await read_side.announce()
    pause(node)

    for _ in range(3):
        response = await stub.GetOrderDetails(queries.GetOrderDetailsRequest(order_id=ORDER), timeout=10)
        assert response.order_details == order()


async def test_without_a_cache_node_every_read_is_from_the_database(read_side: ReadSide, serve: Serve) -> None:
    stub = await serve()
    read_side.put(VIEW, ORDER, order())
    announced = await read_side.announce()
    before = counted("bypass")

    response = await stub.GetOrderDetails(queries.GetOrderDetailsRequest(order_id=ORDER), timeout=10)

    assert response.order_details == order()
    assert position_of(response.as_of) == announced
    assert counted("bypass") == before + 1


async def test_the_cache_can_be_switched_off(read_side: ReadSide, serve: Serve, node: Node) -> None:
    stub = await serve(cache={"enabled": False})
    read_side.put(VIEW, ORDER, order(version=2))
    read_side.store(node.address, VIEW, ORDER, EPOCH, order(version=1))
    await read_side.announce()

    response = await stub.GetOrderDetails(queries.GetOrderDetailsRequest(order_id=ORDER), timeout=10)

    assert response.order_details.version == 2


@pytest.mark.parametrize("node_kind", ["memcached"])
async def test_a_value_that_a_node_refuses_is_no_failure_of_the_node(
    read_side: ReadSide, serve: Serve, cache_nodes: Nodes
) -> None:
    [node] = cache_nodes(1, TAKES_SMALL_VALUES)
    read_side.cache_epochs = {node.address: EPOCH}
    stub = await serve()
    large = order(1, name="x" * 20_000)
    read_side.put(VIEW, ORDER, large)
    read_side.put(VIEW, identity("order", 2), order(2))
    await read_side.announce()
    missed = counted("miss")

    assert list((await stub.BatchGetOrderDetails(asked(1, 2), timeout=10)).order_details) == [large, order(2)]
    await until(lambda: counted("miss") == missed + 2, "both are missed")
    before = counted("hit"), counted("bypass")
    assert list((await stub.BatchGetOrderDetails(asked(1, 2), timeout=10)).order_details) == [large, order(2)]

    await until(lambda: (counted("hit"), counted("miss")) == (before[0] + 1, missed + 3), "all others are hits")
    assert counted("bypass") == before[1]


async def test_a_connection_that_a_node_closed_while_it_was_idle_is_made_anew(
    read_side: ReadSide, serve: Serve, cache_nodes: Nodes
) -> None:
    [node] = cache_nodes(1, CLOSES_IDLE_CONNECTIONS)
    read_side.cache_epochs = {node.address: EPOCH}
    stub = await serve()
    read_side.put(VIEW, ORDER, order())
    await read_side.announce()
    request = queries.GetOrderDetailsRequest(order_id=ORDER)
    await stub.GetOrderDetails(request, timeout=10)
    await stub.GetOrderDetails(request, timeout=10)
    closed = node.kicked()
    # Of the thread that looked up and of the one that filled.
    await until(lambda: node.kicked() >= closed + 2, "the node closes idle connections")
    before = counted("hit")

    await stub.GetOrderDetails(request, timeout=10)

    await until(lambda: counted("hit") == before + 1, "it is a hit")
