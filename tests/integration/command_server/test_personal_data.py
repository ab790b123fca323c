"""Personal data in the write database: sealed, also what was stored before it was; and in no error."""

from collections.abc import Callable
from uuid import UUID

import pytest
from pydantic import SecretStr
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError

from command_server.app import DOMAIN, MIGRATIONS
from command_server.customers import CUSTOMERS, customer_table
from commerce.command.v1 import command_service_pb2 as commands
from shop.events import EVENTS
from tandem.commands.write_model import Keys
from tandem.feed import table as feed
from tandem.feed.reader import read_events
from tandem.runtime.database import create_database_engine
from tandem.runtime.migrations import migrate
from tandem.runtime.settings import DatabaseSettings
from tests.integration.command_server.conftest import Commands, WriteDatabase, submit, submit_all
from tests.support import events
from tests.support.builders import add_product, address, identity, place_order, register_customer

CUSTOMER = identity("customer", 1)
HISTORY = [
    events.customer_registered(1),
    events.product_added(),
    events.customer_registered(2, has_address=False),
    events.address_updated(1, city="Hamburg"),
    events.order_placed(customer=1),
    events.order_paid(),
]


def test_what_was_stored_in_the_clear_is_sealed_by_the_migration(fresh_database: Callable[[], str]) -> None:
    settings = DatabaseSettings(url=SecretStr(fresh_database()))
    migrate(settings, MIGRATIONS, feed.WRITE, "0002")
    engine = create_database_engine(settings, name="test", pool_size=1)
    with engine.begin() as connection:
        for position, event in enumerate(HISTORY, start=1):
            connection.execute(
                text("INSERT INTO tandem_write.event (position, kind, payload) VALUES (:position, :kind, :payload)"),
                {"position": position, "kind": event.WhichOneof("kind"), "payload": event.SerializeToString()},
            )
        connection.execute(text(f"UPDATE tandem_write.feed_head SET position = {len(HISTORY)}"))
        for number, stored in ((1, address(city="Hamburg").SerializeToString()), (2, None)):
            connection.execute(
                text("INSERT INTO tandem_write.customer VALUES (:id, 2, 'Name', 'a@b', '1', :address)"),
                {"id": identity("customer", number), "address": stored},
            )
    migrate(settings, MIGRATIONS, feed.WRITE)
    with engine.connect() as connection:
        payloads = connection.execute(select(feed.event.c.payload)).scalars().all()
        assert not [it for it in payloads for word in (b"Customer", b"Hamburg", b"example.org") if word in it]
        assert [it.event for it in read_events(connection, EVENTS, 0, 100).events] == HISTORY
        both = {CUSTOMER, identity("customer", 2)}
        loaded, keys = DOMAIN.model.load(connection, Keys({CUSTOMERS: both}))()
        assert len(set(keys.values())) == 2
        assert all(len(key) == 32 for key in keys.values())
        [default] = loaded[CUSTOMERS][CUSTOMER].addresses
        assert (default.name, default.address, default.is_default) == ("main", address(city="Hamburg"), True)
        assert loaded[CUSTOMERS][identity("customer", 2)].addresses == ()
    engine.dispose()


async def test_an_erased_customers_key_and_row_are_empty_and_the_rest_of_the_feed_stays(
    commands_on: Commands, database: WriteDatabase
) -> None:
    executor = await commands_on.executor()
    await submit_all(executor, [register_customer(1), register_customer(2), add_product(1, stock=1000)])
    await submit_all(executor, [place_order(number, customer=number % 2 + 1) for number in range(1, 301)])
    erased = await submit(executor, commands.EraseCustomerRequest(customer_id=identity("customer", 1)))
    with database.engine.connect() as connection:
        key = select(feed.subject_key.c.key).where(feed.subject_key.c.subject_id == CUSTOMER)
        assert connection.execute(key).scalar_one() is None
        row = connection.execute(select(customer_table).where(customer_table.c.id == CUSTOMER)).one()
        assert tuple(row) == (UUID(CUSTOMER), 2, "", "", "", b"", True, None)
        found = read_events(connection, EVENTS, 0, 1000).events
    assert (erased.position, erased.version) == (found[-1].position, 2)
    anonymized = [it.event.orders_anonymized for it in found if it.kind == "orders_anonymized"]
    assert [len(it.order_ids) for it in anonymized] == [100, 50]
    orders = {it.event.order_placed.order_id: it.event.order_placed for it in found if it.kind == "order_placed"}
    blank = {order_id for order_id, it in orders.items() if not it.HasField("personal")}
    assert blank == {order_id for it in anonymized for order_id in it.order_ids}
    assert blank == {it.order_id for it in orders.values() if it.customer_id == str(CUSTOMER)}


async def test_a_batch_that_registers_orders_and_erases_leaves_no_key(
    commands_on: Commands, database: WriteDatabase
) -> None:
    """The commands come together, so some of them share a transaction."""
    executor = await commands_on.executor()
    erase = commands.EraseCustomerRequest(customer_id=identity("customer", 1))
    await submit_all(executor, [add_product(1), register_customer(1), place_order(1), erase, place_order(2)])
    with database.engine.connect() as connection:
        assert connection.execute(select(feed.subject_key.c.key)).scalars().all() == [None]
        found = read_events(connection, EVENTS, 0, 100).events
    assert [it.kind for it in found][-2:] == ["customer_erased", "orders_anonymized"]
    assert not [it for it in found if b"Customer 1" in it.event.SerializeToString()]


async def test_an_error_quotes_neither_parameters_nor_rows(commands_on: Commands, database: WriteDatabase) -> None:
    with database.engine.begin() as connection:
        connection.execute(text("ALTER TABLE tandem_write.customer ADD CONSTRAINT refused CHECK (phone <> '030-1')"))
    executor = await commands_on.executor()
    request = register_customer(1)
    request.name, request.phone = "Unmistakable Name", "030-1"
    with pytest.raises(IntegrityError) as caught:
        await submit(executor, request)
    shown = f"{caught.value!r} {caught.value} {caught.value.orig!r} {caught.value.orig}"
    assert "refused" in shown
    assert "Unmistakable" not in shown
    assert "030-1" not in shown
