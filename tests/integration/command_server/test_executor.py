"""Group commit on a real PostgreSQL: G1 durable, G2 all or nothing, G4 feed order, G12 bounded."""

import asyncio

import grpc
import pytest
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select, text

from command_server.orders import order_table
from command_server.products import product_table
from commerce.command.v1 import command_service_pb2 as commands
from tandem.feed import table as feed
from tandem.runtime.errors import DeadlineExceeded, Overloaded, PreconditionFailed, TandemError, Unavailable
from tandem.runtime.round_trips import ROUND_TRIPS
from tests.integration.command_server.conftest import (
    Commands,
    Receipt,
    WriteDatabase,
    call_of,
    submit,
    submit_all,
    until_blocked,
    write_database,
)
from tests.support.builders import add_product, identity, place_order, register_customer, usd
from tests.support.metrics import sample
from tests.support.stack import Databases
from tests.unit.command_server.test_batches import requests as random_requests

POOL = "tandem-command"
SHOP = [register_customer(1), add_product(1, stock=100), add_product(2, stock=100)]


def batches() -> float:
    return sample("tandem_command_batch_size_count") or 0


def shown(outcome: Receipt | BaseException) -> tuple[object, ...]:
    if isinstance(outcome, Receipt):
        return outcome.subject_id, outcome.position, outcome.version, outcome.replayed
    assert isinstance(outcome, TandemError), repr(outcome)
    return type(outcome), outcome.reason, outcome.message


def contents(database: WriteDatabase) -> dict[str, list[tuple[object, ...]]]:
    with database.engine.connect() as connection:
        return {
            table.name: sorted(map(tuple, connection.execute(table.select()).all()), key=repr)
            for table in (product_table, order_table)
        }


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sent=st.lists(random_requests, min_size=5, max_size=60))
async def test_batches_of_every_size_store_what_one_at_a_time_stores(sent: list[Message], databases: Databases) -> None:
    results = []
    for max_batch in (1, 3, 128):
        with write_database(databases) as database:
            manager = Commands(database.settings)
            try:
                outcomes = await submit_all(await manager.executor(max_batch=max_batch), sent)
                events = database.events()
                assert [position for position, _, _ in events] == list(range(1, len(events) + 1))
                results.append(([shown(it) for it in outcomes], events, contents(database)))
            finally:
                await manager.stop()
    assert results[0] == results[1] == results[2]


async def test_a_rejected_command_does_not_disturb_the_others_of_its_batch(
    commands_on: Commands, database: WriteDatabase
) -> None:
    executor = await commands_on.executor()
    outcomes = await submit_all(executor, [*SHOP, place_order(1, lines={1: 101}), place_order(2, lines={1: 100})])
    assert isinstance(outcomes[3], PreconditionFailed)
    assert isinstance(outcomes[4], Receipt)
    assert [kind for _, kind, _ in database.events()] == [
        "customer_registered",
        "product_added",
        "product_added",
        "order_placed",
    ]


async def test_a_thread_keeps_its_connection_and_no_locks(commands_on: Commands, database: WriteDatabase) -> None:
    executor = await commands_on.executor()
    sessions = text(
        "SELECT pid, state FROM pg_stat_activity"
        " WHERE application_name = 'tandem-command' AND datname = current_database()"
    )
    rows = text(f"SELECT count(*) FROM (SELECT FROM {feed.SCHEMA}.customer FOR UPDATE SKIP LOCKED) AS free")
    await submit(executor, register_customer(1))
    with database.engine.connect() as connection:
        [before] = connection.execute(sessions).all()
        assert before.state == "idle"
        with pytest.raises(PreconditionFailed):
            await submit(executor, place_order(1))
        connection.rollback()
        assert connection.execute(sessions).all() == [before], "what stores nothing ends its transaction too"
        assert connection.execute(rows).scalar_one() == 1


