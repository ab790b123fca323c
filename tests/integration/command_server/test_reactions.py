"""What the shop does because of events is done once: whoever does it, and however often it is replayed."""

import asyncio
import uuid
from datetime import datetime, timedelta
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.engine import make_url

from commerce.command.v1 import command_service_pb2 as commands
from commerce.event.v1 import event_pb2 as events
from commerce.internal.v1.stored_pb2 import CancelUnpaidOrderRequest, EndSubscriptionRequest
from shop.events import EVENTS
from tandem.reactions import tasks
from tandem.reactions.reaction import Do, Effects, Reaction
from tandem.reactions.standing import replay
from tandem.runtime.arrays import array
from tandem.runtime.database import create_database_engine, driver_of
from tandem.runtime.errors import Conflict, PreconditionFailed
from tandem.runtime.settings import DatabaseSettings
from tandem.runtime.supervised import what_is_down
from tandem.testing.stack import until
from tests.integration.command_server.conftest import Commands, WriteDatabase, running_executor, submit
from tests.integration.command_server.reacting import (
    ARCHIVE,
    AT_PERIOD_END,
    KEEP,
    MakeReacting,
    Reacting,
    ago,
    cancelled,
    ended,
    execute,
    of_shop,
    value,
    wall_clock,
)
from tests.support.builders import add_product, identity, place_order, register_customer, start_subscription

# Orders


async def test_an_order_that_nobody_pays_is_cancelled_and_gives_its_stock_back(
    commands_on: Commands, database: WriteDatabase, reacting: MakeReacting
) -> None:
    executor = await running_executor(commands_on)
    it = reacting(executor)
    await it.work()
    await submit(executor, place_order(1, lines={1: 7}))
    await submit(executor, place_order(2))
    await submit(executor, commands.PayOrderRequest(order_id=identity("order", 2)))
    on_delivery = place_order(3)
    on_delivery.terms.payment_on_delivery = True
    await submit(executor, on_delivery)
    await it.work()
    await it.work()
    assert cancelled(database) == [identity("order", 1)]
    assert value(database, "SELECT stock FROM tandem_write.product") == 98
    [envelope] = [it.envelope for it in database.feed() if it.kind == "order_cancelled"]
    placed = next(it for it in database.feed() if it.kind == "order_placed")
    assert envelope is not None
    assert envelope.actor == "reaction/unpaid_orders"
    assert envelope.causation_id == f"{placed.position}-{placed.mark:x}"
    assert envelope.correlation_id == placed.correlation_id != ""


async def test_a_payment_takes_away_what_waits_for_it_and_one_that_comes_too_late_to_be_read_is_honoured(
    commands_on: Commands, database: WriteDatabase, reacting: MakeReacting
) -> None:
    executor = await running_executor(commands_on)
    it = reacting(executor, of_shop(database.settings, unpaid_days=10))
    await it.work()
    for number in (1, 2):
        await submit(executor, place_order(number))
    await it.work()
    assert it.standing("unpaid_orders").waiting == 2
    await submit(executor, commands.PayOrderRequest(order_id=identity("order", 1)))
    await it.work()
    assert it.standing("unpaid_orders").waiting == 1
    # The time to pay is over between the look at the feed and the command: the order is paid, and says so.
    followed = it.component.follower.look()
    await submit(executor, commands.PayOrderRequest(order_id=identity("order", 2)))
    later = followed.caught_up["unpaid_orders"] + timedelta(days=11)
    await asyncio.to_thread(it.component.commands.give_due, {"unpaid_orders": later})
    assert cancelled(database) == []
    assert value(database, "SELECT outcome FROM tandem_write.reaction_task") == "refused: ORDER_NOT_CANCELLABLE"


async def test_the_days_to_pay_are_the_databases_whatever_clock_the_server_has_that_stored_the_order(
    commands_on: Commands, database: WriteDatabase, reacting: MakeReacting
) -> None:
    executor = await commands_on.executor(clock=lambda: wall_clock() - timedelta(days=20))
    for request in (register_customer(), add_product(1)):
        await submit(executor, request)
    it = reacting(await commands_on.executor(clock=wall_clock), of_shop(database.settings, unpaid_days=14))
    await it.work()
    await submit(executor, place_order(1))
    await it.work()
    await it.work()
    assert it.standing("unpaid_orders").waiting == 1
    assert cancelled(database) == []


