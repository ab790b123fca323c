"""G5, G6, G8: a read database that crashes comes back without its last commits, and no promise is broken by it."""

import asyncio
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psycopg
import pytest

from commerce.command.v1.command_service_pb2 import PayOrderRequest, ShipOrderRequest
from tandem.cli.embedded import Memcached, Postgres
from tandem.testing.ports import free_port
from tandem.testing.stack import kill, pause, resume, until, up_to
from tests.faults.test_history import outcome, place
from tests.faults.test_watches import Watcher
from tests.integration.projector.conftest import Stores
from tests.support.projecting import PROJECTIONS, fold
from tests.support.shop import open_shop, until_answered
from tests.support.stack import AsyncStubs, Databases, Stack

# A commit that nobody waits for stays in memory for so long.
SLOW_WRITER = {"wal_writer_delay": "10s", "shared_buffers": "32MB"}
# Each commit that is waited for takes those before it along.
QUIET = {"FOLLOW__HEARTBEAT_SECONDS": "2", "AUDIT__SHARE": "0"}
PAID = 2


@pytest.fixture
def read_server(servers_folder: Path) -> Iterator[Postgres]:
    """Of the views alone."""
    server = Postgres(servers_folder / "views", free_port(), settings=SLOW_WRITER)
    server.start()
    yield server
    server.stop()


async def test_a_crash_takes_the_views_back_and_tokens_and_watches_hold(
    databases: Databases,
    read_server: Postgres,
    memcached_nodes: Callable[[int], list[Memcached]],
    tmp_path: Path,
) -> None:
    nodes = memcached_nodes(up_to(1))
    stack = Stack(
        Databases(read_server), tmp_path, feed_server=databases, nodes=nodes, settings={"PROJECTOR": QUIET}
    ).start()
    watches: list[asyncio.Task[None]] = []
    try:
        async with stack.async_stubs() as stubs:
            await open_shop(stubs.commands)
            watchers: list[tuple[Watcher, str]] = []
            # Most crashes lose something: a commit that is waited for may come in between.
            for number in range(1, 11):
                order, token = await place(stubs, number)
                watcher = Watcher(order, token)
                watches.append(asyncio.create_task(watch(stubs, watcher)))
                await until(partial(shown, watcher, 1), "the watch shows the order")
                answer = await until_answered(stubs.commands.PayOrder, PayOrderRequest(order_id=order))
                token = answer.receipt.consistency_token
                watchers.append((watcher, token))
                await until(partial(shown, watcher, PAID), "the watch shows that it is paid")
                pause(stack.projector)
                before = positions(stack.read_url)
                kill(read_server)
                read_server.start()
                if positions(stack.read_url) < before:
                    break
                resume(stack.projector)
            else:
                pytest.fail("ten crashes lost nothing: the views' batches wait for the disk")

            while (answered := await outcome(stubs, order, token, seconds=1)) == "STORE_UNAVAILABLE":
                # The server's connections broke.
                assert stack.query_server.exit_code() is None
            assert answered == "PROJECTION_LAG", "and not the row as it is now"
            resume(stack.projector)
            for watcher, token in watchers:
                assert await outcome(stubs, watcher.order_id, token) == "found"
            # Each compares what it is told with what it was told before.
            await until_answered(stubs.commands.ShipOrder, ShipOrderRequest(order_id=order))
            await until(partial(shown, watcher, PAID + 1), "the watch goes on")
            assert not any(it.done() for it in watches)
        await made_of_the_feed(stack)
    finally:
        for it in watches:
            it.cancel()
        stack.stop()


async def watch(stubs: AsyncStubs, watcher: Watcher) -> None:
    while True:
        await watcher.follow(stubs.queries)


async def shown(watcher: Watcher, version: int) -> bool:
    return bool(watcher.shown) and watcher.shown[-1] >= version


def positions(url: str) -> int:
    """The sum of all views'."""
    with psycopg.connect(url) as connection:
        found = connection.execute("SELECT sum(position) FROM tandem_read.projection").fetchone()
    assert found is not None
    return int(found[0])


async def made_of_the_feed(stack: Stack) -> None:
    """Each row is what all events make of it, each of them once."""
    stores = Stores(stack.write_url, stack.read_url)
    await stores.caught_up()
    history = stores.events()
    for view, projection in PROJECTIONS.items():
        rows = fold(projection, history, {}).rows
        expected = [(uuid.UUID(bytes=key), row.position, row.value) for key, row in sorted(rows.items()) if row]
        assert [(key, position, value) for key, position, *_, value in stores.rows(view)[view]] == expected
    stores.close()
