"""G6 without a token: a fully consistent read sees every write that was acknowledged before it, whoever sent it."""

import asyncio
from collections.abc import Iterator

from commerce.command.v1 import command_service_pb2 as commands
from commerce.query.v1 import query_service_pb2 as queries
from commerce.type.v1.consistency_pb2 import Consistency
from tests.contract.stack.conftest import shop
from tests.support.builders import identity, place_order, usd
from tests.support.stack import Stack

WRITERS = 8
WRITES = 10
ALL_WRITES = Consistency(fully_consistent=True, max_wait={"seconds": 20})  # type: ignore[arg-type]


async def test_whoever_reads_after_a_write_sees_it_without_a_token(stack: Stack, numbers: Iterator[int]) -> None:
    n = next(numbers)
    async with stack.async_stubs() as writing, stack.async_stubs() as reading:
        await shop(writing, n, stock=1000)

        async def write_and_read(writer: int) -> None:
            product = identity("product", n + writer % 2)
            for number in range(WRITES):
                price = commands.ChangePriceRequest(product_id=product, price=usd(1 + writer * WRITES + number))
                changed = (await writing.commands.ChangePrice(price)).receipt
                placed = await writing.commands.PlaceOrder(
                    place_order(n * 1000 + writer * WRITES + number, customer=n, lines={n: 1})
                )
                card, order, page = await asyncio.gather(
                    reading.queries.GetProduct(
                        queries.GetProductRequest(product_id=product, consistency=ALL_WRITES), timeout=30
                    ),
                    reading.queries.GetOrderDetails(
                        queries.GetOrderDetailsRequest(order_id=placed.order_id, consistency=ALL_WRITES), timeout=30
                    ),
                    reading.queries.ListRecentOrders(
                        queries.ListRecentOrdersRequest(
                            customer_id=identity("customer", n), page_size=100, consistency=ALL_WRITES
                        ),
                        timeout=30,
                    ),
                )
                assert card.product.version >= changed.version
                assert order.order_details.version == 1
                assert placed.order_id in {it.order_id for it in page.orders}

        await asyncio.gather(*(write_and_read(writer) for writer in range(WRITERS)))
