"""Somebody with many orders is erased: the key goes at once, the orders in steps, and the receipt is for the last."""

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

import grpc
import psycopg
import pytest
from sqlalchemy import text

from command_server.app import DOMAIN
from command_server.customers import ORDERS_IN_A_STEP
from commerce.command.v1 import command_service_pb2 as commands
from commerce.command.v1.command_service_pb2_grpc import CommandServiceStub
from commerce.query.v1 import query_service_pb2 as queries
from commerce.type.v1.consistency_pb2 import Consistency
from tandem.commands.maintenance import Maintenance
from tandem.commands.resumption import Resumption
from tandem.commands.settings import ReceiptSettings, StepSettings
from tandem.runtime.errors import PreconditionFailed
from tests.integration.command_server.conftest import (
    Commands,
    Receipt,
    WriteDatabase,
    commands_on,
    database,
    submit,
    submit_all,
)
from tests.support.builders import add_product, identity, place_order, register_customer
from tests.support.stack import Stack, kill, until, wait_until

__all__ = ["commands_on", "database"]

STEPS = 20
CUSTOMER = identity("customer", 1)
ERASE = commands.EraseCustomerRequest(request_id=identity("erase"), customer_id=CUSTOMER)


def give_orders(database: WriteDatabase, count: int) -> None:
    """As the write model has them; their events are left out."""
    with database.engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO tandem_write.customer_order"
                f" SELECT gen_random_uuid(), 1, '{CUSTOMER}', 1, 'EUR', 1, now() FROM generate_series(1, {count})"
            )
        )


def left(database: WriteDatabase) -> int:
    with database.engine.connect() as connection:
        count: int = connection.execute(text("SELECT count(*) FROM tandem_write.unfinished")).scalar_one()
    return count


def check_all_is_done(database: WriteDatabase, receipt: Receipt, orders: int) -> None:
    """Every order once; the receipt is for the last of them."""
    anonymized = [it for it in database.feed() if it.kind == "orders_anonymized"]
    ids = [order_id for it in anonymized for order_id in it.event.orders_anonymized.order_ids]
    assert len(ids) == len(set(ids)) == orders
    assert (receipt.position, receipt.mark) == (anonymized[-1].position, anonymized[-1].mark)
    assert receipt.version == 2
    assert left(database) == 0


async def begun(database: WriteDatabase) -> None:
    async def is_begun() -> bool:
        return left(database) == 1

    await until(is_begun, "the first step is done")


async def test_others_go_on_between_the_steps(commands_on: Commands, database: WriteDatabase) -> None:
    executor = await commands_on.executor()
    await submit_all(executor, [register_customer(1), register_customer(2)])
    orders = (STEPS - 1) * ORDERS_IN_A_STEP + 1
    give_orders(database, orders)
    erasing = asyncio.create_task(submit(executor, ERASE))
    await begun(database)
    with database.engine.connect() as connection:
        key = text(f"SELECT key FROM tandem_write.subject_key WHERE subject_id = '{CUSTOMER}'")
        assert connection.execute(key).scalar_one() is None, "the key goes at once"
    others = 0
    while not erasing.done():
        renamed = commands.RenameCustomerRequest(customer_id=identity("customer", 2), name=f"Name {others}")
        await submit(executor, renamed)
        others += 1
    erased = await erasing
    assert not erased.replayed
    check_all_is_done(database, erased, orders)
    kinds = [it.kind for it in database.feed()]
    runs = [kind for kind, _ in itertools.groupby(kinds[kinds.index("customer_erased") + 1 :])]
    assert runs.count("customer_renamed") > 1, "others are stored between the steps"
    with database.engine.connect() as connection:
        steps = text("SELECT count(*) FROM tandem_write.event WHERE kind = 'orders_anonymized' GROUP BY xmin::text")
        assert max(connection.execute(steps).scalars()) == ORDERS_IN_A_STEP // 100
        envelopes = text(
            "SELECT DISTINCT envelope FROM tandem_write.event WHERE kind IN ('customer_erased', 'orders_anonymized')"
        )
        [named] = connection.execute(envelopes).all()
        assert named, "all events say who caused them"
    assert await submit(executor, ERASE) == erased._replace(replayed=True)
    with pytest.raises(PreconditionFailed):
        await submit(executor, commands.EraseCustomerRequest(customer_id=CUSTOMER))


