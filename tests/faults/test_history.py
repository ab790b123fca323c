"""G5, G6: a write database that comes back without the last commits is noticed, told, and mended by one command."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import psycopg
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from psycopg import sql

from commerce.projection.v1 import projection_service_pb2 as projections
from commerce.query.v1 import query_service_pb2 as queries
from commerce.type.v1.consistency_pb2 import Consistency
from tandem.cli.embedded import Postgres
from tandem.testing.ports import free_port
from tandem.testing.stack import kill, pause, resume, until, up_to, wait_until
from tests.integration.projector.conftest import Stores
from tests.support.follower import Follower, feed_stub
from tests.support.operating import operator
from tests.support.replicas import FAST, Standby
from tests.support.shop import Load, an_order, open_shop, until_answered
from tests.support.stack import AsyncStubs, Databases, Stack

RUNNING, FAILED = (
    projections.ProjectionState.PROJECTION_STATE_RUNNING,
    projections.ProjectionState.PROJECTION_STATE_FAILED,
)
QUICK = {"FOLLOW__RETRY_SECONDS": "0.2", "FOLLOW__HEARTBEAT_SECONDS": "0.2"}


class Copied:
    """The write database with a standby that stops receiving, as two databases of one server."""

    def __init__(self, url: str) -> None:
        self._server, self._primary = url.rsplit("/", 1)
        self._standby, self._lost = f"{self._primary}_standby", f"{self._primary}_lost"

    def _run(self, *statements: tuple[str, tuple[str, ...]], autocommit: bool = True) -> None:
        with psycopg.connect(f"{self._server}/postgres", autocommit=autocommit) as connection:
            for statement, names in statements:
                connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))

    def _shut(self) -> None:
        self._run(("ALTER DATABASE {} ALLOW_CONNECTIONS false", (self._primary,)))
        with psycopg.connect(f"{self._server}/postgres", autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s", [self._primary]
            )

    def copy(self) -> None:
        """What the standby has."""
        self._shut()
        self._run(
            ("CREATE DATABASE {} TEMPLATE {}", (self._standby, self._primary)),
            ("ALTER DATABASE {} ALLOW_CONNECTIONS true", (self._primary,)),
        )

    def fail_over(self) -> None:
        """The address leads to the standby from now on."""
        self._shut()
        self._run(
            ("ALTER DATABASE {} RENAME TO {}", (self._primary, self._lost)),
            ("ALTER DATABASE {} RENAME TO {}", (self._standby, self._primary)),
            autocommit=False,
        )

    def drop_lost(self) -> None:
        self._run(("DROP DATABASE {}", (self._lost,)))


async def test_acknowledged_writes_that_a_failover_loses_are_noticed_and_one_command_makes_all_right(
    new_stack: Callable[..., Stack],
) -> None:
    stack = new_stack(cache_nodes=up_to(1), settings={"PROJECTOR": QUICK})
    database = Copied(stack.write_url)
    async with stack.async_stubs() as stubs, grpc.aio.insecure_channel(stack.projector.address) as to_feed:
        await open_shop(stubs.commands)
        kept = [await place(stubs, number) for number in range(1, 4)]
        database.copy()
        lost = [await place(stubs, number) for number in range(4, 7)]
        assert [await outcome(stubs, *it) for it in lost] == ["found"] * 3
        watch: Any = stubs.queries.WatchOrderDetails(queries.WatchOrderDetailsRequest(order_id=lost[0][0]))
        await watch.read()

        database.fail_over()
        # As many again, so that positions alone would say that nothing is amiss.
        new = [await place(stubs, number) for number in range(7, 12)]
        await until(lambda: states(stubs, {FAILED}), "every view says that it cannot go on")
        found = await stubs.projections.ListProjections(projections.ListProjectionsRequest())
        assert all("HISTORY_CHANGED" in it.error and "begin-epoch" in it.error for it in found.projections)

        async def told() -> bool:
            return {await outcome(stubs, *it) for it in (*kept, *lost, *new)} == {"HISTORY_CHANGED"}

        await until(told, "whoever reads with a token is told")
        assert await outcome(stubs, lost[0][0], "") == "found", "without a token it is what it was"
        assert await end_of(watch) == "HISTORY_CHANGED"
        cursor = Follower(after_cursor=lost[-1][1])
        assert await refusal(cursor.follow(feed_stub(to_feed), lambda _: False)) == "TOKEN_EPOCH_MISMATCH"

        stack.command_server.run("begin-epoch")
        receipt = await place(stubs, 12)
        assert await outcome(stubs, *receipt) == "found", "while the views are on their way"
        await until(lambda: states(stubs, {RUNNING}), "the views are right again")
        assert {await outcome(stubs, order, receipt[1]) for order, _ in (*kept, *new)} == {"found"}
        assert {await outcome(stubs, order, receipt[1]) for order, _ in lost} == {"NOT_FOUND"}
        assert {await outcome(stubs, *it) for it in (*kept, *lost, *new)} == {"TOKEN_EPOCH_MISMATCH"}
    database.drop_lost()
    await made_of_the_feed_alone(stack)


async def test_a_synchronous_standby_has_all_and_what_another_lacks_is_named_and_mended_by_one_command(
    databases: Databases, servers_folder: Path, tmp_path: Path
) -> None:
    """Real standbys, with streaming replication. It takes some 15 s: two of them are made and promoted."""
    primary = Postgres(servers_folder / "first", free_port(), settings=FAST)
    primary.start()
    stack = Stack(databases, tmp_path, feed_server=Databases(primary), settings={"PROJECTOR": QUICK}).start()
    servers: list[Postgres] = [primary]
    try:
        async with stack.async_stubs() as stubs:
            await open_shop(stubs.commands)
            standby = Standby(primary, servers_folder / "second")
            servers.append(standby)
            await fail_over_to_all_that_was_acknowledged(stubs, primary, standby)
            last = Standby(standby, servers_folder / "third")
            servers.append(last)
            await fail_over_to_less(stubs, stack, standby, last)
        await made_of_the_feed_alone(stack)
    finally:
        stack.stop()
        for it in servers:
            it.stop()


async def fail_over_to_all_that_was_acknowledged(stubs: AsyncStubs, primary: Postgres, standby: Standby) -> None:
    """In the middle of orders. Commits wait for the standby, as docs/reliability.md requires."""
    standby.follow()
    with psycopg.connect(primary.url("postgres"), autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET synchronous_standby_names = 'standby'")
        connection.execute("SELECT pg_reload_conf()")
        waits = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'"
        wait_until(lambda: connection.execute(waits).fetchone() == (1,), "the standby is synchronous")
    load = Load(count=400, buyers=8)
    buying = asyncio.create_task(load.run(stubs.commands))
    await until(lambda: at_least(load, 100), "orders are placed")
    kill(primary)
    standby.promote()
    await buying
    acknowledged = {order: it.consistency_token for order, it in load.receipts.items()}
    assert len(acknowledged) == load.count
    assert {await outcome(stubs, *it) for it in acknowledged.items()} == {"found"}
    await until(lambda: states(stubs, {RUNNING}), "nothing has changed for the views")


async def fail_over_to_less(stubs: AsyncStubs, stack: Stack, primary: Postgres, standby: Standby) -> None:
    """No view had taken in what is lost: the command server alone knows of it."""
    standby.follow()
    kept = [await place(stubs, number) for number in range(1001, 1004)]
    await until(lambda: states(stubs, {RUNNING}), "the views have them")
    with psycopg.connect(primary.url("postgres"), autocommit=True) as connection:
        found = "SELECT count(*) FROM pg_stat_replication WHERE flush_lsn >= pg_current_wal_lsn()"
        wait_until(lambda: connection.execute(found).fetchone() == (1,), "the standby has them")
    # It receives nothing more.
    standby.stop()
    pause(stack.projector)
    lost = [await place(stubs, number) for number in range(1011, 1014)]
    kill(primary)
    standby.promote()
    # As many again, so that positions alone would say that nothing is amiss.
    new = [await place(stubs, number) for number in range(1021, 1026)]
    resume(stack.projector)
    await until(lambda: states(stubs, {FAILED}), "every view says that it cannot go on")
    views = await stubs.projections.ListProjections(projections.ListProjectionsRequest())
    assert all("was acknowledged" in it.error and "begin-epoch" in it.error for it in views.projections)

    async def told() -> bool:
        return {await outcome(stubs, *it) for it in (*kept, *lost, *new)} == {"HISTORY_CHANGED"}

    await until(told, "whoever reads with a token is told")
    stack.command_server.run("begin-epoch")
    receipt = await place(stubs, 1031)
    assert await outcome(stubs, *receipt) == "found"
    await until(lambda: states(stubs, {RUNNING}), "the views are right again")
    assert {await outcome(stubs, order, receipt[1]) for order, _ in (*kept, *new)} == {"found"}
    assert {await outcome(stubs, order, receipt[1]) for order, _ in lost} == {"NOT_FOUND"}
    assert {await outcome(stubs, *it) for it in (*kept, *lost, *new)} == {"TOKEN_EPOCH_MISMATCH"}


async def at_least(load: Load, count: int) -> bool:
    return len(load.receipts) >= count


async def place(stubs: AsyncStubs, number: int) -> tuple[str, str]:
    """The order and its token."""
    answer = await until_answered(stubs.commands.PlaceOrder, an_order(number))
    return answer.order_id, answer.receipt.consistency_token


async def outcome(stubs: AsyncStubs, order_id: str, token: str, *, seconds: int = 10) -> str:
    """ "found", or the reason of the refusal. seconds: of waiting for the token, at most."""
    consistency = Consistency(at_least_as_fresh=token, max_wait={"seconds": seconds}) if token else None  # type: ignore[arg-type]
    request = queries.GetOrderDetailsRequest(order_id=order_id, consistency=consistency)
    try:
        await stubs.queries.GetOrderDetails(request, timeout=20)
    except grpc.aio.AioRpcError as error:
        return reason(error)
    return "found"


async def refusal(ending: Any) -> str:
    try:
        await asyncio.wait_for(ending, 20)
    except grpc.aio.AioRpcError as error:
        return reason(error)
    return "ended"


async def end_of(watch: Any) -> str:
    async def read() -> None:
        while await watch.read() is not grpc.aio.EOF:
            pass

    return await refusal(read())


def reason(error: grpc.aio.AioRpcError) -> str:
    status = rpc_status.from_call(error)
    assert status is not None, error
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return str(info.reason)


async def states(stubs: AsyncStubs, wanted: set[int]) -> bool:
    """Whether every view is in one of these states, and has all events when it runs."""
    found = await stubs.projections.ListProjections(projections.ListProjectionsRequest())
    lags = [it.lag_events for it in found.projections]
    return {it.state for it in found.projections} == wanted and (wanted != {RUNNING} or not any(lags))


async def made_of_the_feed_alone(stack: Stack) -> None:
    """A view from before the failover would differ from one that is made anew."""
    stores = Stores(stack.write_url, stack.read_url)
    await stores.caught_up()
    served = stores.rows()
    async with operator(stack.projector.port) as ask:
        await ask.make_anew()
    await stores.caught_up()
    assert stores.rows() == served
    stores.close()
