"""fully_consistent: the answer includes all that was committed to the feed before the call."""

import asyncio
import contextlib
import uuid
from collections.abc import Callable, Iterator

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2
from grpc import aio
from pydantic import SecretStr
from sqlalchemy import text

from commerce.query.v1 import query_service_pb2 as queries
from commerce.query.v1.views_pb2 import OrderDetails
from commerce.type.v1.consistency_pb2 import Consistency
from tandem.cli.embedded import Memcached
from tandem.feed.table import SCHEMA, feed_head, metadata
from tandem.read_store.cache import Signer, encode_entry, key_prefix
from tandem.read_store.nodes import node_client
from tandem.runtime.database import create_database_engine
from tandem.runtime.settings import DatabaseSettings
from tests.integration.query_server.conftest import ReadSide, Serve, detail, eventually, position_of, reason
from tests.support.builders import identity

VIEW = "order_details"
ORDER = identity("order", 1)
ROLE = "head_reader"


class Feed:
    """A write database that has nothing but a feed's head, and a role that may read that and nothing else."""

    def __init__(self, url: str, read_side: ReadSide) -> None:
        self._engine = create_database_engine(DatabaseSettings(url=SecretStr(url)), name="test", pool_size=2)
        assert self._engine.url.database
        self.name = self._engine.url.database
        with self._engine.begin() as connection:
            connection.execute(text(f"CREATE SCHEMA {SCHEMA}"))
            metadata.create_all(connection)
            connection.execute(text(f"DROP ROLE IF EXISTS {ROLE}"))
            connection.execute(text(f"CREATE ROLE {ROLE} LOGIN PASSWORD 'secret'"))
            connection.execute(text(f"GRANT USAGE ON SCHEMA {SCHEMA} TO {ROLE}"))
            connection.execute(text(f"GRANT SELECT ON {feed_head.fullname} TO {ROLE}"))
            connection.execute(feed_head.insert().values(id=1, epoch=read_side.feed, position=read_side.position))
        role = self._engine.url.set(drivername="postgresql", username=ROLE, password="secret")
        self.settings = DatabaseSettings(url=SecretStr(role.render_as_string(hide_password=False)))

    def move_to(self, position: int, epoch: uuid.UUID | None = None) -> None:
        values = {"position": position} | ({"epoch": epoch} if epoch else {})
        with self._engine.begin() as connection:
            connection.execute(feed_head.update().values(values))

    def let_in(self, *, anybody: bool) -> None:
        """Whether the role can connect; those of it who are connected are thrown out."""
        with self._engine.begin() as connection:
            connection.execute(text(f"ALTER ROLE {ROLE} {'LOGIN' if anybody else 'NOLOGIN'}"))
            connection.execute(
                text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = :role"), {"role": ROLE}
            )

    @contextlib.contextmanager
    def held_up(self) -> Iterator[None]:
        """Whoever reads the head waits for as long."""
        with self._engine.begin() as connection:
            connection.execute(text(f"LOCK TABLE {feed_head.fullname}"))
            yield

    def close(self) -> None:
        with self._engine.begin() as connection:
            connection.execute(text(f"DROP OWNED BY {ROLE}"))
            connection.execute(text(f"DROP ROLE {ROLE}"))
        self._engine.dispose()


@pytest.fixture
def feed(read_side: ReadSide, fresh_database: Callable[[], str]) -> Iterator[Feed]:
    made = Feed(fresh_database(), read_side)
    yield made
    made.close()


def order(version: int) -> OrderDetails:
    return OrderDetails(order_id=ORDER, version=version)


def request(*, wait: float = 10) -> queries.GetOrderDetailsRequest:
    max_wait = Duration(seconds=int(wait), nanos=int(wait % 1 * 1e9))
    return queries.GetOrderDetailsRequest(
        order_id=ORDER, consistency=Consistency(fully_consistent=True, max_wait=max_wait)
    )


async def test_a_query_waits_for_what_was_committed_before_it(read_side: ReadSide, serve: Serve, feed: Feed) -> None:
    stub = await serve(feed_database=feed.settings)
    read_side.put(VIEW, ORDER, order(1))
    wanted = await read_side.announce() + 1
    feed.move_to(wanted)
    calls = [asyncio.ensure_future(stub.GetOrderDetails(request(), timeout=20)) for _ in range(20)]
    # Others do not wait.
    anything = queries.GetOrderDetailsRequest(order_id=ORDER)
    assert (await stub.GetOrderDetails(anything, timeout=10)).order_details == order(1)
    assert not any(call.done() for call in calls)

    assert read_side.put(VIEW, ORDER, order(2)) == wanted
    await read_side.announce()

    for answer in await asyncio.gather(*calls):
        assert answer.order_details == order(2)
        assert position_of(answer.as_of) >= wanted


