"""The write model knows when an order was placed, also of orders from before there was a column for it."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from pydantic import SecretStr
from sqlalchemy import Connection, select, text

from command_server.app import MIGRATIONS
from command_server.orders import order_table
from commerce.command.v1 import command_service_pb2 as commands
from commerce.event.v1.event_pb2 import Event
from tandem.feed import table as feed
from tandem.runtime.database import create_database_engine
from tandem.runtime.migrations import migrate
from tandem.runtime.settings import DatabaseSettings
from tests.integration.command_server.conftest import Commands, WriteDatabase, submit
from tests.support import events
from tests.support.builders import add_product, identity, place_order, register_customer, usd
from tests.support.events import timestamp

S = feed.SCHEMA
# Positions of several batches of the migration, and nothing between them.
STEP = 7_000
ORDERS = 5


@pytest.fixture
def before(fresh_database: Callable[[], str]) -> Iterator[WriteDatabase]:
    """A database of the version before, with orders in it; those with even numbers are cancelled."""
    settings = DatabaseSettings(url=SecretStr(fresh_database()))
    engine = create_database_engine(settings, name="test", pool_size=5)
    migrate(settings, MIGRATIONS, feed.WRITE, "0004")
    with engine.begin() as connection:
        fill(connection)
    yield WriteDatabase(settings, engine)
    engine.dispose()


def order(number: int) -> Event:
    """With two lines in another order than that of their products, and shipping."""
    placed_at = timestamp(datetime(2025, 1, 31, 23, 59, 59, 999_999, tzinfo=UTC) + timedelta(days=number))
    return events.order_placed(number, lines=[(2, number), (1, 3)], placed_at=placed_at)


def cancellation(number: int) -> Event:
    return events.order_cancelled(placed=order(number))


def cancellation_of_before(number: int) -> Event:
    event = cancellation(number)
    for field in ("placed_at", "shipping_fee", "total"):
        event.order_cancelled.ClearField(field)
    for line in event.order_cancelled.released:
        line.ClearField("line_total")
    return event


def fill(connection: Connection) -> None:
    """Writes what the version before wrote."""
    insert = "INSERT INTO tandem_write"
    connection.execute(
        text(f"{insert}.customer (id, version, name, email, phone, addresses) VALUES (:id, 1, '', '', '', '')"),
        {"id": UUID(identity("customer", 1))},
    )
    for product in (1, 2):
        connection.execute(
            text(
                f"{insert}.product (id, version, name, description, category, price, currency, stock, discontinued)"
                " VALUES (:id, 1, '', '', '', 1000, 'USD', 100, false)"
            ),
            {"id": UUID(identity("product", product))},
        )
    for number in range(1, ORDERS + 1):
        placed = order(number).order_placed
        connection.execute(
            text(
                f"{insert}.customer_order (id, version, customer_id, status, currency, total)"
                " VALUES (:id, 1, :customer, 1, 'USD', :total)"
            ),
            {
                "id": UUID(placed.order_id),
                "customer": UUID(placed.customer_id),
                "total": placed.total.minor_units,
            },
        )
        for line_number, line in enumerate(placed.lines, start=1):
            connection.execute(
                text(f"{insert}.order_line VALUES (:id, :number, :product, :quantity, 1000, 1000, :total)"),
                {
                    "id": UUID(placed.order_id),
                    "number": line_number,
                    "product": UUID(line.product_id),
                    "quantity": line.quantity,
                    "total": line.line_total.minor_units,
                },
            )
        append(connection, number * STEP, order(number))
        if number % 2 == 0:
            append(connection, number * STEP + 1, cancellation_of_before(number))
    connection.execute(text(f"UPDATE {S}.feed_head SET position = {(ORDERS + 1) * STEP}"))


def append(connection: Connection, position: int, event: Event) -> None:
    """Personal data is stored sealed; what is asked here does not depend on it."""
    connection.execute(
        feed.event.insert().values(
            position=position, kind=event.WhichOneof("kind"), payload=event.SerializeToString(deterministic=True)
        )
    )


def test_orders_and_cancellations_of_the_version_before_are_completed_and_no_event_is_changed(
    before: WriteDatabase,
) -> None:
    query = text(f"SELECT position, kind, payload, xmin FROM {S}.event ORDER BY position")
    with before.engine.connect() as connection:
        stored = [tuple(row) for row in connection.execute(query)]
    migrate(before.settings, MIGRATIONS, feed.WRITE)
    with before.engine.connect() as connection:
        assert [tuple(row) for row in connection.execute(query)] == stored
        rows = connection.execute(select(order_table.c.id, order_table.c.placed_at))
        moments = {row.id: row.placed_at for row in rows}
    assert moments == {
        UUID(identity("order", number)): order(number).order_placed.placed_at.ToDatetime(tzinfo=UTC)
        for number in range(1, ORDERS + 1)
    }
    after = before.events()
    cancelled = [Event.FromString(payload) for _, kind, payload in after if kind == "order_cancelled"]
    assert cancelled == [cancellation(2), cancellation(4)]
    others = [row[:3] for row in stored if row[1] != "order_cancelled"]
    assert [it for it in after if it[1] != "order_cancelled"] == others


async def test_an_order_of_the_version_before_can_be_cancelled_and_tells_its_day(before: WriteDatabase) -> None:
    migrate(before.settings, MIGRATIONS, feed.WRITE)
    commands_on = Commands(before.settings)
    executor = await commands_on.executor()
    await submit(executor, commands.CancelOrderRequest(order_id=identity("order", 3)))
    await commands_on.stop()
    last = Event.FromString(before.events()[-1][2]).order_cancelled
    expected = cancellation(3).order_cancelled
    assert (last.placed_at, last.total, last.shipping_fee) == (
        expected.placed_at,
        expected.total,
        expected.shipping_fee,
    )
    assert last.released == expected.released


async def test_a_cancellation_tells_what_was_stored_with_the_order(
    commands_on: Commands, database: WriteDatabase
) -> None:
    executor = await commands_on.executor()
    placed = place_order(lines={2: 3, 1: 1}, discount=500)
    placed.shipping_fee.CopyFrom(usd(495))
    placed.placed_at.FromDatetime(datetime(1999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC))
    for request in (register_customer(), add_product(1, price=333), add_product(2), placed):
        await submit(executor, request)
    await submit(executor, commands.CancelOrderRequest(order_id=identity("order", 1)))
    before, after = (Event.FromString(payload) for _, _, payload in database.events()[-2:])
    assert after.order_cancelled.placed_at == before.order_placed.placed_at == placed.placed_at
    assert after.order_cancelled.shipping_fee == usd(495)
    assert after.order_cancelled.total == before.order_placed.total
    assert [(it.product_id, it.quantity, it.line_total) for it in after.order_cancelled.released] == [
        (it.product_id, it.quantity, it.line_total) for it in before.order_placed.lines
    ]
