"""The services with a search engine that is silent, ends, and comes back empty, while products are added and the view
is rebuilt: each search with a token finds what was added before, and no other view waits.

On an emulator of OpenSearch, osmem-server: what a cluster's own failover does is not shown here.
"""

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

from commerce.internal.v1.stored_pb2 import SearchPageToken
from commerce.query.v1 import query_service_pb2 as queries
from commerce.type.v1.consistency_pb2 import Consistency
from tandem.queries.page_token import decode_stored
from tandem.testing.stack import until
from tests.support.builders import add_product
from tests.support.operating import operator
from tests.support.search_engines import search_server
from tests.support.stack import AsyncStubs, Stack


class Shop:
    """Adds products, and searches for all of them with the token of the last one."""

    def __init__(self, stubs: AsyncStubs) -> None:
        self._stubs = stubs
        self.added = 0

    async def add(self) -> None:
        """A product, which a search finds at once, and a read by its id."""
        self.added += 1
        receipt = (await self._stubs.commands.AddProduct(add_product(self.added), timeout=20)).receipt
        fresh = Consistency(at_least_as_fresh=receipt.consistency_token)
        found, card = await asyncio.gather(
            self._stubs.queries.SearchProducts(
                queries.SearchProductsRequest(query="product", consistency=fresh, page_size=100), timeout=20
            ),
            self._stubs.queries.GetProduct(
                queries.GetProductRequest(product_id=add_product(self.added).product_id, consistency=fresh),
                timeout=20,
            ),
        )
        assert {it.product.name for it in found.hits} == {f"Product {it + 1}" for it in range(self.added)}
        assert card.product.name == f"Product {self.added}"

    async def by_engine(self) -> bool:
        """Whether the engine finds the products now."""
        request = queries.SearchProductsRequest(query="product", page_size=1)
        token = (await self._stubs.queries.SearchProducts(request, timeout=20)).next_page_token
        return decode_stored(SearchPageToken, token, 10_000)[0].by_engine


async def test_searches_find_what_was_added_whatever_becomes_of_the_engine(
    new_stack: Callable[..., Stack], tmp_path: Path
) -> None:
    with search_server("osmem-server", tmp_path / "engine") as engine:
        ours = {"URL": engine.url, "TIMEOUT": "0.3", "WRITE_TIMEOUT": "0.5"}
        stack = new_stack(
            settings={
                "PROJECTOR": {
                    "FOLLOW__STANDBY_SECONDS": "0.1",
                    **{f"SEARCH_ENGINE__{name}": value for name, value in ours.items()},
                },
                "QUERY": {f"SEARCH__ENGINE__{name}": value for name, value in ours.items()},
            }
        )
        async with stack.async_stubs() as stubs, operator(stack.projector.port) as ask:
            shop = Shop(stubs)
            for _ in range(3):
                await shop.add()
            await until(shop.by_engine, "the engine finds the products")
            await shop.add()
            assert await shop.by_engine()

            # Silent: it takes connections, and answers nothing.
            os.kill(engine.pid, signal.SIGSTOP)
            for _ in range(3):
                await shop.add()
            os.kill(engine.pid, signal.SIGCONT)
            await until(shop.by_engine, "the engine finds the products again")
            await shop.add()

            # It ends, and comes back without anything.
            engine.end()
            await shop.add()
            engine.start()
            await until(shop.by_engine, "the engine finds the products once more")
            await shop.add()

            await asyncio.gather(ask.make_anew("product_search"), shop.add())
            await shop.add()
            await until(shop.by_engine, "the engine finds the products of the view that was made anew")
            await shop.add()
