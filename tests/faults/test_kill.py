"""G1, G3, G5: kill -9 of any process in the middle of a load, and every acknowledged order is there exactly once."""

import asyncio
import contextlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from commerce.event.v1.event_pb2 import Event
from commerce.query.v1.query_service_pb2 import (
    BatchGetOrderDetailsRequest,
    GetSalesSummaryRequest,
    ListRecentOrdersRequest,
)
from commerce.query.v1.views_pb2 import ProductCard
from commerce.type.v1.consistency_pb2 import Consistency
from tandem.cli.embedded import Memcached, Postgres
from tandem.testing.ports import free_port
from tandem.testing.stack import kill, up_to, wait_until
from tests.support.builders import identity, usd
from tests.support.shop import CUSTOMERS, PRODUCTS, Load, an_order, open_shop, until_answered
from tests.support.stack import AsyncStubs, Databases, Stack

ORDERS = 2000
PRICE = 1999


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """A PostgreSQL that may be killed. With fsync as in production: what is acknowledged is on disk."""
    with tempfile.TemporaryDirectory(prefix="tandem-test-") as folder:
        server = Postgres(Path(folder) / "data", free_port())
        server.start()
        yield server
        server.stop()


@pytest.fixture
def stack(own_postgres: Postgres, memcached_nodes: Callable[[int], list[Memcached]], tmp_path: Path) -> Iterator[Stack]:
    stack = Stack(Databases(own_postgres), tmp_path, nodes=memcached_nodes(up_to(1)))
    stack.start()
    yield stack
    stack.stop()


def test_killing_every_process_in_turn_loses_no_acknowledged_order_and_doubles_none(
    stack: Stack, own_postgres: Postgres
) -> None:
    victims = (stack.command_server, stack.projector, stack.query_server, own_postgres)
    load = Load(ORDERS // len(victims), cancel_every=7)
    asyncio.run(_open(stack))
    # The load runs in a thread while this one kills and starts: children die with the thread that started them.
    with ThreadPoolExecutor(1) as pool:
        for number, victim in enumerate(victims):
            before = number * load.count
            buying = pool.submit(asyncio.run, _buy(stack, load, first=before + 1))
            wait_until(lambda goal=before + load.count // 4: len(load.receipts) >= goal, "a quarter is placed")  # type: ignore[misc]
            kill(victim)
            assert len(load.receipts) < before + load.count, "it was to be killed in the middle of the load"
            victim.start()
            buying.result(timeout=120)
    stack.query_server.wait_until_serving()
    asyncio.run(_nothing_is_lost_or_doubled(stack, load))


async def _open(stack: Stack) -> None:
    async with stack.async_stubs() as stubs:
        await open_shop(stubs.commands)


async def _buy(stack: Stack, load: Load, *, first: int) -> None:
    async with stack.async_stubs() as stubs:
        await load.run(stubs.commands, first=first)


async def _nothing_is_lost_or_doubled(stack: Stack, load: Load) -> None:
    expected = {identity("order", number): an_order(number) for number in range(1, ORDERS + 1)}
    assert load.receipts.keys() == expected.keys()

    positions, placed = _feed(stack.write_url)
    assert positions == list(range(1, len(positions) + 1)), "no gap in the feed"
    assert placed == Counter(expected.keys()), "every order is in the feed exactly once"

    fresh = Consistency(at_least_as_fresh=load.last.consistency_token, max_wait={"seconds": 60})  # type: ignore[arg-type]
    async with stack.async_stubs() as stubs:
        await _order_details_hold_them(stubs, list(expected), fresh)
        await _recent_orders_hold_them(stubs, expected, fresh)
        await _sales_hold_them(stubs, expected, load.cancellations.keys(), fresh)
    _views_hold_nothing_else(stack.read_url, expected, load.cancellations.keys())


def _feed(url: str) -> tuple[list[int], Counter[str]]:
    with psycopg.connect(url) as connection:
        rows = connection.execute("SELECT position, payload FROM tandem_write.event ORDER BY position").fetchall()
    events = [Event.FromString(payload) for _, payload in rows]
    placed = Counter(event.order_placed.order_id for event in events if event.WhichOneof("kind") == "order_placed")
    return [position for position, _ in rows], placed


async def _order_details_hold_them(stubs: AsyncStubs, ids: list[str], fresh: Consistency) -> None:
    for start in range(0, len(ids), 100):
        wanted = ids[start : start + 100]
        request = BatchGetOrderDetailsRequest(order_ids=wanted, consistency=fresh)
        answer = await until_answered(stubs.queries.BatchGetOrderDetails, request)
        assert [it.order_id for it in answer.order_details] == wanted


async def _recent_orders_hold_them(stubs: AsyncStubs, expected: dict[str, Any], fresh: Consistency) -> None:
    listed: list[str] = []
    for customer in range(1, CUSTOMERS + 1):
        page_token = ""
        while True:
            request = ListRecentOrdersRequest(
                customer_id=identity("customer", customer), page_size=100, page_token=page_token, consistency=fresh
            )
            page = await until_answered(stubs.queries.ListRecentOrders, request)
            listed += [it.order_id for it in page.orders]
            page_token = page.next_page_token
            if not page_token:
                break
    assert Counter(listed) == Counter(expected.keys())


async def _sales_hold_them(
    stubs: AsyncStubs, expected: dict[str, Any], cancelled: Set[str], fresh: Consistency
) -> None:
    """Every order is counted once, and every cancelled one as cancelled, on whichever of these days it was placed."""
    today = datetime.now(UTC).date()
    first, last = today - timedelta(days=1), today + timedelta(days=1)
    request = GetSalesSummaryRequest(start_date=str(first), end_date=str(last), consistency=fresh)
    [summary] = (await until_answered(stubs.queries.GetSalesSummary, request)).summaries
    for figures, orders in ((summary.sold, expected.keys() - cancelled), (summary.cancelled, cancelled)):
        units = _units(expected, orders)
        assert (figures.order_count, figures.unit_count) == (len(orders), units.total())
        assert figures.revenue == usd(PRICE * units.total())
    assert {it.product_id: it.unit_count for it in summary.top_products} == _units(
        expected, expected.keys() - cancelled
    )


def _units(orders: dict[str, Any], ids: Iterable[str]) -> Counter[str]:
    """What the orders have of each product."""
    units: Counter[str] = Counter()
    for line in (line for order_id in ids for line in orders[order_id].lines):
        units[line.product_id] += line.quantity
    return units


def _views_hold_nothing_else(url: str, expected: dict[str, Any], cancelled: Set[str]) -> None:
    sold = _units(expected, expected.keys() - cancelled)
    with contextlib.closing(psycopg.connect(url)) as connection:
        for view in ("order_details", "order_summary"):
            keys = connection.execute(f"SELECT key FROM tandem_read.{view}").fetchall()
            assert {str(key) for (key,) in keys} == expected.keys()
        cards = [
            ProductCard.FromString(value)
            for (value,) in connection.execute("SELECT value FROM tandem_read.product_card").fetchall()
        ]
    assert len(cards) == PRODUCTS
    assert {it.product_id: 1_000_000 - it.available for it in cards} == dict(sold), "sums stay exact"
