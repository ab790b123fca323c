"""Subscriptions end by themselves, once, however many command servers look after them."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import text

from command_server.expiry import NOT_ENDED, Expiry
from command_server.settings import SubscriptionSettings
from command_server.subscriptions import FIND_DUE, Due
from commerce.command.v1 import command_service_pb2 as commands
from commerce.event.v1.event_pb2 import Event
from tandem.commands.clock import ClocksDiffer
from tandem.commands.executor import Executor
from tandem.runtime.call import Call, Stage
from tandem.runtime.errors import Overloaded
from tandem.runtime.worker import refuse
from tandem.testing.stack import until
from tests.integration.command_server.conftest import Commands, WriteDatabase, submit
from tests.support.builders import add_product, identity, register_customer, start_subscription

MakeExpiry = Callable[..., Expiry]


@pytest.fixture
async def make_expiry(database: WriteDatabase) -> AsyncIterator[MakeExpiry]:
    started: list[Expiry] = []

    def make(executor: Stage, clock: Callable[[], datetime] = wall_clock, **settings: float) -> Expiry:
        it = Expiry(database.engine, executor, SubscriptionSettings(**settings), clock=clock)
        started.append(it)
        return it

    yield make
    for it in started:
        await it.stop()


def wall_clock() -> datetime:
    """The one that tells what is due."""
    return datetime.now(UTC)


def ago(**age: float) -> str:
    stamp = Timestamp()
    stamp.FromDatetime(wall_clock() - timedelta(**age))
    return stamp.ToJsonString()


def ends(database: WriteDatabase) -> list[tuple[str, str]]:
    """(kind, subscription) of every end, in the feed's order."""
    found = []
    for _, kind, payload in database.events():
        if kind in ("subscription_cancelled", "subscription_lapsed"):
            found.append((kind, getattr(Event.FromString(payload), kind).subscription_id))
    return found


async def ended(database: WriteDatabase, count: int) -> bool:
    return len(ends(database)) == count


async def test_what_is_due_ends_and_nothing_else_does(
    commands_on: Commands, database: WriteDatabase, make_expiry: MakeExpiry
) -> None:
    executor = await commands_on.executor(clock=wall_clock)
    await submit(executor, register_customer())
    # A month ended 69 days ago, one a day ago, and one has 29 days to go.
    for number, days in enumerate((100, 100, 32, 32, 1), start=1):
        await submit(executor, start_subscription(number, started_at=ago(days=days)))
    for number in (2, 4, 5):
        when = commands.CANCELLATION_TIME_AT_PERIOD_END
        await submit(
            executor, commands.CancelSubscriptionRequest(subscription_id=identity("subscription", number), when=when)
        )
    expiry = make_expiry(executor, grace_days=5)
    assert not await expiry.end_due(set())
    assert sorted(ends(database)) == sorted(
        [
            ("subscription_cancelled", identity("subscription", 2)),
            ("subscription_cancelled", identity("subscription", 4)),
            ("subscription_lapsed", identity("subscription", 1)),
        ]
    )
    assert not await expiry.end_due(set())
    assert len(ends(database)) == 3


async def test_several_servers_end_each_subscription_once(
    commands_on: Commands, database: WriteDatabase, make_expiry: MakeExpiry
) -> None:
    one, two = await commands_on.executor(clock=wall_clock), await commands_on.executor(clock=wall_clock)
    await submit(one, register_customer())
    await asyncio.gather(*(submit(one, start_subscription(number, started_at=ago(days=60))) for number in range(1, 31)))
    expiries = [make_expiry(executor, grace_days=1, batch=7) for executor in (one, two)]

    async def until_none_is_due(expiry: Expiry) -> None:
        while len(ends(database)) < 30:
            await expiry.end_due(set())

    await asyncio.wait_for(asyncio.gather(*map(until_none_is_due, expiries)), 60)
    found = [subscription for _, subscription in ends(database)]
    assert sorted(found) == sorted(identity("subscription", number) for number in range(1, 31))


async def test_a_subscription_that_is_renewed_while_it_is_found_to_be_over_goes_on(
    commands_on: Commands, database: WriteDatabase, make_expiry: MakeExpiry
) -> None:
    executor = await commands_on.executor(clock=wall_clock)
    await submit(executor, register_customer())
    await submit(executor, start_subscription(started_at=ago(days=32)))
    expiry = make_expiry(executor, grace_days=0)
    [due] = expiry._find()
    renew = commands.RenewSubscriptionRequest(subscription_id=identity("subscription", 1))
    await submit(executor, renew)
    assert not await expiry._end(due)
    assert ends(database) == []


class Stubborn:
    """The executor, but for one subscription, which fails; and overloaded at the first call of all."""

    def __init__(self, executor: Executor, failing: str) -> None:
        self._executor = executor
        self._failing = failing
        self.calls = 0

    def put_all(self, calls: Sequence[Call]) -> None:
        for call in calls:
            self.calls += 1
            if self.calls == 1:
                refuse([call], Overloaded("2048 commands are waiting already"))
            elif call.request.subscription_id == self._failing:
                call.fail(RuntimeError("a bug"))
            else:
                self._executor.put_all([call])