async def test_another_delay_holds_for_what_waits_already(
    commands_on: Commands, database: WriteDatabase, reacting: MakeReacting
) -> None:
    executor = await running_executor(commands_on)
    patient = reacting(executor, of_shop(database.settings, unpaid_days=10))
    await patient.work()
    await submit(executor, place_order(1))
    await patient.work()
    assert cancelled(database) == []
    await reacting(executor).work()
    assert cancelled(database) == [identity("order", 1)]


async def test_orders_that_were_placed_before_there_were_reactions_are_left_alone(
    commands_on: Commands, database: WriteDatabase, reacting: MakeReacting
) -> None:
    executor = await running_executor(commands_on)
    await submit(executor, place_order(1))
    await reacting(executor).work()
    assert cancelled(database) == []


# Subscriptions


async def test_what_is_due_ends_and_nothing_else_does(
    commands_on: Commands, database: WriteDatabase, reacting: MakeReacting
) -> None:
    executor = await running_executor(commands_on)
    it = reacting(executor, of_shop(database.settings, grace_days=5))
    await it.work()
    # A month ended 69 days ago, one a day ago, and one has 29 days to go.
    for number, days in enumerate((100, 100, 32, 32, 1), start=1):
        await submit(executor, start_subscription(number, started_at=ago(days=days)))
    for number in (2, 4, 5):
        request = commands.CancelSubscriptionRequest(subscription_id=identity("subscription", number))
        request.when = AT_PERIOD_END
        await submit(executor, request)
    await it.work()
    expected = sorted(
        [
            ("subscription_cancelled", identity("subscription", 2)),
            ("subscription_cancelled", identity("subscription", 4)),
            ("subscription_lapsed", identity("subscription", 1)),
        ]
    )
    assert sorted(ended(database)) == expected
    await it.work()
    # 3 lapses and 5 is cancelled later: what waits for them is as it was.
    assert it.standing("subscription_lapses").waiting == 2
    assert it.standing("subscription_cancellations").waiting == 1
    resume = commands.ResumeSubscriptionRequest(subscription_id=identity("subscription", 5))
    await submit(executor, resume)
    await it.work()
    assert it.standing("subscription_cancellations").waiting == 0
    assert sorted(ended(database)) == expected


async def test_a_subscription_that_is_renewed_or_taken_back_while_its_end_is_on_its_way_goes_on(
    commands_on: Commands, database: WriteDatabase, reacting: MakeReacting
) -> None:
    executor = await running_executor(commands_on)
    it = reacting(executor, of_shop(database.settings, grace_days=60))
    await it.work()
    # Two months are over: one that is renewed once is still over, and has days of grace.
    await submit(executor, start_subscription(1, started_at=ago(days=62)))
    await submit(executor, start_subscription(2, started_at=ago(days=1)))
    cancel = commands.CancelSubscriptionRequest(subscription_id=identity("subscription", 2), when=AT_PERIOD_END)
    await submit(executor, cancel)
    now = it.component.follower.look().caught_up["subscription_lapses"]
    await submit(executor, commands.RenewSubscriptionRequest(subscription_id=identity("subscription", 1)))
    await submit(executor, commands.ResumeSubscriptionRequest(subscription_id=identity("subscription", 2)))
    late = dict.fromkeys(("subscription_lapses", "subscription_cancellations"), now + timedelta(days=60))
    await asyncio.to_thread(it.component.commands.give_due, late)
    assert ended(database) == []
    await it.work()
    assert it.standing("subscription_lapses").waiting == 2


