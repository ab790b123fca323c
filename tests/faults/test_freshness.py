"""G6, G8: a read with a token never shows a state before it, whoever pauses."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import grpc
import psycopg

from commerce.command.v1 import command_service_pb2 as commands
from commerce.query.v1 import query_service_pb2 as queries
from commerce.type.v1.consistency_pb2 import Consistency
from tandem.testing.stack import kill, pause, resume, until, up_to
from tests.support.builders import identity, usd
from tests.support.shop import PRODUCTS, open_shop
from tests.support.stack import AsyncStubs, Stack

CLIENTS = 6
# Pauses shorter and longer than a read's max_wait, and longer than the 3 s after which readers are blind.
PAUSES = (0.05, 0.2, 0.5, 1.5, 3.5)


async def test_no_read_with_a_token_is_older_than_it_while_the_projector_pauses(
    new_stack: Callable[..., Stack],
) -> None:
    stack = new_stack(cache_nodes=up_to(1))
    async with stack.async_stubs() as stubs:
        await open_shop(stubs.commands)
        reads = Reads()
        clients = [asyncio.create_task(_write_and_read(stubs, number, reads)) for number in range(1, CLIENTS + 1)]
        for seconds in PAUSES:
            pause(stack.projector)
            await asyncio.sleep(seconds)
            if seconds == max(PAUSES):
                await reads.grow("lagged", 1, clients)
            resume(stack.projector)
            await reads.grow("answered", 3 * CLIENTS, clients)
        reads.stop = True
        await asyncio.gather(*clients)


@dataclass
class Reads:
    """How many of all clients were answered and how many gave up; `stop` ends the clients."""

    answered: int = 0
    lagged: int = 0
    stop: bool = False

    async def grow(self, name: str, by: int, clients: list[asyncio.Task[None]]) -> None:
        goal = getattr(self, name) + by

        async def there() -> bool:
            for it in clients:
                if it.done():
                    it.result()
            return bool(getattr(self, name) >= goal)

        await until(there, f"{by} more reads are {name}")


async def _write_and_read(stubs: AsyncStubs, number: int, reads: Reads) -> None:
    """Changes a price and reads it, over and over."""
    product = identity("product", number % PRODUCTS + 1)
    version = 0
    while not reads.stop:
        request = commands.ChangePriceRequest(product_id=product, price=usd(version + 1))
        receipt = (await stubs.commands.ChangePrice(request)).receipt
        read = queries.GetProductRequest(
            product_id=product,
            consistency=Consistency(at_least_as_fresh=receipt.consistency_token, max_wait={"nanos": 500_000_000}),  # type: ignore[arg-type]
        )
        try:
            answer = await stubs.queries.GetProduct(read, timeout=10)
        except grpc.aio.AioRpcError as error:
            if error.code() != grpc.StatusCode.UNAVAILABLE or "behind" not in (error.details() or ""):
                raise
            reads.lagged += 1
            continue
        assert answer.product.version >= receipt.version, "a state before the token"
        assert answer.product.version >= version, "a state before one that was seen"
        version = answer.product.version
        reads.answered += 1


async def test_a_query_server_that_was_stopped_refuses_no_read_for_the_lack_of_what_came_meanwhile(
    new_stack: Callable[..., Stack],
) -> None:
    # Its view is not blind for that: a blind one is asked of the database anyway.
    stack = new_stack(settings={"QUERY": {"FRESHNESS__BLIND_AFTER": "60"}})
    product = identity("product", 1)
    async with stack.async_stubs() as stubs:
        await open_shop(stubs.commands)
        for price in range(1, 4):
            pause(stack.projector)
            change = commands.ChangePriceRequest(product_id=product, price=usd(price))
            receipt = (await stubs.commands.ChangePrice(change)).receipt
            # Long enough for all of them to come in and be counted, on a busy machine too.
            read = queries.GetProductRequest(
                product_id=product,
                consistency=Consistency(at_least_as_fresh=receipt.consistency_token, max_wait={"seconds": 2}),  # type: ignore[arg-type]
            )
            reads = [asyncio.ensure_future(stubs.queries.GetProduct(read, timeout=20)) for _ in range(20)]
            await until(_reads_wait(stack, len(reads)), "the reads wait")
            pause(stack.query_server)
            resume(stack.projector)
            await until(_is_projected(stack, receipt.position), "the view has it")
            # Past the end of the wait.
            await asyncio.sleep(2.1)
            resume(stack.query_server)
            assert {(await it).product.price.minor_units for it in reads} == {price}


def _reads_wait(stack: Stack, reads: int) -> Callable[[], Awaitable[bool]]:
    return lambda: asyncio.to_thread(lambda: stack.query_server.metric("tandem_freshness_waiters") == reads)


def _is_projected(stack: Stack, position: int) -> Callable[[], Awaitable[bool]]:
    def look() -> bool:
        with psycopg.connect(stack.read_url) as connection:
            found = connection.execute(
                "SELECT position >= %s FROM tandem_read.projection WHERE view = 'product_card'", (position,)
            ).fetchone()
        return found == (True,)

    return lambda: asyncio.to_thread(look)


async def test_a_standby_takes_over_from_a_projector_that_dies(new_stack: Callable[..., Stack]) -> None:
    stack = new_stack(cache_nodes=up_to(1))
    standby = stack.new_projector()
    standby.start()
    async with stack.async_stubs() as stubs:
        await open_shop(stubs.commands)
        for round_ in range(1, 4):
            active, standby_ = (stack.projector, standby) if round_ % 2 else (standby, stack.projector)
            kill(active)
            price = commands.ChangePriceRequest(product_id=identity("product", 1), price=usd(round_))
            receipt = (await stubs.commands.ChangePrice(price)).receipt
            read = queries.GetProductRequest(
                product_id=identity("product", 1),
                consistency=Consistency(at_least_as_fresh=receipt.consistency_token, max_wait={"seconds": 30}),  # type: ignore[arg-type]
            )
            answer = await stubs.queries.GetProduct(read, timeout=40)
            assert answer.product.price == usd(round_)
            assert standby_.exit_code() is None
            active.launch()


async def test_a_repeated_command_gets_its_first_receipt_across_a_restart(new_stack: Callable[..., Stack]) -> None:
    stack = new_stack()
    async with stack.async_stubs() as stubs:
        await open_shop(stubs.commands)
        request = commands.AdjustStockRequest(request_id=identity("once"), product_id=identity("product", 1), delta=5)
        first = (await stubs.commands.AdjustStock(request)).receipt
        stack.command_server.stop()
        stack.command_server.start()

        async def answers() -> bool:
            try:
                await stubs.commands.AdjustStock(request)
            except grpc.aio.AioRpcError as error:
                return error.code() != grpc.StatusCode.UNAVAILABLE
            return True

        await until(answers, "the command server is back")
        again = (await stubs.commands.AdjustStock(request)).receipt
        assert again.replayed
        assert (again.position, again.version, again.consistency_token) == (
            first.position,
            first.version,
            first.consistency_token,
        )
        other = commands.AdjustStockRequest(request_id=identity("once"), product_id=identity("product", 1), delta=6)
        try:
            await stubs.commands.AdjustStock(other)
        except grpc.aio.AioRpcError as error:
            code = error.code()
        else:
            code = grpc.StatusCode.OK
        assert code == grpc.StatusCode.INVALID_ARGUMENT
