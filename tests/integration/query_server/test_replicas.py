"""G6, G7 and G8 where rows are read on a hot standby, which may be behind what its primary announces."""

import asyncio
from collections.abc import Callable, Iterator

import psycopg
import pytest
from google.protobuf.duration_pb2 import Duration
from grpc import aio
from pydantic import SecretStr
from sqlalchemy import text

from commerce.query.v1 import query_service_pb2 as queries
from commerce.query.v1.views_pb2 import OrderDetails, OrderSummary
from commerce.type.v1.consistency_pb2 import Consistency
from tandem.cli.embedded import Memcached, Postgres
from tandem.read_store.damage import CHANNEL
from tandem.runtime.clock import utc_now
from tandem.runtime.database import create_database_engine
from tandem.runtime.listener import Listener
from tandem.runtime.settings import DatabaseSettings
from tandem.testing.stack import wait_until
from tests.integration.query_server.conftest import ReadSide, Serve, eventually, position_of, reason, until
from tests.integration.query_server.test_watches import following, state, watch
from tests.support.builders import identity
from tests.support.metrics import sample
from tests.support.replicas import Standby

VIEW = "order_details"
ORDER, CUSTOMER = identity("order", 1), identity("customer", 1)
EPOCH = "e1"


class Replica:
    """The read side as it is at a standby, whose replay the test stops and lets go on."""

    def __init__(self, server: Standby, primary: Postgres, read_side: ReadSide) -> None:
        url = read_side.settings.url.get_secret_value()
        self.blocks = {
            "database": DatabaseSettings(url=SecretStr(url.replace(primary.address, server.address))),
            "primary_database": read_side.settings,
        }
        """For `serve`."""
        self._read_side = read_side
        self._session = psycopg.connect(server.url("postgres"), autocommit=True)
        self._primary = psycopg.connect(primary.url("postgres"), autocommit=True)

    def pause(self) -> None:
        """From now on it shows what the primary has now."""
        self.catch_up()
        self._session.execute("SELECT pg_wal_replay_pause()")
        asked = "SELECT pg_get_wal_replay_pause_state()"
        wait_until(lambda: self._session.execute(asked).fetchone() == ("paused",), "the standby's replay has stopped")

    def resume(self) -> None:
        self._session.execute("SELECT pg_wal_replay_resume()")

    def catch_up(self) -> None:
        [written] = self._primary.execute("SELECT pg_current_wal_flush_lsn()").fetchall()
        replayed = "SELECT pg_last_wal_replay_lsn() >= %s"
        wait_until(lambda: self._session.execute(replayed, written).fetchone() == (True,), "the standby has it all")

    def close(self) -> None:
        self.resume()
        self._session.close()
        self._primary.close()


@pytest.fixture(scope="module")
def standby(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standby]:
    # Beside the primary's data, where the server's user comes.
    folder = postgres.log.with_name(tmp_path_factory.mktemp("standby").name)
    server = Standby(postgres, folder)
    try:
        server.follow()
        yield server
    finally:
        server.stop()


@pytest.fixture
def replica(standby: Standby, postgres: Postgres, read_side: ReadSide) -> Iterator[Replica]:
    made = Replica(standby, postgres, read_side)
    made.catch_up()
    yield made
    made.close()


@pytest.fixture
def transport() -> str:
    return "native"


@pytest.fixture
def node(memcached_nodes: Callable[..., list[Memcached]], read_side: ReadSide) -> Memcached:
    [node] = memcached_nodes(1)
    read_side.cache_epochs = {node.address: EPOCH}
    return node


def order(version: int) -> OrderDetails:
    return OrderDetails(order_id=ORDER, version=version)


def request(token: str = "", seconds: float = 20) -> queries.GetOrderDetailsRequest:
    wait = Duration(seconds=int(seconds), nanos=int(seconds % 1 * 1e9))
    consistency = Consistency(at_least_as_fresh=token, max_wait=wait) if token else None
    return queries.GetOrderDetailsRequest(order_id=ORDER, consistency=consistency)


