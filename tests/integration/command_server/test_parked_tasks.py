"""What a reaction could not do or take in is parked, and holds nothing else up, until an operator says what to do."""

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta

import pytest

from commerce.command.v1 import command_service_pb2 as commands
from commerce.event.v1 import event_pb2 as events
from commerce.internal.v1.stored_pb2 import CancelUnpaidOrderRequest
from shop.events import EVENTS
from tandem.commands.executor import Executor
from tandem.reactions import tasks
from tandem.reactions.reaction import At, Do, Effects, Reaction
from tandem.reactions.standing import BEGINNING, Place, Redriven, drop, list_parked, redrive, replay
from tandem.runtime.call import Call
from tandem.runtime.errors import NotFound, Overloaded, Unavailable
from tandem.runtime.worker import refuse
from tests.integration.command_server.conftest import Commands, WriteDatabase, running_executor, submit
from tests.integration.command_server.reacting import (
    ARCHIVE,
    KEEP,
    MakeReacting,
    Reacting,
    ago,
    cancelled,
    execute,
    value,
    what_happened,
)
from tests.support.builders import identity, place_order, start_subscription


class Stubborn:
    """The executor, but for what fails of one order. failures: by attempt; then it is stored."""

    def __init__(self, executor: Executor, order: str, failures: Sequence[Exception]) -> None:
        self._executor = executor
        self._order = order
        self.failures = list(failures)

    def put_all(self, calls: Sequence[Call]) -> None:
        for call in calls:
            if self.failures and getattr(call.request, "order_id", "") == self._order:
                refuse([call], self.failures.pop(0))
            else:
                self._executor.put_all([call])


async def again(database: WriteDatabase, it: Reacting) -> None:
    """As if the time until the next attempt had passed."""
    execute(database, "UPDATE tandem_write.reaction_task SET at = now() - interval '100 days' WHERE done_at IS NULL")
    await it.work()


async def test_a_command_that_fails_holds_none_up_and_is_parked_in_the_end_until_it_is_redriven(
    commands_on: Commands, database: WriteDatabase, reacting: MakeReacting
) -> None:
    executor = await running_executor(commands_on)
    bug = RuntimeError("a bug")
    passing = [Overloaded("2048 commands are waiting already"), Unavailable("away", reason="STORE_UNAVAILABLE")]
    stubborn = Stubborn(executor, identity("order", 1), [*passing, bug, bug, bug, bug])
    it = reacting(stubborn)
    await it.work()
    for number in (1, 2):
        await submit(executor, place_order(number))
    await it.work()
    assert cancelled(database) == [identity("order", 2)]
    for _ in range(4):
        await again(database, it)
        assert it.standing("unpaid_orders").parked == 0 or len(stubborn.failures) < 2
    assert it.standing("unpaid_orders").parked == 1
    await again(database, it)
    assert cancelled(database) == [identity("order", 2)]
    [unpaid, *_] = it.by_name.values()
    with database.engine.begin() as connection:
        [parked] = list_parked(connection, [unpaid.name], 10)
        assert (parked.key, parked.kind, parked.error) == (identity("order", 1), "TIMER", "RuntimeError('a bug')")
        assert redrive(connection, unpaid, ARCHIVE, parked.key) == Redriven(1, 0, None)
    stubborn.failures.clear()
    await it.work()
    assert sorted(cancelled(database)) == sorted(identity("order", number) for number in (1, 2))


async def test_what_fails_and_is_tried_again_and_again_is_late_since_it_was_due_first(
    commands_on: Commands, database: WriteDatabase, reacting: MakeReacting
) -> None:
    executor = await running_executor(commands_on)
    away = [Unavailable("away", reason="STORE_UNAVAILABLE") for _ in range(2)]

    def placed(event: events.OrderPlaced, at: datetime) -> Effects:
        return [At(at, CancelUnpaidOrderRequest(order_id=event.order_id))]

    late = Reaction("late", EVENTS, on=[placed], delay=timedelta(hours=-1))
    it = reacting(Stubborn(executor, identity("order", 1), away), [late])
    await it.work()
    await submit(executor, place_order(1))
    await it.work()
    assert it.standing("late").overdue_seconds > 3_500
    for _ in range(2):
        await again(database, it)
    assert cancelled(database) == [identity("order", 1)]
    assert it.standing("late").overdue_seconds == 0


class Fickle:
    """A reaction with a bug, which a new version does not have."""

    def __init__(self) -> None:
        self.broken = True

    def reaction(self) -> Reaction:
        def placed(event: events.OrderPlaced, at: datetime) -> Effects:
            return [At(at + timedelta(days=-1), CancelUnpaidOrderRequest(order_id=event.order_id))]

        def paid(event: events.OrderPaid, _at: datetime) -> Effects:
            if self.broken and event.order_id == identity("order", 1):
                raise ZeroDivisionError("a bug")
            return []

        def shipped(_event: events.OrderShipped, _at: datetime) -> Effects:
            return []

        return Reaction("fickle", EVENTS, on=[placed, paid, shipped], delay=timedelta(days=-1))