async def test_subscriptions_from_before_there_were_reactions_end_beside_a_server_of_then(
    commands_on: Commands, database: WriteDatabase, reacting: MakeReacting
) -> None:
    executor = await running_executor(commands_on)
    for number in range(1, 5):
        await submit(executor, start_subscription(number, started_at=ago(days=60)))
    cancel = commands.CancelSubscriptionRequest(subscription_id=identity("subscription", 3), when=AT_PERIOD_END)
    await submit(executor, cancel)
    # The server of before looks at the table, and ends what it has found, at its version.
    await submit(executor, EndSubscriptionRequest(subscription_id=identity("subscription", 1), expected_version=1))
    it = reacting(executor)
    it.component.follower.begin()
    await submit(executor, EndSubscriptionRequest(subscription_id=identity("subscription", 2), expected_version=1))
    await it.work()
    await it.work()
    with pytest.raises(Conflict):
        await submit(executor, EndSubscriptionRequest(subscription_id=identity("subscription", 4), expected_version=1))
    assert sorted(ended(database)) == sorted(
        [("subscription_lapsed", identity("subscription", number)) for number in (1, 2, 4)]
        + [("subscription_cancelled", identity("subscription", 3))]
    )
    assert it.standing("subscription_lapses").waiting == 0


# Once


async def test_several_servers_do_each_thing_once(
    commands_on: Commands, database: WriteDatabase, reacting: MakeReacting
) -> None:
    one, two = await running_executor(commands_on), await commands_on.executor(clock=wall_clock)
    servers = [reacting(executor, batch=7) for executor in (one, two)]
    await servers[0].work()
    numbers = range(1, 31)
    await asyncio.gather(*(submit(one, start_subscription(it, started_at=ago(days=60))) for it in numbers))
    await asyncio.gather(*(submit(two, place_order(it)) for it in numbers))

    async def until_all_are_done(it: Reacting) -> None:
        while len(ended(database)) + len(cancelled(database)) < 60:
            await it.work()

    await asyncio.wait_for(asyncio.gather(*map(until_all_are_done, servers)), 60)
    assert sorted(ended(database)) == sorted(("subscription_lapsed", identity("subscription", it)) for it in numbers)
    assert sorted(cancelled(database)) == sorted(identity("order", it) for it in numbers)


@pytest.mark.parametrize("forgotten", ["nothing", "what was done", "receipts"])
async def test_a_replay_from_the_first_event_does_nothing_twice(
    commands_on: Commands, database: WriteDatabase, reacting: MakeReacting, forgotten: str
) -> None:
    executor = await running_executor(commands_on)
    it = reacting(executor)
    await it.work()
    await submit(executor, place_order(1))
    await submit(executor, start_subscription(1, started_at=ago(days=60)))
    await submit(executor, place_order(2))
    await submit(executor, commands.PayOrderRequest(order_id=identity("order", 2)))
    await it.work()
    before = database.events()
    assert len(before) == 8
    if forgotten == "what was done":
        # Then the receipts tell it, by request ids of name and position.
        execute(database, "DELETE FROM tandem_write.reaction_task")
    if forgotten == "receipts":
        execute(database, "DELETE FROM tandem_write.receipt")
    with database.engine.begin() as connection:
        for reaction in it.by_name.values():
            assert replay(connection, reaction, ARCHIVE, 2, KEEP) > 0
    await it.work()
    await it.work()
    assert database.events() == before
    assert [it.standing(name).waiting for name in it.by_name] == [0, 0, 0]


async def test_a_replay_goes_no_further_back_than_it_is_remembered_what_was_done(
    commands_on: Commands, database: WriteDatabase, reacting: MakeReacting
) -> None:
    executor = await running_executor(commands_on)
    it = reacting(executor, of_shop(database.settings, unpaid_days=10))
    await it.work()
    for number in (1, 2):
        await submit(executor, place_order(number))
    await it.work()
    execute(database, "UPDATE tandem_write.event SET recorded_at = now() - interval '8 days' WHERE position = 3")
    [unpaid, *_] = it.by_name.values()
    with database.engine.begin() as connection:
        assert replay(connection, unpaid, ARCHIVE, 3, KEEP) == 4
        with pytest.raises(PreconditionFailed, match="not remembered"):
            replay(connection, unpaid, ARCHIVE, 2, KEEP)
        with pytest.raises(PreconditionFailed, match="ends at event 4"):
            replay(connection, unpaid, ARCHIVE, 5, KEEP)


