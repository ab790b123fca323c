"""The write database's schema and the feed's table."""

import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from command_server.app import DOMAIN, MIGRATIONS
from command_server.customers import CUSTOMERS
from command_server.orders import CUSTOMER_OF_ORDER, LINES, ORDERS, PRODUCTS_OF_ORDER
from command_server.products import PRODUCTS
from command_server.subscriptions import SUBSCRIPTIONS
from commerce.command.v1 import command_service_pb2 as commands
from commerce.event.v1.event_pb2 import Event
from commerce.type.v1.product_attribute_pb2 import ProductAttribute
from shop.events import EVENTS
from tandem.commands.batch import decide_batch
from tandem.commands.executor import create_executor_engine
from tandem.commands.maintenance import begin_epoch
from tandem.commands.partitions import ensure_partitions
from tandem.commands.receipts import PERIODS, StoredEvent, append
from tandem.commands.settings import ExecutorSettings
from tandem.commands.write_model import Keys, States
from tandem.feed import table as feed
from tandem.feed.head import read_head
from tandem.feed.reader import read_events
from tandem.runtime.database import transaction
from tandem.runtime.migrations import migrate, newest_revision
from tandem.testing.stack import wait_until
from tests.integration.command_server.conftest import Commands, WriteDatabase, submit, submit_all
from tests.support.builders import (
    add_product,
    command,
    identity,
    place_order,
    register_customer,
    revise_product,
    start_subscription,
)

_ONLY_IN_THE_DATABASE = (
    "event_0",
    "alembic_version",
    "engine_version",
    "backfill",
    *(f"receipt_{number}" for number in range(PERIODS)),
)


def test_the_migrations_make_the_tables_that_the_program_describes(database: WriteDatabase) -> None:
    with database.engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "version_table_schema": feed.SCHEMA,
                "include_schemas": True,
                "compare_type": True,
                "include_name": lambda name, kind, _parents: kind != "schema" or name == feed.SCHEMA,
                # PostgreSQL spells the expressions of generated columns in its own way.
                "include_object": lambda it, name, kind, _reflected, _compared: (
                    it.computed is None
                    if kind == "column"
                    else (kind, name) not in {("table", it) for it in _ONLY_IN_THE_DATABASE}
                ),
            },
        )
        assert compare_metadata(context, feed.metadata) == []


def test_migrating_twice_changes_nothing(database: WriteDatabase) -> None:
    assert migrate(database.settings, MIGRATIONS, feed.WRITE) == newest_revision(MIGRATIONS)


def test_the_feed_crosses_into_its_next_partition(database: WriteDatabase) -> None:
    with database.engine.begin() as connection:
        ahead = [feed.PARTITION_EVENTS * number for number in range(1, 5)]
        assert ensure_partitions(connection) == ahead[:3]
        assert ensure_partitions(connection) == []
        connection.execute(text(f"UPDATE {feed.feed_head.fullname} SET position = {feed.PARTITION_EVENTS - 1}"))
        assert ensure_partitions(connection) == ahead[3:]
        connection.execute(text(f"UPDATE {feed.feed_head.fullname} SET position = {feed.PARTITION_EVENTS - 2}"))
        append(connection, [StoredEvent("order_paid", b"", None)] * 4, [])
    with database.engine.connect() as connection:
        found = read_events(connection, EVENTS, feed.PARTITION_EVENTS - 2, 10).events
        assert [it.position - feed.PARTITION_EVENTS for it in found] == [-1, 0, 1, 2]