async def test_an_event_that_cannot_be_taken_in_is_parked_with_its_aggregate_and_the_others_go_on(
    commands_on: Commands, database: WriteDatabase, reacting: MakeReacting
) -> None:
    executor = await running_executor(commands_on)
    fickle = Fickle()
    reaction = fickle.reaction()
    it = reacting(executor, [reaction])
    await it.work()
    for number in (1, 2, 3):
        await submit(executor, place_order(number))
        if number < 3:
            await submit(executor, commands.PayOrderRequest(order_id=identity("order", number)))
    await it.work()
    # The order with the bug is not cancelled either, though it was due: nobody knows what its event should have led to.
    assert cancelled(database) == [identity("order", 3)]
    with database.engine.begin() as connection:
        [parked] = list_parked(connection, ["fickle"], 10)
        assert (parked.key, parked.kind, parked.type) == (identity("order", 1), "EVENT", "order_paid")
        assert "a bug" in parked.error
        assert redrive(connection, reaction, ARCHIVE, None) == Redriven(0, 1, None)
    fickle.broken = False
    with database.engine.begin() as connection:
        assert redrive(connection, reaction, ARCHIVE, identity("order", 1)) == Redriven(1, 0, None)
    await it.work()
    assert (it.standing("fickle").parked, it.standing("fickle").waiting) == (0, 0)
    assert cancelled(database) == [identity("order", 3)]


async def test_what_is_parked_is_redriven_in_parts_and_what_waits_goes_behind_what_it_waits_for(
    commands_on: Commands, database: WriteDatabase, reacting: MakeReacting
) -> None:
    executor = await running_executor(commands_on)
    fickle = Fickle()
    reaction = fickle.reaction()
    it = reacting(executor, [reaction])
    await it.work()
    order = identity("order", 1)
    await submit(executor, place_order(1))
    paid = await submit(executor, commands.PayOrderRequest(order_id=order))
    shipped = await submit(executor, commands.ShipOrderRequest(order_id=order))
    await it.work()

    def part(after: Place = BEGINNING) -> Redriven:
        with database.engine.begin() as connection:
            return redrive(connection, reaction, ARCHIVE, None, after=after, most=1)

    at_paid, at_shipped = (Place(it.position, tasks.OF_EVENT) for it in (paid, shipped))
    assert part() == Redriven(0, 1, at_paid)
    fickle.broken = False
    assert part(at_paid) == Redriven(0, 1, at_shipped), "it would come before the other"
    assert part(at_shipped) == Redriven(0, 0, None)
    assert [part(), part(at_paid)] == [Redriven(1, 0, at_paid), Redriven(1, 0, at_shipped)]
    await it.work()
    assert it.standing("fickle").parked == 0


async def test_what_a_newer_program_has_parked_is_left_to_it_by_the_program_before(
    commands_on: Commands, database: WriteDatabase, reacting: MakeReacting
) -> None:
    """The one before takes no such event: it would lead to nothing."""
    executor = await running_executor(commands_on)
    broken = [True]

    def placed(_event: events.OrderPlaced, _at: datetime) -> Effects:
        return []

    def paid(event: events.OrderPaid, _at: datetime) -> Effects:
        if broken[0]:
            raise ZeroDivisionError
        return [Do(commands.ShipOrderRequest(order_id=event.order_id))]

    before = Reaction("changed", EVENTS, on=[placed])
    newer = Reaction("changed", EVENTS, on=[placed, paid], version=2)
    it = reacting(executor, [newer])
    await it.work()
    await submit(executor, place_order(1))
    position = (await submit(executor, commands.PayOrderRequest(order_id=identity("order", 1)))).position
    await it.work()
    broken[0] = False
    said = "a newer program follows changed, with version 2"
    with pytest.raises(Unavailable, match=said) as refused, database.engine.begin() as connection:
        redrive(connection, before, ARCHIVE, None)
    assert (refused.value.reason, refused.value.metadata) == ("EVENT_UNREADABLE", {"position": str(position)})
    with database.engine.begin() as connection:
        assert redrive(connection, newer, ARCHIVE, None) == Redriven(1, 0, None)
    await it.work()
    assert what_happened(database, "order_shipped") == [("order_shipped", identity("order", 1))]


