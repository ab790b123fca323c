"""G7: the cache may go, hang and come back; no read is lost and no stale entry comes back to life."""

import asyncio
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from commerce.command.v1 import command_service_pb2 as commands
from commerce.query.v1 import query_service_pb2 as queries
from commerce.type.v1.consistency_pb2 import Consistency
from shop.views import VIEWS
from tandem.cli.services import Service
from tandem.testing.stack import kill, pause, resume, until
from tests.support.builders import identity, usd
from tests.support.caches import KEEPS_WHAT_IT_HAS, RedisNode
from tests.support.shop import PRODUCTS, open_shop
from tests.support.stack import AsyncStubs, Stack


class Traffic:
    """Writers that change prices and readers that read them, one pair for each product, until it is told to stop."""

    def __init__(self, stubs: AsyncStubs) -> None:
        self._stubs = stubs
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.written: dict[int, Any] = {}
        """Product number to the receipt of its last change."""
        self.reads = 0

    def start(self) -> None:
        for number in range(1, PRODUCTS + 1):
            self._tasks += [asyncio.create_task(self._write(number)), asyncio.create_task(self._read(number))]

    async def stop(self) -> None:
        self._stop.set()
        await asyncio.gather(*self._tasks)

    async def more_reads(self, count: int) -> None:
        goal = self.reads + count

        async def enough() -> bool:
            failed = [task for task in self._tasks if task.done()]
            assert not failed, [task.exception() for task in failed]
            return self.reads >= goal

        await until(enough, f"{count} more reads", seconds=60)

    async def _write(self, number: int) -> None:
        price = 0
        while not self._stop.is_set():
            price += 1
            request = commands.ChangePriceRequest(product_id=identity("product", number), price=usd(price))
            self.written[number] = (await self._stubs.commands.ChangePrice(request)).receipt
            await asyncio.sleep(0.01)

    async def _read(self, number: int) -> None:
        """Reads without a token and then not older than what it saw: neither may fail, nor go back."""
        request = queries.GetProductRequest(product_id=identity("product", number))
        while not self._stop.is_set():
            first = await self._stubs.queries.GetProduct(request)
            again = queries.GetProductRequest(
                product_id=request.product_id, consistency=Consistency(at_least_as_fresh=first.as_of)
            )
            second = await self._stubs.queries.GetProduct(again)
            assert second.product.version >= first.product.version, "as_of was not honest, or the cache went back"
            self.reads += 2


async def _hits(stack: Stack) -> float:
    return await asyncio.to_thread(stack.query_server.metric, "tandem_cache_reads_total", result="hit")


async def _hits_come_again(stack: Stack) -> None:
    before = await _hits(stack)

    async def more() -> bool:
        return await _hits(stack) > before + 20

    await until(more, "the cache is hit again", seconds=30)


# One that keeps what it has comes back with what was there a second before it was killed.
@pytest.mark.parametrize(("node_kind", "nodes"), [("memcached", 1), ("memcached", 3), ("valkey", 1)])
@pytest.mark.parametrize("fault", ["killed", "paused"])
async def test_a_cache_node_that_goes_and_comes_back_loses_no_read_and_shows_nothing_stale(
    new_stack: Callable[..., Stack], nodes: int, fault: str
) -> None:
    stack = new_stack(cache_nodes=nodes, nodes_do=KEEPS_WHAT_IT_HAS)
    node = stack.nodes[0]
    async with stack.async_stubs() as stubs:
        await _see(stubs, 1, await open_shop(stubs.commands))
        traffic = Traffic(stubs)
        traffic.start()
        await _hits_come_again(stack)
        for _ in range(2):
            if fault == "killed":
                kill(node)
            else:
                pause(node)
            await traffic.more_reads(200)
            if fault == "killed":
                node.start()
            else:
                resume(node)
            await traffic.more_reads(200)
            await _hits_come_again(stack)
        await traffic.stop()
        await _everybody_sees_the_last_write(stubs, traffic)


@pytest.mark.parametrize("node_kind", ["valkey"])
async def test_a_node_that_comes_back_with_old_entries_while_nobody_writes_shows_none_of_them(
    new_stack: Callable[..., Stack],
) -> None:
    stack = new_stack(cache_nodes=1, nodes_do=KEEPS_WHAT_IT_HAS)
    [node] = stack.nodes
    assert isinstance(node, RedisNode)
    async with stack.async_stubs() as stubs:
        await _see(stubs, 1, await open_shop(stubs.commands))
        node.save()
        change = commands.ChangePriceRequest(product_id=identity("product", 1), price=usd(7))
        receipt = (await stubs.commands.ChangePrice(change)).receipt
        await _see(stubs, 1, receipt.consistency_token)
        kill(node)
        node.start()
        before = await _hits(stack)

        async def hit_again() -> bool:
            answer = await stubs.queries.GetProduct(queries.GetProductRequest(product_id=change.product_id))
            assert answer.product.version == receipt.version
            return await _hits(stack) > before

        await until(hit_again, "the cache is hit again", seconds=30)


async def _see(stubs: AsyncStubs, number: int, token: str) -> None:
    """Reads a product as fresh as the token."""
    fresh = Consistency(at_least_as_fresh=token)
    request = queries.GetProductRequest(product_id=identity("product", number), consistency=fresh)
    await stubs.queries.GetProduct(request)


async def _everybody_sees_the_last_write(stubs: AsyncStubs, traffic: Traffic) -> None:
    """Also without a token, and from the cache: once all is quiet, nothing old is left to be read."""
    for number, receipt in traffic.written.items():
        await _see(stubs, number, receipt.consistency_token)
        for _ in range(3):
            request = queries.GetProductRequest(product_id=identity("product", number))
            answer = await stubs.queries.GetProduct(request)
            assert answer.product.version == receipt.version


@pytest.mark.parametrize("node_kind", ["memcached", "valkey"])
async def test_a_clean_restart_of_the_projector_keeps_the_cache_and_a_crash_does_not(
    new_stack: Callable[..., Stack],
) -> None:
    stack = new_stack(cache_nodes=1)
    async with stack.async_stubs() as stubs:
        await _see(stubs, 1, await open_shop(stubs.commands))

        async def took_over(starts: int) -> bool:
            """All views, for each start: one that the projector did not hold when it ended is as it was before."""
            return len(_taken_over(stack)) == starts * len(VIEWS)

        await until(partial(took_over, 1), "the projector has all views")
        for starts, ending, cache in ((2, Service.stop, "kept"), (3, kill, "new")):
            ending(stack.projector)
            stack.projector.start()
            await until(partial(took_over, starts), "the projector has all views again")
            assert _taken_over(stack)[-len(VIEWS) :] == [cache] * len(VIEWS)
        request = queries.GetProductRequest(product_id=identity("product", 1))
        assert (await stubs.queries.GetProduct(request)).product.version == 1


def _taken_over(stack: Stack) -> list[str]:
    """What became of the cache of each view that the projector took over so far: new or kept."""
    return re.findall('"cache": "(new|kept)", "event": "took a view over"', stack.projector.log_tail(1_000))
