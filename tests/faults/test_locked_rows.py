"""Rows that somebody else keeps locked hold up the commands that need them, and no others."""

import asyncio
import itertools
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from google.protobuf.message import Message
from sqlalchemy import Table, text

from command_server.customers import customer_table
from command_server.orders import order_table
from command_server.products import product_table
from commerce.command.v1 import command_service_pb2 as commands
from tandem.commands.executor import SET_ASIDE
from tandem.runtime.errors import Unavailable
from tandem.testing.stack import until
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

__all__ = ["commands_on", "database"]

SHOP: list[Message] = [register_customer(1), *(add_product(number, stock=1000) for number in range(1, 6))]


@contextmanager
def locked(database: WriteDatabase, table: Table, identity: str) -> Iterator[None]:
    """Keeps a row locked, as somebody at a console does."""
    with database.engine.begin() as connection:
        connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        connection.execute(table.select().where(table.c.id == identity).with_for_update())
        yield


async def test_commands_that_do_not_need_a_locked_row_go_on(commands_on: Commands, database: WriteDatabase) -> None:
    executor = await commands_on.executor(threads=2, row_wait_seconds=0.1, retry_seconds=30)
    await submit_all(executor, SHOP)
    with locked(database, product_table, identity("product", 1)):
        mixed = [place_order(number, lines={number % 5 + 1: 1}) for number in range(100)]
        sent = [asyncio.create_task(submit(executor, it)) for it in mixed]
        others = [it for number, it in enumerate(sent) if number % 5]
        assert all(isinstance(it, Receipt) for it in await asyncio.gather(*others))
        # From here on it is known: nothing waits for the row but those that need it.
        for number in range(100, 150):
            sent.append(asyncio.create_task(submit(executor, place_order(number, lines={1: 1}))))
            await submit(executor, place_order(number + 100, lines={2: 1}))
        waiting = [it for it in sent if not it.done()]
        assert len(waiting) == 20 + 50
    assert all(isinstance(it, Receipt) for it in await asyncio.gather(*waiting))


async def test_a_command_whose_rows_stay_locked_is_told_so(commands_on: Commands, database: WriteDatabase) -> None:
    executor = await commands_on.executor(row_wait_seconds=0.1, retry_seconds=0.5)
    await submit_all(executor, [*SHOP, place_order(1, lines={2: 1})])
    cancelled = commands.CancelOrderRequest(order_id=identity("order", 1))
    with locked(database, product_table, identity("product", 2)):
        # The one says which product it needs, the other needs it through its order.
        for request in (place_order(2, lines={1: 1, 2: 1}), cancelled):
            with pytest.raises(Unavailable) as caught:
                await submit(executor, request)
            assert caught.value.reason == "ROWS_BUSY"
    assert len(database.events()) == len(SHOP) + 1, "nothing was done"
    assert not (await submit(executor, cancelled)).replayed


async def test_a_row_that_was_locked_and_is_not_asked_for_again_holds_up_nobody(
    commands_on: Commands, database: WriteDatabase
) -> None:
    executor = await commands_on.executor(row_wait_seconds=0.1, retry_seconds=0.3)
    await submit_all(executor, SHOP)
    with locked(database, product_table, identity("product", 1)), pytest.raises(Unavailable):
        await submit(executor, place_order(1, lines={1: 1}))
    numbers = itertools.count(2)

    async def goes_with_the_others() -> bool:
        number = next(numbers)
        await submit(executor, place_order(number, lines={2: 1}))
        before: float = SET_ASIDE._value.get()
        # Which products it needs is known only when its order is read.
        await submit(executor, commands.CancelOrderRequest(order_id=identity("order", number)))
        after: float = SET_ASIDE._value.get()
        return after == before

    await until(goes_with_the_others, "the row is taken for free")


@pytest.mark.parametrize(
    ("table", "row"),
    [(customer_table, identity("customer", 1)), (order_table, identity("order", 1))],
    ids=["customer", "order"],
)
async def test_rows_of_every_aggregate_are_found(
    commands_on: Commands, database: WriteDatabase, table: Table, row: str
) -> None:
    executor = await commands_on.executor(row_wait_seconds=0.1, retry_seconds=30)
    await submit_all(executor, [*SHOP, place_order(1)])
    paid = commands.PayOrderRequest(order_id=identity("order", 1))
    renamed = commands.RenameCustomerRequest(customer_id=identity("customer", 1), name="Ada")
    with locked(database, table, row):
        needs, needs_not = (renamed, paid) if table is customer_table else (paid, renamed)
        waiting = asyncio.create_task(submit(executor, needs))
        await asyncio.gather(*(submit(executor, it) for it in (add_product(7), needs_not)))
        assert not waiting.done()
    assert isinstance(await waiting, Receipt)


async def test_what_another_transaction_is_creating_holds_up_no_others(
    commands_on: Commands, database: WriteDatabase
) -> None:
    """Its row cannot be seen, so the batch is split until the command that would create the same is alone."""
    executor = await commands_on.executor(row_wait_seconds=0.1, retry_seconds=30)
    await submit_all(executor, SHOP)
    with database.engine.connect() as connection:
        key, *others = (it.name for it in product_table.columns)
        values, name = ", ".join(others), product_table.fullname
        connection.execute(
            text(f"INSERT INTO {name} ({key}, {values}) SELECT :new, {values} FROM {name} LIMIT 1"),
            {"new": uuid.UUID(identity("product", 9))},
        )
        waiting = asyncio.create_task(submit(executor, add_product(9)))
        await asyncio.gather(*(submit(executor, place_order(number)) for number in range(1, 9)))
        await until_blocked(database)
        assert not waiting.done()
        connection.rollback()
    assert (await waiting).version == 1


async def test_for_a_locked_head_of_the_feed_no_command_is_to_blame(
    commands_on: Commands, database: WriteDatabase
) -> None:
    """While nobody can append, nobody is to blame: the batch is tried again as it is."""
    executor = await commands_on.executor(row_wait_seconds=0.1, retry_seconds=30)
    await submit_all(executor, SHOP)
    with database.engine.begin() as connection:
        connection.execute(text("SELECT 1 FROM tandem_write.feed_head FOR UPDATE"))
        waiting = [asyncio.create_task(submit(executor, place_order(number))) for number in range(1, 9)]
        await until_blocked(database)
    receipts = await asyncio.gather(*waiting)
    assert [it.position for it in receipts] == list(range(7, 15))


async def test_a_command_that_takes_too_long_is_split_off_at_once(
    commands_on: Commands, database: WriteDatabase
) -> None:
    slow = identity("order", 5)
    with database.engine.begin() as connection:
        connection.execute(
            text(
                "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
                f" IF NEW.id = '{slow}' THEN PERFORM pg_sleep(60); END IF; RETURN NEW; END $$"
            )
        )
        connection.execute(
            text(f"CREATE TRIGGER slow BEFORE INSERT ON {order_table.fullname} FOR EACH ROW EXECUTE FUNCTION slow()")
        )
    short = database.settings.model_copy(update={"statement_timeout": 0.3})
    executor = await commands_on.executor(short, retry_seconds=30)
    await submit_all(executor, SHOP)
    outcomes = await submit_all(executor, [place_order(number) for number in range(1, 9)])
    [failed] = [it for it in outcomes if not isinstance(it, Receipt)]
    assert outcomes.index(failed) == 4
    assert isinstance(failed, Unavailable)
    assert failed.reason == "STORE_UNAVAILABLE"