async def test_an_event_of_which_nobody_can_say_what_it_is_about_is_waited_for_and_holds_up_no_other_reaction(
    commands_on: Commands, database: WriteDatabase, reacting: MakeReacting
) -> None:
    """It is of a newer program's version."""
    executor = await running_executor(commands_on)
    it = reacting(executor)
    await it.work()
    placed = await submit(executor, place_order(1))
    await submit(executor, start_subscription(1, started_at=ago(days=60)))
    set_version = "UPDATE tandem_write.event SET version = :version WHERE position = :position"
    execute(database, set_version, version=99, position=placed.position)
    await it.work()
    lapsed = "SELECT count(*) FROM tandem_write.event WHERE kind = 'subscription_lapsed'"
    assert value(database, lapsed) == 1
    assert it.standing("unpaid_orders").position == placed.position - 1
    assert "cannot be read: order_placed of version 99" in it.standing("unpaid_orders").problem
    execute(database, set_version, version=1, position=placed.position)
    await it.work()
    assert cancelled(database) == [identity("order", 1)]


async def test_a_reaction_that_has_parked_too_much_takes_in_no_more_until_it_is_mended(
    commands_on: Commands, database: WriteDatabase, reacting: MakeReacting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tandem.reactions.running.MOST_PARKED", 1)
    executor = await running_executor(commands_on)
    fickle = Fickle()
    reaction = fickle.reaction()
    it = reacting(executor, [reaction])
    await it.work()
    await submit(executor, place_order(1))
    paid = await submit(executor, commands.PayOrderRequest(order_id=identity("order", 1)))
    await it.work()
    await asyncio.to_thread(it.component.show)
    await submit(executor, place_order(2))
    await it.work()
    assert it.standing("fickle").position == paid.position
    assert "so much is parked" in it.standing("fickle").problem
    fickle.broken = False
    with database.engine.begin() as connection:
        assert redrive(connection, reaction, ARCHIVE, None) == Redriven(1, 0, None)
    await asyncio.to_thread(it.component.show)
    await it.work()
    assert cancelled(database) == [identity("order", 2)]


async def test_what_is_dropped_is_never_done(
    commands_on: Commands, database: WriteDatabase, reacting: MakeReacting
) -> None:
    executor = await running_executor(commands_on)

    def placed(event: events.OrderPlaced, _at: datetime) -> Effects:
        raise ZeroDivisionError(event.order_id)

    reaction = Reaction("broken", EVENTS, on=[placed])
    it = reacting(executor, [reaction])
    await it.work()
    await submit(executor, place_order(1))
    await it.work()
    with database.engine.begin() as connection:
        with pytest.raises(NotFound):
            drop(connection, Reaction("another", EVENTS, on=[placed]), identity("order", 1), "ada", "")
        assert drop(connection, reaction, identity("order", 1), "ada", "a test order") == 1
        assert drop(connection, reaction, identity("order", 1), "ada", "a test order") == 0
        replay(connection, reaction, ARCHIVE, 2, KEEP)
    await it.work()
    assert it.standing("broken").parked == 0
    assert value(database, "SELECT outcome FROM tandem_write.reaction_task") == "dropped by ada: a test order"


async def test_a_replay_by_a_mended_function_does_nothing_of_an_event_that_was_dropped(
    commands_on: Commands, database: WriteDatabase, reacting: MakeReacting
) -> None:
    executor = await running_executor(commands_on)
    broken = [True]

    def placed(event: events.OrderPlaced, _at: datetime) -> Effects:
        if broken[0]:
            raise ZeroDivisionError
        return 2 * [Do(CancelUnpaidOrderRequest(order_id=event.order_id))]

    reaction = Reaction("mended", EVENTS, on=[placed])
    it = reacting(executor, [reaction])
    await it.work()
    await submit(executor, place_order(1))
    await it.work()
    broken[0] = False
    with database.engine.begin() as connection:
        assert drop(connection, reaction, identity("order", 1), "ada", "a test order") == 1
        replay(connection, reaction, ARCHIVE, 2, KEEP)
    await it.work()
    assert value(database, "SELECT string_agg(kind, ',') FROM tandem_write.reaction_task") == "EVENT"
    assert cancelled(database) == []


async def test_an_event_that_can_be_taken_in_no_more_when_it_is_replayed_is_parked(
    commands_on: Commands, database: WriteDatabase, reacting: MakeReacting
) -> None:
    executor = await running_executor(commands_on)
    broken = [False]

    def placed(event: events.OrderPlaced, _at: datetime) -> Effects:
        if broken[0]:
            raise ZeroDivisionError
        return [Do(CancelUnpaidOrderRequest(order_id=event.order_id))]

    reaction = Reaction("broken", EVENTS, on=[placed])
    it = reacting(executor, [reaction])
    await it.work()
    await submit(executor, place_order(1))
    await it.work()
    broken[0] = True
    with database.engine.begin() as connection:
        replay(connection, reaction, ARCHIVE, 2, KEEP)
    await it.work()
    assert it.standing("broken").parked == 1