async def test_a_replay_goes_no_further_back_than_where_the_reaction_began(
    commands_on: Commands, database: WriteDatabase, reacting: MakeReacting
) -> None:
    executor = await running_executor(commands_on)
    await submit(executor, place_order(1))
    it = reacting(executor)
    await it.work()
    [unpaid, *_] = it.by_name.values()
    with database.engine.begin() as connection:
        with pytest.raises(PreconditionFailed, match="began behind event 3"):
            replay(connection, unpaid, ARCHIVE, 2, KEEP)
        assert replay(connection, unpaid, ARCHIVE, 3, KEEP) == 3
    await it.work()
    assert cancelled(database) == []


async def test_what_was_done_is_forgotten_with_the_receipts(
    commands_on: Commands, database: WriteDatabase, reacting: MakeReacting
) -> None:
    executor = await running_executor(commands_on)
    it = reacting(executor)
    await it.work()
    await submit(executor, place_order(1))
    await it.work()
    execute(database, "UPDATE tandem_write.reaction_task SET done_at = now() - interval '8 days'")
    it.component._purge_at = 0
    await it.work()
    assert value(database, "SELECT count(*) FROM tandem_write.reaction_task") == 0


async def test_a_database_that_lost_commits_has_lost_what_followed_from_them_too(
    commands_on: Commands, database: WriteDatabase, reacting: MakeReacting
) -> None:
    """A failover to a standby that was behind: here a copy of the database, made when it was there."""
    executor = await running_executor(commands_on)
    it = reacting(executor)
    await it.work()
    await submit(executor, place_order(1))
    await asyncio.to_thread(it.component.follower.look)
    await commands_on.stop_one(executor)
    await it.component.stop()
    database.engine.dispose()
    copied, name = _copy(database)
    try:
        executor = await commands_on.executor(clock=wall_clock)
        it = reacting(executor)
        await submit(executor, place_order(2))
        await it.work()
        assert sorted(cancelled(database)) == sorted(identity("order", number) for number in (1, 2))
        # The copy is the primary now: what it was not told of has not happened, and 3 is where 2 was.
        other = await commands_on.executor(copied, clock=wall_clock)
        there = WriteDatabase(copied, create_database_engine(copied, name="test", pool_size=1))
        it = reacting(other, database=copied)
        await submit(other, place_order(3))
        await it.work()
        assert sorted(cancelled(there)) == sorted(identity("order", number) for number in (1, 3))
        await it.component.stop()
        await commands_on.stop_one(other)
        there.engine.dispose()
    finally:
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))


def _copy(database: WriteDatabase) -> tuple[DatabaseSettings, str]:
    url = make_url(database.settings.url.get_secret_value())
    name = f"{url.database}_copy"
    elsewhere = url.set(database="postgres").render_as_string(hide_password=False)
    engine = create_database_engine(DatabaseSettings(url=SecretStr(elsewhere)), name="test", pool_size=1)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {url.database}"))
    engine.dispose()
    copied = url.set(database=name).render_as_string(hide_password=False)
    return database.settings.model_copy(update={"url": SecretStr(copied)}), name


async def test_no_caller_can_use_the_id_of_a_reactions_command_first(
    commands_on: Commands, database: WriteDatabase, reacting: MakeReacting
) -> None:
    """Name and position are known to all who follow the feed; the secret, which makes an id of them, to nobody."""
    executor = await running_executor(commands_on)
    it = reacting(executor)
    await it.work()
    placed = await submit(executor, place_order(1))
    name = f"unpaid_orders/{placed.position}/{placed.mark}/0"
    for namespace in (uuid.NAMESPACE_OID, uuid.UUID(int=0), placed.epoch):
        product = add_product(2 + namespace.int % 1000)
        product.request_id = str(uuid.uuid5(namespace, name))
        await submit(executor, product)
    secret = value(database, "SELECT secret FROM tandem_write.reaction WHERE name = 'unpaid_orders'")
    await it.work()
    assert cancelled(database) == [identity("order", 1)]
    [envelope] = [it.envelope for it in database.feed() if it.kind == "order_cancelled"]
    assert envelope is not None
    assert envelope.request_id == str(uuid.uuid5(secret, name))


