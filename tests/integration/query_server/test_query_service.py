"""QueryService as its callers see it: answers, errors, health, and what happens when a store is away."""

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc import aio
from sqlalchemy import text

from commerce.query.v1 import query_service_pb2 as queries
from commerce.query.v1.query_service_pb2_grpc import QueryServiceStub
from commerce.query.v1.views_pb2 import CustomerProfile, OrderDetails, ProductCard
from query_server.app import build
from tandem.cli.embedded import Postgres
from tandem.queries.store import Store
from tandem.runtime.server import RunningApplication
from tandem.testing.ports import free_port
from tandem.testing.stack import kill
from tests.integration.query_server.conftest import (
    ReadSide,
    Serve,
    TablesLocked,
    detail,
    eventually,
    position_of,
    query_settings,
    reason,
    until,
)
from tests.support.builders import identity

ORDER, PRODUCT, CUSTOMER = identity("order", 1), identity("product", 1), identity("customer", 1)


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """One that may be killed."""
    with tempfile.TemporaryDirectory(prefix="tandem-test-") as folder:
        server = Postgres(Path(folder) / "data", free_port(), settings={"fsync": "off"})
        server.start()
        yield server
        server.stop()


async def test_a_product_and_a_customer_are_read_by_id(read_side: ReadSide, serve: Serve) -> None:
    stub = await serve()
    product, customer = ProductCard(product_id=PRODUCT, available=-1), CustomerProfile(customer_id=CUSTOMER, name="Ö")
    read_side.put("product_card", PRODUCT, product)
    position = read_side.put("customer_profile", CUSTOMER, customer)

    # Together: a batch holds keys of several views.
    one, many, profile = await asyncio.gather(
        stub.GetProduct(queries.GetProductRequest(product_id=PRODUCT), timeout=10),
        stub.BatchGetProducts(queries.BatchGetProductsRequest(product_ids=[ORDER, PRODUCT]), timeout=10),
        stub.GetCustomer(queries.GetCustomerRequest(customer_id=CUSTOMER), timeout=10),
    )

    assert one.product == product
    assert list(many.products) == [product]
    assert list(many.missing_product_ids) == [ORDER]
    assert profile.customer == customer
    assert {position_of(it.as_of) for it in (one, many, profile)} == {position}


@pytest.mark.parametrize(
    ("method", "request_", "name"),
    [
        ("GetOrderDetails", queries.GetOrderDetailsRequest(order_id=ORDER), f"orders/{ORDER}"),
        ("GetProduct", queries.GetProductRequest(product_id=PRODUCT), f"products/{PRODUCT}"),
        ("GetCustomer", queries.GetCustomerRequest(customer_id=CUSTOMER), f"customers/{CUSTOMER}"),
    ],
)
async def test_what_is_not_there_is_named(
    read_side: ReadSide, serve: Serve, method: str, request_: object, name: str
) -> None:
    stub = await serve()

    with pytest.raises(aio.AioRpcError) as raised:
        await getattr(stub, method)(request_, timeout=10)

    assert raised.value.code() == grpc.StatusCode.NOT_FOUND
    assert detail(raised.value, error_details_pb2.ResourceInfo).resource_name == name


async def test_every_bad_field_is_named_in_one_answer(read_side: ReadSide, serve: Serve) -> None:
    stub = await serve()
    request = queries.BatchGetOrderDetailsRequest(order_ids=[ORDER, "x", ""])
    request.consistency.at_least_as_fresh = "nonsense"
    request.consistency.max_wait.FromSeconds(61)

    with pytest.raises(aio.AioRpcError) as raised:
        await stub.BatchGetOrderDetails(request, timeout=10)

    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    fields = [it.field for it in detail(raised.value, error_details_pb2.BadRequest).field_violations]
    assert fields == ["order_ids[1]", "order_ids[2]", "consistency.at_least_as_fresh", "consistency.max_wait"]


async def test_many_calls_at_once_each_get_their_own_answer(read_side: ReadSide, serve: Serve) -> None:
    stub = await serve(reader={"max_batch": 16, "threads": 2})
    keys = [identity("order", number) for number in range(100)]
    for key in keys:
        read_side.put("order_details", key, OrderDetails(order_id=key))

    calls = (stub.GetOrderDetails(queries.GetOrderDetailsRequest(order_id=key), timeout=20) for key in keys)

    assert [it.order_details.order_id for it in await asyncio.gather(*calls)] == keys