@pytest.mark.parametrize("by", ["its caller, at another server", "any server"])
async def test_an_erasure_that_is_left_is_gone_on_with(commands_on: Commands, database: WriteDatabase, by: str) -> None:
    one, other = await commands_on.executor(), await commands_on.executor()
    await submit_all(one, [register_customer(1)])
    orders = STEPS * ORDERS_IN_A_STEP
    give_orders(database, orders)
    erasing = asyncio.create_task(submit(one, ERASE))
    await begun(database)
    erasing.cancel()
    await asyncio.wait([erasing])
    # What is under way may be stored yet; nothing comes after it.
    await submit(one, register_customer(3))
    await commands_on.stop_one(one)
    assert left(database) == 1
    Maintenance(database.engine, ReceiptSettings(keep_days=1e-9)).purge_once()
    if by == "any server":
        resumption = Resumption(database.engine, other, DOMAIN, StepSettings(resume_after_seconds=0.001))
        assert await resumption.resume() == 1
        assert await resumption.resume() == 0
    receipt = await submit(other, ERASE)
    assert receipt.replayed
    check_all_is_done(database, receipt, orders)


async def test_a_killed_server_is_followed_by_another_and_no_view_shows_the_person(
    new_stack: Callable[..., Stack],
) -> None:
    stack = new_stack(settings={"COMMAND": {"STEPS__RESUME_AFTER_SECONDS": "0.2"}})
    count = ORDERS_IN_A_STEP + 500
    async with stack.async_stubs() as stubs:
        await stubs.commands.RegisterCustomer(register_customer(1))
        await stubs.commands.AddProduct(add_product(1, stock=count))
        await asyncio.gather(*(stubs.commands.PlaceOrder(place_order(number)) for number in range(count)))
        with psycopg.connect(stack.write_url, autocommit=True) as connection:
            # A slow second step, in which the server is killed.
            connection.execute(
                "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
                " IF NEW.kind = 'orders_anonymized' THEN PERFORM pg_sleep(0.1); END IF; RETURN NEW; END $$"
            )
            connection.execute(
                "CREATE TRIGGER slow BEFORE INSERT ON tandem_write.event FOR EACH ROW EXECUTE FUNCTION slow()"
            )
            erasing = asyncio.ensure_future(stubs.commands.EraseCustomer(ERASE))
            unfinished = "SELECT FROM tandem_write.unfinished"
            await asyncio.to_thread(wait_until, lambda: connection.execute(unfinished).rowcount, "a step is done")
            kill(stack.command_server)
            [failed] = await asyncio.gather(erasing, return_exceptions=True)
            assert isinstance(failed, grpc.aio.AioRpcError)
            connection.execute("DROP TRIGGER slow ON tandem_write.event")
            next_server = stack.new_command_server()
            next_server.start()
            await asyncio.to_thread(wait_until, lambda: not connection.execute(unfinished).rowcount, "it is resumed")
        async with grpc.aio.insecure_channel(next_server.address) as channel:
            again: Any = CommandServiceStub(channel)
            erased = await again.EraseCustomer(ERASE)
        assert erased.receipt.replayed
        fresh = Consistency(at_least_as_fresh=erased.receipt.consistency_token)
        for first in range(0, count, 100):
            ids = [identity("order", number) for number in range(first, first + 100)]
            request = queries.BatchGetOrderDetailsRequest(order_ids=ids, consistency=fresh)
            found = (await stubs.queries.BatchGetOrderDetails(request)).order_details
            assert len(found) == 100
            assert not [it for it in found if it.customer_name or it.HasField("shipping_address")]