async def test_an_entry_that_was_not_stored_for_its_key_is_no_answer(
    read_side: ReadSide, serve: Serve, feed: Feed, memcached_nodes: Callable[[int], list[Memcached]]
) -> None:
    [node] = memcached_nodes(1)
    read_side.cache_epochs = {node.address: "e1"}
    stub = await serve(feed_database=feed.settings)
    read_side.put(VIEW, ORDER, order(1))
    feed.move_to(await read_side.announce())
    another = Signer().sign(key_prefix(VIEW, "e1") + "0" * 32, encode_entry(order(2).SerializeToString()))
    client = node_client(node.address, timeout=2)
    client.store({key_prefix(VIEW, "e1") + uuid.UUID(ORDER).hex: another}, 60)
    client.close()
    assert (await stub.GetOrderDetails(request(), timeout=20)).order_details == order(1)


async def test_a_view_that_is_behind_the_feed_says_how_far(read_side: ReadSide, serve: Serve, feed: Feed) -> None:
    stub = await serve(feed_database=feed.settings)
    feed.move_to(await read_side.announce() + 3)

    with pytest.raises(aio.AioRpcError) as raised:
        # Enough for a first connection to the feed's database on a busy machine: what is tested is the view's wait.
        await stub.GetOrderDetails(request(wait=2), timeout=20)

    assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
    assert reason(raised.value) == "PROJECTION_LAG"
    assert detail(raised.value, error_details_pb2.ErrorInfo).metadata["behind"] == "3"


async def test_a_server_that_is_not_set_up_to_ask_the_write_store_refuses(serve: Serve) -> None:
    stub = await serve()

    with pytest.raises(aio.AioRpcError) as raised:
        await stub.GetOrderDetails(request(), timeout=20)

    assert raised.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert reason(raised.value) == "FULLY_CONSISTENT_NOT_CONFIGURED"
    [violation] = detail(raised.value, error_details_pb2.PreconditionFailure).violations
    assert violation.subject == "consistency.fully_consistent"


async def test_while_the_write_database_is_away_only_such_queries_fail(
    read_side: ReadSide, serve: Serve, feed: Feed
) -> None:
    stub = await serve(feed_database=feed.settings)
    read_side.put(VIEW, ORDER, order(1))
    feed.move_to(await read_side.announce())
    assert (await stub.GetOrderDetails(request(), timeout=20)).order_details == order(1)

    feed.let_in(anybody=False)
    with pytest.raises(aio.AioRpcError) as raised:
        await stub.GetOrderDetails(request(), timeout=20)
    assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
    assert reason(raised.value) == "STORE_UNAVAILABLE"
    anything = queries.GetOrderDetailsRequest(order_id=ORDER)
    assert (await stub.GetOrderDetails(anything, timeout=10)).order_details == order(1)

    feed.let_in(anybody=True)

    async def answers() -> bool:
        call = stub.GetOrderDetails(request(), timeout=20)
        return bool(await call.code() == grpc.StatusCode.OK)

    await eventually(answers, "the write database is back")


async def test_a_view_of_another_feed_than_the_write_store_has_is_no_answer(
    read_side: ReadSide, serve: Serve, feed: Feed
) -> None:
    stub = await serve(feed_database=feed.settings)
    await read_side.announce()
    feed.move_to(1, epoch=uuid.uuid4())

    with pytest.raises(aio.AioRpcError) as raised:
        await stub.GetOrderDetails(request(), timeout=20)

    assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
    assert reason(raised.value) == "STORE_UNAVAILABLE"


async def test_the_wait_for_the_write_database_is_part_of_max_wait(
    read_side: ReadSide, serve: Serve, feed: Feed
) -> None:
    patient = feed.settings.model_copy(update={"lock_timeout": 60.0, "statement_timeout": 60.0})
    stub = await serve(feed_database=patient)
    await read_side.announce()

    with feed.held_up(), pytest.raises(aio.AioRpcError) as raised:
        await stub.GetOrderDetails(request(wait=0.3), timeout=10)

    assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
    assert reason(raised.value) == "STORE_UNAVAILABLE"


async def test_a_token_that_can_never_be_reached_is_refused_at_once(
    read_side: ReadSide, serve: Serve, feed: Feed
) -> None:
    stub = await serve(feed_database=feed.settings)
    announced = await read_side.announce()
    feed.move_to(announced + 1)
    consistency = Consistency(
        tokens=[read_side.token(1), read_side.token(announced + 2)], max_wait=Duration(seconds=60)
    )
    forged = queries.GetOrderDetailsRequest(order_id=ORDER, consistency=consistency)

    with pytest.raises(aio.AioRpcError) as raised:
        await stub.GetOrderDetails(forged, timeout=20)

    assert raised.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert reason(raised.value) == "TOKEN_AHEAD"
    [violation] = detail(raised.value, error_details_pb2.PreconditionFailure).violations
    assert violation.subject == "consistency.tokens[1]"

    watch = queries.WatchOrderDetailsRequest(order_id=ORDER, consistency=consistency)
    with pytest.raises(aio.AioRpcError) as raised:
        await anext(aiter(stub.WatchOrderDetails(watch, timeout=20)))
    assert reason(raised.value) == "TOKEN_AHEAD"
