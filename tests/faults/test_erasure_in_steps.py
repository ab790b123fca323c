"""Somebody with many orders is erased: the key goes at once, the orders in steps, and the receipt is for the last."""

import asyncio
import itertools
import uuid
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import grpc
import psycopg
import pytest
from sqlalchemy import text

from command_server.app import DOMAIN
from command_server.customers import ORDERS_IN_A_STEP, customer_table
from command_server.products import product_table
from commerce.command.v1 import command_service_pb2 as commands
from commerce.command.v1.command_service_pb2_grpc import CommandServiceStub
from commerce.query.v1 import query_service_pb2 as queries
from commerce.type.v1.consistency_pb2 import Consistency
from tandem.commands.ledger import Ledger
from tandem.commands.maintenance import Maintenance
from tandem.commands.receipts import unfinished
from tandem.commands.resumption import FAILURES, Resumption
from tandem.commands.settings import ReceiptSettings, StepSettings
from tandem.runtime.call import Call, Stage
from tandem.runtime.errors import PreconditionFailed, Unavailable
from tandem.testing.stack import kill, until, wait_until
from tests.faults.test_locked_rows import locked
from tests.integration.command_server.conftest import (
    Commands,
    Receipt,
    WriteDatabase,
    commands_on,
    database,
    submit,
    submit_all,
    until_blocked,
)
from tests.support.builders import add_product, identity, place_order, register_customer
from tests.support.stack import Stack

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


async def until_left(database: WriteDatabase, count: int) -> None:
    async def so_many_are_left() -> bool:
        return left(database) == count

    await until(so_many_are_left, f"{count} commands have steps left")


async def begun(database: WriteDatabase) -> None:
    await until_left(database, 1)


@asynccontextmanager
async def resuming(database: WriteDatabase, executor: Stage) -> AsyncIterator[None]:
    resumption = Resumption(database.engine, executor, DOMAIN, StepSettings(resume_after_seconds=0.1))
    await resumption.start()
    try:
        yield
    finally:
        await resumption.stop()


class Stubborn:
    """A stage that never answers the calls of some customers, and fails the others."""

    def __init__(self, silent: Collection[str]) -> None:
        self.silent = silent
        self.came: list[str] = []

    def put_all(self, calls: Sequence[Call]) -> None:
        for call in calls:
            self.came.append(call.request.customer_id)
            if call.request.customer_id not in self.silent:
                call.fail(Unavailable("it fails always", reason="STORE_UNAVAILABLE"))


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


async def test_two_equal_calls_at_once_do_not_end_it_early(commands_on: Commands, database: WriteDatabase) -> None:
    executor = await commands_on.executor()
    await submit(executor, register_customer(1))
    orders = 2 * ORDERS_IN_A_STEP + 500
    give_orders(database, orders)
    first, second = await asyncio.gather(submit(executor, ERASE), submit(executor, ERASE))
    check_all_is_done(database, first, orders)
    assert second == first._replace(replayed=True)


async def test_an_erasure_whose_customer_is_locked_waits_and_holds_up_nobody(
    commands_on: Commands, database: WriteDatabase
) -> None:
    executor = await commands_on.executor(row_wait_seconds=0.1, retry_seconds=1)
    await submit_all(executor, [register_customer(1), add_product(1), add_product(2)])
    orders = STEPS * ORDERS_IN_A_STEP
    give_orders(database, orders)
    erasing = asyncio.create_task(submit(executor, ERASE))
    await begun(database)
    adjust_both = [commands.AdjustStockRequest(product_id=identity("product", number), delta=1) for number in (1, 2)]
    with locked(database, customer_table, CUSTOMER):
        await until_blocked(database)
        with locked(database, product_table, identity("product", 1)):
            first, second = await submit_all(executor, adjust_both)
            assert isinstance(first, Unavailable)
            assert first.reason == "ROWS_BUSY"
            assert isinstance(second, Receipt)
        assert isinstance(await submit(executor, adjust_both[0]), Receipt)
        assert not erasing.done()
    check_all_is_done(database, await erasing, orders)


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
    Maintenance(database.engine, ReceiptSettings(keep_days=1e-9), Ledger(None)).purge()
    if by == "any server":
        async with resuming(database, other):
            await until_left(database, 0)
    receipt = await submit(other, ERASE)
    assert receipt.replayed
    check_all_is_done(database, receipt, orders)


def keep_unfinished(database: WriteDatabase, numbers: Iterable[int]) -> None:
    """Erasures of these customers that have stood still for an hour."""
    for number in numbers:
        request = commands.EraseCustomerRequest(customer_id=identity("customer", number))
        with database.engine.begin() as connection:
            connection.execute(
                unfinished.insert().values(
                    request_id=uuid.uuid4(),
                    request_type=request.DESCRIPTOR.full_name,
                    request=request.SerializeToString(),
                    envelope=b"",
                    stepped_at=datetime.now(UTC) - timedelta(hours=1),
                )
            )


async def test_what_cannot_be_gone_on_with_keeps_no_other_from_its_end(database: WriteDatabase) -> None:
    """Neither ten that fail, whose last steps are the oldest, nor one that takes long."""
    stubborn, before = Stubborn(silent=[CUSTOMER]), FAILURES._value.get()

    async def all_came(count: int) -> bool:
        return len(set(stubborn.came)) == count

    keep_unfinished(database, range(1, 12))
    async with resuming(database, stubborn):
        await until(partial(all_came, 11), "the eleventh is tried")
        keep_unfinished(database, [12])
        await until(partial(all_came, 12), "one that came later is tried")
    assert FAILURES._value.get() >= before + 11


async def test_ten_that_stand_still_keep_no_other_from_its_end(database: WriteDatabase) -> None:
    """Their rows are locked, say, for as long as somebody likes."""
    stubborn, before = Stubborn(silent=[identity("customer", it) for it in range(1, 11)]), FAILURES._value.get()

    async def came(customer: str, times: int) -> bool:
        return stubborn.came.count(customer) >= times

    keep_unfinished(database, range(1, 12))
    async with resuming(database, stubborn):
        await until(partial(came, identity("customer", 11), 1), "the eleventh is tried")
        assert FAILURES._value.get() >= before + 10
        await until(partial(came, CUSTOMER, 2), "the first is tried again")


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
            is_left = "SELECT FROM tandem_write.unfinished"
            await asyncio.to_thread(wait_until, lambda: connection.execute(is_left).rowcount, "a step is done")
            kill(stack.command_server)
            [failed] = await asyncio.gather(erasing, return_exceptions=True)
            assert isinstance(failed, grpc.aio.AioRpcError)
            connection.execute("DROP TRIGGER slow ON tandem_write.event")
            next_server = stack.new_command_server()
            next_server.start()
            await asyncio.to_thread(wait_until, lambda: not connection.execute(is_left).rowcount, "it is resumed")
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