@pytest.mark.parametrize("state", ["raise_exception", "feature_not_supported"])
async def test_a_failure_that_will_not_pass_is_left_with_the_guilty_command_alone(
    commands_on: Commands, database: WriteDatabase, state: str
) -> None:
    """feature_not_supported: what a plan says that does not fit its table any more, which does pass."""
    executor = await commands_on.executor()
    await submit_all(executor, SHOP)
    with database.engine.begin() as connection:
        connection.execute(
            text(
                "CREATE FUNCTION poison() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
                f" IF NEW.id = '{identity('order', 5)}' THEN RAISE {state} USING MESSAGE = 'poison'; END IF;"
                " RETURN NEW; END $$"
            )
        )
        connection.execute(
            text(
                f"CREATE TRIGGER poison BEFORE INSERT ON {order_table.fullname} FOR EACH ROW EXECUTE FUNCTION poison()"
            )
        )
    outcomes = await submit_all(executor, [place_order(number) for number in range(1, 12)])
    failed = [number for number, it in enumerate(outcomes, start=1) if not isinstance(it, Receipt)]
    assert failed == [5]
    assert "poison" in str(outcomes[4])
    stored = [it.position for it in outcomes if isinstance(it, Receipt)]
    assert sorted(stored) == list(range(4, 14)), "no gap where the guilty command was"


async def test_a_command_is_stored_whose_statement_was_planned_for_another_table(
    commands_on: Commands, database: WriteDatabase
) -> None:
    executor = await commands_on.executor()
    await submit_all(executor, [*SHOP, place_order(1), place_order(2)])
    with database.engine.begin() as connection:
        connection.execute(text(f"ALTER TABLE {product_table.fullname} ALTER name TYPE varchar(500)"))
    outcomes = await submit_all(executor, [place_order(3), place_order(4)])
    assert all(isinstance(it, Receipt) for it in outcomes), outcomes


async def test_competing_servers_sell_exactly_what_there_is(commands_on: Commands, database: WriteDatabase) -> None:
    first = await commands_on.executor(threads=4, max_batch=3)
    second = await commands_on.executor(threads=4, max_batch=3)
    await submit_all(first, SHOP)
    sales = [place_order(number, lines={1: 1, 2: 1} if number % 2 else {2: 1, 1: 1}) for number in range(1, 151)]
    outcomes = await asyncio.gather(
        *(submit(first if number % 2 else second, sale) for number, sale in enumerate(sales)), return_exceptions=True
    )
    receipts = [it for it in outcomes if isinstance(it, Receipt)]
    assert len(receipts) == 100
    assert all(isinstance(it, PreconditionFailed) for it in outcomes if not isinstance(it, Receipt))
    assert sorted(it.position for it in receipts) == list(range(4, 104))
    with database.engine.connect() as connection:
        assert set(connection.execute(product_table.select()).mappings().all()[0].items()) >= {("stock", 0)}


async def test_a_thread_that_waits_for_rows_holds_no_other_up(commands_on: Commands, database: WriteDatabase) -> None:
    executor = await commands_on.executor(threads=2)
    for request in SHOP:
        await submit(executor, request)
    with database.engine.begin() as connection:
        connection.execute(
            select(product_table.c.id).where(product_table.c.id == identity("product", 1)).with_for_update()
        )
        waiting = asyncio.create_task(submit(executor, place_order(1, lines={1: 1})))
        await until_blocked(database)
        assert isinstance(
            await submit(executor, commands.ChangePriceRequest(product_id=identity("product", 2), price=usd(5))),
            Receipt,
        )
        assert not waiting.done()
    assert isinstance(await waiting, Receipt)


async def test_a_command_whose_deadline_passed_while_it_waited_is_not_run(
    commands_on: Commands, database: WriteDatabase
) -> None:
    executor = await commands_on.executor()
    await submit_all(executor, SHOP)
    with database.engine.begin() as connection:
        connection.execute(text(f"SELECT 1 FROM {feed.feed_head.fullname} FOR UPDATE"))
        blocked = asyncio.create_task(submit(executor, place_order(1)))
        await until_blocked(database)
        late = asyncio.create_task(submit(executor, place_order(2), seconds=0))
        await asyncio.sleep(0)
    assert isinstance(await blocked, Receipt)
    with pytest.raises(DeadlineExceeded):
        await late
    assert len(database.events()) == 4