async def test_one_that_cannot_be_ended_and_a_busy_server_keep_no_other_from_ending(
    commands_on: Commands, database: WriteDatabase, make_expiry: MakeExpiry
) -> None:
    executor = await commands_on.executor(clock=wall_clock)
    await submit(executor, register_customer())
    for number in (1, 2, 3):
        await submit(executor, start_subscription(number, started_at=ago(days=90 - number)))
    stubborn = Stubborn(executor, failing=identity("subscription", 1))
    expiry = make_expiry(stubborn, grace_days=0, check_every_seconds=0.01, batch=2)
    await expiry.start()
    await until(partial(ended, database, 2), "the other two have ended")
    assert {it for _, it in ends(database)} == {identity("subscription", number) for number in (2, 3)}


async def test_a_server_looks_on_at_once_behind_what_it_could_not_end(
    commands_on: Commands, make_expiry: MakeExpiry, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = await commands_on.executor(clock=wall_clock)
    await submit(executor, register_customer())
    for number in (1, 2):
        await submit(executor, start_subscription(number, started_at=ago(days=90)))
    expiry = make_expiry(executor, grace_days=0, batch=2)
    found = expiry._find()
    await expiry._end(found[0])
    monkeypatch.setattr(expiry, "_find", lambda tried: [it for it in found if it not in tried])
    tried: set[Due] = set()
    assert await expiry.end_due(tried), "there may be more"
    assert tried == {found[0]}, "another server is ahead"
    assert not await expiry.end_due(tried)


async def test_one_that_fails_is_counted_and_holds_none_up_that_come_after_it(
    commands_on: Commands, database: WriteDatabase, make_expiry: MakeExpiry
) -> None:
    executor = await commands_on.executor(clock=wall_clock)
    await submit(executor, register_customer())
    for number in (1, 2, 3):
        await submit(executor, start_subscription(number, started_at=ago(days=90 - number)))
    stubborn = Stubborn(executor, failing=identity("subscription", 1))
    stubborn.calls = 1
    expiry, before = make_expiry(stubborn, grace_days=0, batch=1, check_every_seconds=3600), NOT_ENDED._value.get()
    await expiry.start()
    await until(partial(ended, database, 2), "the other two have ended in the same round")
    assert NOT_ENDED._value.get() == before + 1


async def test_no_caller_can_use_the_id_of_an_end_first(
    commands_on: Commands, database: WriteDatabase, make_expiry: MakeExpiry
) -> None:
    """Ids were made of what callers know: the subscription and its version."""
    executor = await commands_on.executor(clock=wall_clock)
    await submit(executor, register_customer())
    await submit(executor, start_subscription(1, started_at=ago(days=90)))
    known = uuid.uuid5(uuid.UUID("0a6a7d52-8f0e-5a55-9b0c-3c6f3b1d9a41"), f"{identity('subscription', 1)}/1")
    product = add_product(1)
    product.request_id = str(known)
    await submit(executor, product)
    await make_expiry(executor, grace_days=0).end_due(set())
    assert ends(database) == [("subscription_lapsed", identity("subscription", 1))]


def test_what_is_due_is_found_in_an_index_of_those_that_have_not_ended(database: WriteDatabase) -> None:
    with database.engine.connect() as connection:
        connection.execute(text("SET enable_seqscan = off"))
        arguments = {"now": datetime.now(UTC), "before": datetime.now(UTC), "most": 10}
        plan = connection.execute(text(f"EXPLAIN {FIND_DUE.text}"), arguments).scalars().all()
    assert sum("Index Scan using subscription_due" in line for line in plan) == 2, "\n".join(plan)
    assert not any("Sort" in line for line in plan), "\n".join(plan)


@pytest.mark.parametrize("off", [timedelta(days=45), timedelta(minutes=2), timedelta(minutes=-2)])
async def test_a_server_whose_clock_is_not_the_databases_ends_nothing(
    commands_on: Commands, database: WriteDatabase, make_expiry: MakeExpiry, off: timedelta
) -> None:
    def wrong_clock() -> datetime:
        return wall_clock() + off

    executor = await commands_on.executor(clock=wall_clock)
    await submit(executor, register_customer())
    await submit(executor, start_subscription(1, started_at=ago(days=1)))
    await submit(executor, start_subscription(2, started_at=ago(days=90)))
    wrong = make_expiry(await commands_on.executor(clock=wrong_clock), clock=wrong_clock, grace_days=3)
    with pytest.raises(ClocksDiffer):
        await wrong.end_due(set())
    assert ends(database) == []
    await make_expiry(executor, grace_days=3).end_due(set())
    assert ends(database) == [("subscription_lapsed", identity("subscription", 2))]


async def test_it_looks_again_and_again_until_it_is_stopped(
    commands_on: Commands, database: WriteDatabase, make_expiry: MakeExpiry
) -> None:
    executor = await commands_on.executor(clock=wall_clock)
    await submit(executor, register_customer())
    expiry = make_expiry(executor, grace_days=0, check_every_seconds=0.01)
    await expiry.start()
    for number in (1, 2):
        await submit(executor, start_subscription(number, started_at=ago(days=40)))
        await until(partial(ended, database, number), "it has ended")
