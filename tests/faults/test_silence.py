"""A database that does not answer, and the cache with it: calls get an answer, health says so, and a stop ends."""

import asyncio
import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from commerce.command.v1 import command_service_pb2 as commands
from commerce.query.v1 import query_service_pb2 as queries
from commerce.type.v1.consistency_pb2 import Consistency
from tandem.cli.embedded import Memcached, Postgres
from tandem.cli.services import Service
from tandem.testing.ports import free_port
from tandem.testing.stack import pause, resume, up_to, wait_until
from tests.support.builders import identity
from tests.support.shop import open_shop, until_answered
from tests.support.silence import DroppedPackets, Silence, SilentProxy, Stopped, a_network
from tests.support.stack import AsyncStubs, Databases, Stack

LIMITS = {"CONNECT_TIMEOUT": "2", "STATEMENT_TIMEOUT": "1", "LOCK_TIMEOUT": "0.5"}
SERVER = {"SERVER__DRAIN_SECONDS": "1", "SERVER__STOP_SECONDS": "8"}
SETTINGS = {
    service: {**SERVER, **{f"{database}__{name}": value for database in databases for name, value in LIMITS.items()}}
    for service, databases in {
        "COMMAND": ["DATABASE"],
        "QUERY": ["DATABASE", "FEED_DATABASE"],
        "PROJECTOR": ["FEED_DATABASE", "READ_DATABASE"],
    }.items()
}
# The longest that a call waits with these: for an answer, then for a new connection, behind another that does the same.
ANSWERED_WITHIN = 12.0
STOPPED_WITHIN = 12.0

PRODUCT = identity("product", 1)


@contextlib.contextmanager
def stopped() -> Iterator[tuple[Databases, Silence]]:
    with tempfile.TemporaryDirectory(prefix="tandem-test-") as folder:
        server = Postgres(Path(folder) / "data", free_port(), settings={"fsync": "off"})
        server.start()
        yield Databases(server), Stopped(server)
        server.stop()


@pytest.fixture(params=["stopped", "accepting and silent", "packets dropped"])
def silence(request: pytest.FixtureRequest, databases: Databases) -> Iterator[tuple[Databases, Silence]]:
    """A server with its databases, and what silences it."""
    with contextlib.ExitStack() as exits:
        if request.param == "stopped":
            yield exits.enter_context(stopped())
            return
        postgres = databases.postgres
        proxy = (
            SilentProxy(postgres)
            if request.param == "accepting and silent"
            else DroppedPackets(postgres, exits.enter_context(a_network()))
        )
        exits.callback(proxy.close)
        yield databases, proxy


def is_serving(service: Service, *, wanted: bool) -> Callable[[], bool]:
    return lambda: service.serves() == wanted


async def test_stores_that_are_silent_hold_nothing_up(
    silence: tuple[Databases, Silence], memcached_nodes: Callable[[int], list[Memcached]], tmp_path: Path
) -> None:
    databases, database = silence
    nodes = memcached_nodes(up_to(1))
    stack = Stack(databases, tmp_path, at=database.at, nodes=nodes, settings=SETTINGS)
    services = (stack.command_server, stack.query_server, stack.projector)
    try:
        stack.start()
        async with stack.async_stubs() as stubs:
            await until_read(stubs, await open_shop(stubs.commands))
            for node in nodes:
                pause(node)
            database.begin()
            answers = await asyncio.gather(*(_outcome(stubs, number) for number in range(6)))
            assert set(answers) == {grpc.StatusCode.UNAVAILABLE}
            for service in services:
                await asyncio.to_thread(wait_until, is_serving(service, wanted=False), f"{service.name} says so")
            for node in nodes:
                resume(node)
            database.end()
            request = commands.AdjustStockRequest(request_id=identity("after"), product_id=PRODUCT, delta=1)
            answer = await until_answered(stubs.commands.AdjustStock, request)
            await until_read(stubs, answer.receipt.consistency_token)
            for service in services:
                await asyncio.to_thread(wait_until, is_serving(service, wanted=True), f"{service.name} is back")
        for node in nodes:
            pause(node)
        database.begin()
        for service in services:
            service.ask_to_stop()
        for service in services:
            wait_until(lambda it=service: it.exit_code() is not None, f"{service.name} has ended", STOPPED_WITHIN)  # type: ignore[misc]
            assert service.exit_code() == 0, service.log_tail()
    finally:
        database.end()
        stack.stop()


async def _outcome(stubs: AsyncStubs, number: int) -> grpc.StatusCode:
    """Of a command, or of a read from the database."""
    try:
        if number % 2:
            request = commands.AdjustStockRequest(product_id=PRODUCT, delta=1)
            await stubs.commands.AdjustStock(request, timeout=ANSWERED_WITHIN)
        else:
            await stubs.queries.GetProduct(queries.GetProductRequest(product_id=PRODUCT), timeout=ANSWERED_WITHIN)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def until_read(stubs: AsyncStubs, token: str) -> None:
    request = queries.GetProductRequest(product_id=PRODUCT, consistency=Consistency(at_least_as_fresh=token))
    await until_answered(stubs.queries.GetProduct, request)