async def test_a_command_that_nobody_waits_for_any_more_is_not_run_and_its_caller_is_told(
    commands_on: Commands, database: WriteDatabase
) -> None:
    """Whoever counts the calls under way waits for the end of each."""
    executor = await commands_on.executor()
    await submit_all(executor, SHOP)
    unread = call_of(place_order(1))
    unread.caller_left()
    executor.put_all([unread])
    await submit(executor, place_order(2))
    assert unread.code == grpc.StatusCode.CANCELLED
    assert unread.future.cancelled()
    assert [kind for _, kind, _ in database.events()][3:] == ["order_placed"]


async def test_a_cancelled_call_leaves_the_connection_whole(commands_on: Commands, database: WriteDatabase) -> None:
    executor = await commands_on.executor()
    await submit_all(executor, SHOP)
    with database.engine.begin() as connection:
        connection.execute(text(f"SELECT 1 FROM {feed.feed_head.fullname} FOR UPDATE"))
        running = asyncio.create_task(submit(executor, place_order(1)))
        await until_blocked(database)
        waiting = asyncio.create_task(submit(executor, place_order(2)))
        await asyncio.sleep(0)
        for task in (running, waiting):
            task.cancel()
        await asyncio.wait((running, waiting))
    third = await submit(executor, place_order(3))
    assert third.position == 5, "the running one was stored, the waiting one was not run"
    assert (await submit(executor, place_order(1))).replayed


async def test_past_the_limit_commands_are_refused_at_once(commands_on: Commands, database: WriteDatabase) -> None:
    executor = await commands_on.executor(max_waiting=2)
    await submit_all(executor, SHOP[:1])
    with database.engine.begin() as connection:
        connection.execute(text(f"SELECT 1 FROM {feed.feed_head.fullname} FOR UPDATE"))
        running = asyncio.create_task(submit(executor, SHOP[1]))
        await until_blocked(database)
        waiting = [asyncio.create_task(submit(executor, add_product(number))) for number in (5, 6)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await submit(executor, add_product(7))
    assert isinstance(await running, Receipt)
    assert all(isinstance(it, Receipt) for it in await asyncio.gather(*waiting))


async def test_a_database_that_is_away_is_unavailable_and_nothing_is_done(
    commands_on: Commands, database: WriteDatabase
) -> None:
    gone = database.settings.model_copy(
        update={"url": type(database.settings.url)("postgresql://postgres@127.0.0.1:1/none")}
    )
    executor = await commands_on.executor(gone, retry_seconds=0.2)
    with pytest.raises(Unavailable) as caught:
        await submit(executor, SHOP[0])
    assert caught.value.reason == "STORE_UNAVAILABLE"
    assert database.events() == []


async def test_who_waits_while_the_database_is_away_is_told_so_before_the_deadline(
    commands_on: Commands, database: WriteDatabase
) -> None:
    gone = database.settings.model_copy(
        update={"url": type(database.settings.url)("postgresql://postgres@127.0.0.1:1/none")}
    )
    executor = await commands_on.executor(gone, retry_seconds=0.3, max_batch=1)
    # One after the other they would take 15 s.
    outcomes = await asyncio.gather(
        *(submit(executor, add_product(number), seconds=6) for number in range(50)), return_exceptions=True
    )
    assert {shown(it)[1] for it in outcomes} == {"STORE_UNAVAILABLE"}


async def test_a_batch_takes_two_round_trips_whatever_is_in_it(commands_on: Commands) -> None:
    executor = await commands_on.executor()
    assert all(isinstance(it, Receipt) for it in await submit_all(executor, SHOP))
    before = ROUND_TRIPS.numbers()[POOL], batches()
    sent = [place_order(number, customer=1, lines={1: 1, 2: 1}) for number in range(20)]
    assert all(isinstance(it, Receipt) for it in await submit_all(executor, sent))
    assert ROUND_TRIPS.numbers()[POOL] - before[0] == 2 * (batches() - before[1])