async def test_past_the_limit_of_waiting_keys_a_call_is_refused(read_side: ReadSide, serve: Serve) -> None:
    stub = await serve(reader={"max_waiting": 100})
    ids = [identity("order", number) for number in range(100)]
    batch = queries.BatchGetOrderDetailsRequest(order_ids=ids)

    with TablesLocked(read_side):
        reading = asyncio.ensure_future(
            stub.GetOrderDetails(queries.GetOrderDetailsRequest(order_id=ORDER), timeout=20)
        )
        await read_side.until_blocked()
        first = asyncio.ensure_future(stub.BatchGetOrderDetails(batch, timeout=20))
        second = asyncio.ensure_future(
            stub.GetOrderDetails(queries.GetOrderDetailsRequest(order_id=identity("order", "more")), timeout=20)
        )
        [refused], _ = await asyncio.wait([first, second], return_when=asyncio.FIRST_COMPLETED)

    error = refused.exception()
    assert isinstance(error, aio.AioRpcError)
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert reason(error) == "OVERLOADED"
    await asyncio.gather(reading, first, second, return_exceptions=True)


async def test_before_the_read_database_is_migrated_the_server_says_that_it_cannot_answer(
    read_side: ReadSide, serve: Serve
) -> None:
    read_side.drop_schema()
    stub = await serve()

    with pytest.raises(aio.AioRpcError) as raised:
        await stub.GetOrderDetails(queries.GetOrderDetailsRequest(order_id=ORDER), timeout=10)
    assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
    assert reason(raised.value) == "STORE_UNAVAILABLE"

    read_side.migrate()
    with pytest.raises(aio.AioRpcError) as raised:
        await stub.GetOrderDetails(queries.GetOrderDetailsRequest(order_id=ORDER), timeout=10)
    assert raised.value.code() == grpc.StatusCode.NOT_FOUND


async def test_a_database_that_is_killed_is_said_to_be_away_and_read_again_when_it_is_back(
    own_postgres: Postgres, transport: str
) -> None:
    server = own_postgres
    read_side = ReadSide(server.url("postgres"))
    read_side.migrate()
    read_side.put("order_details", ORDER, OrderDetails(order_id=ORDER))
    application = build(query_settings(read_side.settings, transport))
    running = RunningApplication(application)
    await running.start()
    request = queries.GetOrderDetailsRequest(order_id=ORDER)
    try:
        async with aio.insecure_channel(f"127.0.0.1:{running.port}") as channel:
            stub = QueryServiceStub(channel)
            await stub.GetOrderDetails(request, timeout=10)
            assert await application.ready()

            await asyncio.to_thread(kill, server)
            with pytest.raises(aio.AioRpcError) as raised:
                await stub.GetOrderDetails(request, timeout=10)
            assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
            assert reason(raised.value) == "STORE_UNAVAILABLE"
            assert detail(raised.value, error_details_pb2.RetryInfo)
            assert not await application.ready()

            await asyncio.to_thread(server.start)
            assert (await stub.GetOrderDetails(request, timeout=10)).order_details.order_id == ORDER
            await eventually(application.ready, "it is ready again")
            # Heard again, too. The test's own connections are from before the kill.
            read_side.engine.dispose()
            await read_side.announce()
    finally:
        await running.stop()
        read_side.engine.dispose()


async def test_a_statement_that_is_under_way_when_a_server_stops_leaves_no_connection(read_side: ReadSide) -> None:
    """A readiness check runs in a thread that nobody waits for."""
    store = Store(read_side.settings, connections=1)
    with TablesLocked(read_side):
        asked = asyncio.create_task(asyncio.to_thread(store.rows, "order_details", [ORDER.replace("-", "")]))
        await read_side.until_blocked()
        store.close()
    assert not (await asked).rows
    await until(lambda: read_side.query_sessions("true") == 0, "its connection is closed")


async def test_a_database_that_was_started_anew_is_read_at_once_whoever_of_a_server_looks_first(
    read_side: ReadSide,
) -> None:
    """Readiness has a connection of the pool too, and that has ended as well."""
    store = Store(read_side.settings, connections=2)
    try:
        await asyncio.to_thread(store.positions)
        assert await asyncio.to_thread(store.has_revision, "0001")
        with read_side.engine.connect() as connection:
            sessions = "pg_stat_activity WHERE datname = current_database() AND application_name = 'tandem-query'"
            ended = connection.execute(text(f"SELECT count(pg_terminate_backend(pid)) FROM {sessions}"))
            assert ended.scalar_one() == 2
        await until(lambda: read_side.query_sessions("true") == 0, "they have ended")
        assert await asyncio.to_thread(store.positions)
    finally:
        store.close()


async def test_who_finds_all_connections_in_use_gets_the_first_that_is_free_and_so_does_readiness(
    read_side: ReadSide,
) -> None:
    store = Store(read_side.settings, connections=2)
    wanted = "order_details", [ORDER.replace("-", "")]
    try:
        with TablesLocked(read_side):
            asked = [asyncio.create_task(asyncio.to_thread(store.rows, *wanted)) for _ in range(3)]
            await until(lambda: read_side.query_sessions("wait_event_type = 'Lock'") == 2, "both are in use")
        assert [it.rows for it in await asyncio.gather(*asked)] == [{}] * 3
        assert await asyncio.to_thread(store.has_revision, "0001")
    finally:
        store.close()