@pytest.mark.parametrize("off", [timedelta(days=45), timedelta(minutes=-2)])
async def test_a_server_whose_clock_is_not_the_databases_times_nothing_and_takes_events_in(
    commands_on: Commands, database: WriteDatabase, reacting: MakeReacting, off: timedelta
) -> None:
    executor = await running_executor(commands_on)
    wrong = reacting(executor, clock=lambda: wall_clock() + off)
    await wrong.work()
    await submit(executor, place_order(1))
    await wrong.work()
    assert cancelled(database) == []
    assert "apart; set them right" in wrong.component.problems["unpaid_orders"]
    assert wrong.standing("unpaid_orders").waiting == 1
    await reacting(executor).work()
    assert cancelled(database) == [identity("order", 1)]


# Failures


async def test_a_program_of_the_version_before_lets_a_newer_ones_reaction_be(
    commands_on: Commands, database: WriteDatabase, reacting: MakeReacting
) -> None:
    executor = await running_executor(commands_on)

    def placed(event: events.OrderPlaced, _at: datetime) -> Effects:
        return [Do(CancelUnpaidOrderRequest(order_id=event.order_id))]

    older, newer = (Reaction("orders", EVENTS, on=[placed], version=it) for it in (1, 2))
    before, after = reacting(executor, [older]), reacting(executor, [newer])
    await before.work()
    after.component.follower.begin()
    await submit(executor, place_order(1))
    await before.work()
    assert before.standing("orders").position == 2
    assert "a newer program" in before.component.problems["orders"]
    # What the newer one has written down, the older one does not do either.
    await asyncio.to_thread(after.component.follower.look)
    await before.work()
    assert cancelled(database) == []
    await after.work()
    assert cancelled(database) == [identity("order", 1)]


async def test_it_works_again_and_again_until_it_is_stopped(
    commands_on: Commands, database: WriteDatabase, reacting: MakeReacting
) -> None:
    executor = await running_executor(commands_on)
    it = reacting(executor)
    await it.component.start()

    async def begun() -> bool:
        return bool(value(database, "SELECT count(*) = 3 FROM tandem_write.reaction"))

    await until(begun, "it has begun")
    for number in (1, 2):
        await submit(executor, place_order(number))

        async def one_more(number: int = number) -> bool:
            return len(cancelled(database)) == number

        await until(one_more, "it has been cancelled")


async def test_a_bug_in_what_a_reaction_begins_with_stops_no_command(
    commands_on: Commands, database: WriteDatabase, reacting: MakeReacting
) -> None:
    def placed(event: events.OrderPlaced, _at: datetime) -> Effects:
        return [Do(CancelUnpaidOrderRequest(order_id=event.order_id))]

    asked: list[int] = []

    def broken(_connection: object) -> Any:
        asked.append(len(asked))
        raise ZeroDivisionError

    executor = await running_executor(commands_on)
    it = reacting(executor, [Reaction("broken", EVENTS, on=[placed], begins_with=broken)], poll_seconds=0.01)
    await it.component.start()

    async def asked_again() -> bool:
        return len(asked) > 1

    await until(asked_again, "it is tried again")
    assert what_is_down() == []
    assert value(database, "SELECT count(*) FROM tandem_write.reaction") == 0


def test_what_is_due_is_found_in_an_index(database: WriteDatabase) -> None:
    due = [array("TEXT", ["a"]), array("TEXT", ["TIMER"]), array("TIMESTAMP WITH TIME ZONE", [None])]
    parameters = [timedelta(seconds=1), *due, array("INTEGER", [1]), 10]
    with database.engine.connect() as connection, driver_of(connection) as driver:
        driver.execute("SET enable_seqscan = off")
        plan = [line for (line,) in driver.execute(f"EXPLAIN {tasks._CLAIM}", parameters)]
    assert any("using reaction_task_due" in line for line in plan), "\n".join(plan)
    assert not any("Sort" in line for line in plan), "\n".join(plan)