async def test_a_token_that_is_announced_waits_for_the_replica_and_nothing_else_does(
    read_side: ReadSide, serve: Serve, replica: Replica, node: Memcached
) -> None:
    stub = await serve(**replica.blocks)
    read_side.put(VIEW, ORDER, order(1))
    before = await read_side.announce()
    replica.pause()
    read_side.put(VIEW, ORDER, order(2))
    summary = OrderSummary(order_id=ORDER, customer_id=CUSTOMER, version=2)
    read_side.put_summary(ORDER, summary, customer=CUSTOMER, at=utc_now())
    other = identity("order", 2)
    read_side.store(node.address, VIEW, other, EPOCH, OrderDetails(order_id=other, version=7))
    announced = await read_side.announce()
    token = read_side.token(announced)

    old = await stub.GetOrderDetails(request(), timeout=10)
    assert (old.order_details, position_of(old.as_of)) == (order(1), before)
    with pytest.raises(aio.AioRpcError) as late:
        await stub.GetOrderDetails(request(token, 0.05), timeout=10)
    assert reason(late.value) == "PROJECTION_LAG"
    listing = queries.ListRecentOrdersRequest(customer_id=CUSTOMER, consistency=request(token).consistency)
    waiting = [
        asyncio.ensure_future(stub.GetOrderDetails(request(token), timeout=30)),
        asyncio.ensure_future(stub.ListRecentOrders(listing, timeout=30)),
    ]
    await until(lambda: sample("tandem_freshness_waiters") == 2, "both wait for the replica")
    # What is announced holds for the cache, and goes on holding.
    cached = request(token, 0)
    cached.order_id = other
    answer = await stub.GetOrderDetails(cached, timeout=10)
    assert (answer.order_details.version, position_of(answer.as_of)) == (7, announced)
    await until(lambda: sample("tandem_replica_behind_events", view=VIEW) == announced - before, "it is measured")

    replica.resume()

    row, page = await asyncio.gather(*waiting)
    assert row.order_details == order(2)
    assert list(page.orders) == [summary]
    assert min(position_of(row.as_of), position_of(page.as_of)) >= announced


async def test_an_older_row_of_a_replica_never_fills_the_cache(
    read_side: ReadSide, serve: Serve, replica: Replica, node: Memcached
) -> None:
    stub = await serve(**replica.blocks)
    read_side.put(VIEW, ORDER, order(1))
    await read_side.announce()
    replica.pause()
    # Committed and stored, evicted, and not announced yet: the replica has all that was announced.
    read_side.put(VIEW, ORDER, order(2))
    read_side.store(node.address, VIEW, ORDER, EPOCH, order(2))
    read_side.store(node.address, VIEW, ORDER, EPOCH, None)

    assert (await stub.GetOrderDetails(request(), timeout=10)).order_details == order(1)

    seen: set[bytes | None] = set()

    def lease_is_over() -> bool:
        found = read_side.cached(node.address, VIEW, ORDER, EPOCH)
        seen.add(found)
        return found is None and b"" in seen

    await until(lease_is_over, "a lease was taken, and is over")
    assert seen <= {b"", None}
    replica.resume()
    replica.catch_up()
    await stub.GetOrderDetails(request(), timeout=10)
    newer = order(2).SerializeToString(deterministic=True)
    await until(lambda: read_side.cached(node.address, VIEW, ORDER, EPOCH) == newer, "the newer row is brought")
    announced = await read_side.announce()
    answer = await stub.GetOrderDetails(request(read_side.token(announced), 0), timeout=10)
    assert answer.order_details == order(2)