async def test_an_event_that_is_too_large_for_its_readers_is_refused_and_the_others_of_its_batch_are_stored(
    commands_on: Commands, database: WriteDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No command of the shop makes one: its limits are narrower.
    monkeypatch.setattr(feed, "MAX_EVENT_BYTES", 1000)
    executor = await commands_on.executor()
    large = add_product(2)
    large.description = "x" * 1000
    outcomes = await submit_all(executor, [add_product(1), large, add_product(3)])
    assert [type(it).__name__ for it in outcomes] == ["Receipt", "InvalidArgument", "Receipt"]
    assert [event.message.product_id for event in database.feed()] == [identity("product", it) for it in (1, 3)]


async def test_a_new_epoch_keeps_the_positions_and_changes_the_name(
    commands_on: Commands, database: WriteDatabase
) -> None:
    executor = await commands_on.executor()
    before = await submit(executor, add_product(1))
    with database.engine.begin() as connection:
        epoch = begin_epoch(connection)
        head = read_head(connection)
    assert isinstance(epoch, uuid.UUID)
    assert (head.epoch, head.position) == (epoch, before.position)
    assert before.epoch != epoch
    assert (await submit(executor, add_product(2))).epoch == epoch


async def test_the_oldest_time_there_is_can_be_stored_and_read_whatever_the_databases_zone(
    commands_on: Commands, database: WriteDatabase
) -> None:
    with database.engine.begin() as connection:
        name = connection.execute(text("SELECT current_database()")).scalar_one()
        connection.execute(text(f"ALTER DATABASE {name} SET timezone = 'America/New_York'"))
    executor = await commands_on.executor()
    await submit(executor, register_customer())
    await submit(executor, start_subscription(started_at="0001-01-01T00:00:00Z"))
    cancel = commands.CancelSubscriptionRequest(
        subscription_id=identity("subscription", 1), when=commands.CANCELLATION_TIME_AT_ONCE
    )
    assert (await submit(executor, cancel)).version == 2


async def test_an_orders_customer_is_read_and_locked_for_those_commands_alone_that_need_it(
    commands_on: Commands, database: WriteDatabase
) -> None:
    executor = await commands_on.executor()
    for request in (register_customer(1), add_product(1), place_order(1)):
        await submit(executor, request)
    order = {identity("order", 1)}
    customer = identity("customer", 1)
    held = text(f"SELECT CAST(id AS text) FROM {feed.SCHEMA}.customer FOR UPDATE SKIP LOCKED")
    with database.engine.connect() as connection, database.engine.connect() as other:
        alone, _ = DOMAIN.model.load(connection, Keys({ORDERS: order}))()
        assert alone[ORDERS].keys() == order
        assert not alone[CUSTOMERS]
        assert other.execute(held).scalars().all() == [customer], "nobody holds the customer"
        other.rollback()
        together, keys = DOMAIN.model.load(connection, Keys({ORDERS: order, CUSTOMER_OF_ORDER: order}))()
        assert together[CUSTOMERS][customer].name == "Customer 1"
        assert keys.keys() == {customer}, "what its personal data is sealed with comes along"
        assert other.execute(held).all() == [], "an erasure waits until the order has its address"


async def test_an_orders_lines_are_read_and_their_products_locked_for_those_commands_alone_that_give_them_back(
    commands_on: Commands, database: WriteDatabase
) -> None:
    executor = await commands_on.executor()
    for request in (register_customer(1), add_product(1), place_order(1)):
        await submit(executor, request)
    order, product = identity("order", 1), identity("product", 1)
    held = text(f"SELECT CAST(id AS text) FROM {feed.SCHEMA}.product FOR UPDATE SKIP LOCKED")
    with database.engine.connect() as connection, database.engine.connect() as other:
        paying, _ = DOMAIN.model.load(connection, Keys({ORDERS: {order}}))()
        assert paying[ORDERS][order].version == 1
        assert not paying[PRODUCTS]
        assert other.execute(held).scalars().all() == [product], "nobody holds the product"
        other.rollback()
        keys = Keys({ORDERS: {order}, LINES: {order}, PRODUCTS_OF_ORDER: {order}})
        cancelling, _ = DOMAIN.model.load(connection, keys)()
        assert [line.product_id for line in cancelling[LINES][order]] == [product] == [*cancelling[PRODUCTS]]
        assert other.execute(held).all() == [], "others wait for the stock that comes back"


async def test_a_product_from_before_there_were_attributes_has_none_and_gets_some(
    commands_on: Commands, database: WriteDatabase
) -> None:
    with database.engine.begin() as connection:
        connection.execute(
            text(f"""
                INSERT INTO {feed.SCHEMA}.product
                    (id, version, name, description, category, price, currency, stock, discontinued)
                VALUES (:id, 1, 'Chai', '10 boxes', 'Tea', 450, 'EUR', 39, false)"""),
            {"id": identity("product", 1)},
        )
    executor = await commands_on.executor()
    await submit(executor, revise_product(1, name="Masala Chai"))
    await submit(executor, revise_product(1, attributes={"Origin": "Assam"}))
    await submit(executor, revise_product(1, description="12 boxes"))
    first, _, last = (Event.FromString(payload).product_revised for _, _, payload in database.events())
    assert (first.name, first.description, first.category, list(first.attributes)) == (
        "Masala Chai",
        "10 boxes",
        "Tea",
        [],
    )
    assert (last.version, last.name, last.description) == (4, "Masala Chai", "12 boxes")
    assert list(last.attributes) == [ProductAttribute(name="Origin", value="Assam")]


async def test_plans_that_were_made_on_empty_tables_still_find_rows_by_index(
    commands_on: Commands, database: WriteDatabase
) -> None:
    """PostgreSQL plans for a table as it last saw it, and a session keeps its plans: those of foreign keys for ever."""
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))
    executor = await commands_on.executor(max_batch=10)
    await submit_all(executor, [register_customer(1), add_product(1, stock=1000)])
    await submit_all(executor, [place_order(number) for number in range(200)])
    # What a session has done is counted when it ends.
    await commands_on.stop()
    counts = text("SELECT n_tup_ins, seq_tup_read FROM pg_stat_user_tables WHERE relname = 'customer_order'")
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        wait_until(lambda: connection.execute(counts).one()[0] > 0, "the session has ended", 20)
        assert tuple(connection.execute(counts).one()) == (200, 0)