async def test_a_watch_at_a_replica_only_moves_forward_and_ends_at_the_latest(
    read_side: ReadSide, serve: Serve, replica: Replica
) -> None:
    stub = await serve(**replica.blocks)
    read_side.put(VIEW, ORDER, order(1))
    await read_side.announce()
    replica.catch_up()
    messages = watch(stub, heartbeat_interval=Duration(seconds=1))
    shown = await state(messages)
    assert shown.order_details == order(1)
    replica.pause()
    read_side.put(VIEW, ORDER, order(2))
    announced = await read_side.announce()
    # Somebody who has seen it elsewhere comes here.
    further = watch(stub, resume_from=read_side.token(announced), consistency=request("", 30).consistency)
    resumed = asyncio.ensure_future(following(further))
    for _ in range(2):
        beat = await following(messages)
        assert beat.WhichOneof("event") == "heartbeat"
        assert position_of(shown.as_of) <= position_of(beat.as_of) < announced
    assert not resumed.done()

    replica.resume()

    later = await state(messages)
    assert later.order_details == order(2)
    assert position_of((await resumed).as_of) >= announced
    read_side.put(VIEW, ORDER, order(3))
    await read_side.announce()
    assert [(await state(it)).order_details for it in (messages, further)] == [order(3), order(3)]


async def test_a_replica_answers_while_its_primary_does_not(
    read_side: ReadSide, serve: Serve, replica: Replica, node: Memcached
) -> None:
    stub = await serve(freshness={"blind_after": 0.2}, **replica.blocks)
    read_side.put(VIEW, ORDER, order(1))
    announced = await read_side.announce()
    replica.catch_up()
    read_side.let_in(anybody=False)
    try:
        await until(lambda: sample("tandem_freshness_blind", view=VIEW) == 1, "nothing is heard")
        answer = await stub.GetOrderDetails(request(read_side.token(announced), 0.1), timeout=10)
        assert answer.order_details == order(1)
    finally:
        read_side.let_in(anybody=True)
    await read_side.announce()

    async def is_cached() -> bool:
        await stub.GetOrderDetails(request(), timeout=10)
        return bool(await asyncio.to_thread(read_side.cached, node.address, VIEW, ORDER, EPOCH))

    await eventually(is_cached, "what is read fills the cache again")


async def test_a_server_that_knows_no_primary_is_blind_at_a_standby_and_right(
    read_side: ReadSide, serve: Serve, replica: Replica
) -> None:
    stub = await serve(database=replica.blocks["database"])
    read_side.put(VIEW, ORDER, order(1))
    replica.pause()
    token = read_side.token(read_side.put(VIEW, ORDER, order(2)))
    waiting = asyncio.ensure_future(stub.GetOrderDetails(request(token), timeout=30))
    await until(lambda: sample("tandem_freshness_waiters") == 1, "it waits")
    assert sample("tandem_freshness_blind", view=VIEW) == 1
    replica.resume()
    assert (await waiting).order_details == order(2)


def test_of_several_servers_the_primary_is_taken(
    postgres: Postgres, standby: Standby, read_side: ReadSide, replica: Replica
) -> None:
    url = read_side.settings.url.get_secret_value()
    several = url.replace(postgres.address, f"{standby.address},{postgres.address}") + "?target_session_attrs=primary"
    settings = DatabaseSettings(url=SecretStr(several))
    engine = create_database_engine(settings, name="test", pool_size=1, read_only=True)
    listener = Listener(settings, CHANNEL, "test-listen")
    try:
        with engine.connect() as connection:
            assert connection.execute(text("SELECT pg_is_in_recovery()")).scalar_one() is False
        assert listener.wait(0.0) == []
    finally:
        listener.close()
        engine.dispose()


async def test_projectors_are_told_of_a_damaged_row_at_the_primary(
    read_side: ReadSide, serve: Serve, replica: Replica
) -> None:
    stub = await serve(**replica.blocks)
    read_side.put(VIEW, ORDER, OrderDetails(order_id=identity("order", 2)))
    await read_side.announce()
    replica.catch_up()
    url = read_side.settings.url.get_secret_value()
    with psycopg.connect(url, autocommit=True) as projector:
        projector.execute(f"LISTEN {CHANNEL}")
        with pytest.raises(aio.AioRpcError) as damaged:
            await stub.GetOrderDetails(request(), timeout=10)
        assert reason(damaged.value) == "ROW_DAMAGED"
        heard = await asyncio.to_thread(lambda: list(projector.notifies(timeout=20, stop_after=1)))
    assert [it.payload for it in heard] == [f"{VIEW} {ORDER.replace('-', '')}"]