def test_what_a_thread_asks_for_is_planned_once_however_much_it_is(database: WriteDatabase) -> None:
    engine = create_executor_engine(database.settings, ExecutorSettings(threads=1))
    with engine.connect() as connection:
        for count in range(1, 20):
            ids = {identity("any", number) for number in range(count)}
            all_of_them = (ORDERS, LINES, CUSTOMERS, PRODUCTS, SUBSCRIPTIONS)
            DOMAIN.model.load(connection, Keys(dict.fromkeys(all_of_them, ids)))()
        plans = text("SELECT statement, custom_plans, generic_plans FROM pg_prepared_statements")
        found = [it for it in connection.execute(plans) if "ANY" in it.statement]
    engine.dispose()
    assert len(found) == 5
    assert all(it.custom_plans == 0 < it.generic_plans for it in found), found


def test_servers_that_create_the_same_things_in_opposite_order_do_not_deadlock(database: WriteDatabase) -> None:
    """One of them finds that they are there already, which is what a repeated batch is for."""
    with database.engine.begin() as connection:
        # A slow insert: both have begun before one is through.
        connection.execute(
            text(
                "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
                " $$ BEGIN PERFORM pg_sleep(0.05); RETURN NEW; END $$"
            )
        )
        connection.execute(
            text(f"CREATE TRIGGER slow BEFORE INSERT ON {feed.SCHEMA}.product FOR EACH ROW EXECUTE FUNCTION slow()")
        )

    def create(numbers: Sequence[int]) -> str | None:
        made = decide_batch(DOMAIN, [command(add_product(number)) for number in numbers], States(), {}).states
        try:
            with database.engine.begin() as connection:
                DOMAIN.model.save(connection, States(), made)
        except DBAPIError as error:
            return type(error.orig).__name__
        return None

    numbers = range(1, 9)
    with ThreadPoolExecutor(2) as servers:
        failures = list(servers.map(create, (numbers, numbers[::-1])))
    assert sorted(failures, key=str) == [None, "UniqueViolation"]


async def test_a_new_status_goes_beside_the_old_one(commands_on: Commands, database: WriteDatabase) -> None:
    """Into the same page, so that no index is written (HOT): 51 % of these updates were without room in the pages."""
    executor = await commands_on.executor()
    await submit_all(executor, [register_customer(1), add_product(1, stock=10_000)])
    kinds = (commands.PayOrderRequest, commands.ShipOrderRequest, commands.DeliverOrderRequest)
    for first in range(0, 2400, 100):
        placed = [place_order(number) for number in range(first, first + 100)]
        changed = [
            kind(order_id=identity("order", number - 500 * age))
            for age, kind in enumerate(kinds, 1)
            for number in range(first, first + 100)
            if number >= 500 * age
        ]
        outcomes = await submit_all(executor, [*placed, *changed])
        assert not [it for it in outcomes if isinstance(it, BaseException)]
    await commands_on.stop()
    counts = text("SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'customer_order'")
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        updates, hot = wait_until(
            lambda: [it for it in connection.execute(counts) if it[0] == 4200], "the session has ended"
        )[0]
    assert hot > 0.8 * updates


@pytest.mark.parametrize(
    ("of_the_database", "pinned"),
    [("off", "on"), ("local", "on"), ("remote_write", "on"), ("on", "on"), ("remote_apply", "remote_apply")],
)
def test_a_database_may_promise_more_and_not_less(database: WriteDatabase, of_the_database: str, pinned: str) -> None:
    with database.engine.begin() as connection:
        name = connection.execute(text("SELECT current_database()")).scalar_one()
        connection.execute(text(f'ALTER DATABASE "{name}" SET synchronous_commit = {of_the_database}'))
    engine = create_executor_engine(database.settings, ExecutorSettings(threads=1))
    # What begins an epoch, too.
    for connected in (engine.connect(), transaction(database.settings, "test")):
        with connected as connection:
            assert connection.execute(text("SHOW synchronous_commit")).scalar_one() == pinned
    engine.dispose()
