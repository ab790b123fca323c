"""G3 once: a repeated command has no second effect, whatever broke in between."""

import asyncio
import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from google.protobuf.message import Message
from google.rpc import code_pb2
from google.rpc.status_pb2 import Status
from pydantic import SecretStr
from sqlalchemy import column, text, update
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from structlog.testing import capture_logs

from command_server.orders import order_table
from commerce.command.v1 import command_service_pb2 as commands
from tandem.commands.executor import Executor
from tandem.commands.ledger import Ledger
from tandem.commands.maintenance import Maintenance
from tandem.commands.receipts import Receipt as CommandReceipt
from tandem.commands.receipts import (
    append_refusals,
    begin_period,
    find_receipts,
    purge_receipts,
    receipt,
    receipt_period,
)
from tandem.commands.settings import ReceiptSettings
from tandem.runtime.clock import CLOCK_DIFFERENCE, ClocksDiffer
from tandem.runtime.database import create_database_engine
from tandem.runtime.errors import InvalidArgument, TandemError, Unavailable, to_status
from tandem.runtime.settings import DatabaseSettings
from tests.integration.command_server.conftest import (
    Commands,
    Receipt,
    WriteDatabase,
    call_of,
    submit,
    submit_all,
    until_blocked,
)
from tests.support.builders import NOW, add_product, identity, place_order, register_customer
from tests.support.proxy import CuttingProxy

SHOP = [register_customer(1), add_product(1, stock=100)]
PAY = commands.PayOrderRequest(request_id=identity("pay"), order_id=identity("order", 1))


@pytest.fixture
def proxy(database: WriteDatabase) -> Iterator[CuttingProxy]:
    url = make_url(database.settings.url.get_secret_value())
    proxy = CuttingProxy((url.host or "", url.port or 0))
    yield proxy
    proxy.close()


@pytest.fixture
def through_proxy(database: WriteDatabase, proxy: CuttingProxy) -> DatabaseSettings:
    url = make_url(database.settings.url.get_secret_value()).set(port=proxy.port)
    return database.settings.model_copy(update={"url": SecretStr(url.render_as_string(hide_password=False))})


async def test_a_repeat_gets_the_first_receipt_and_another_body_is_refused(
    commands_on: Commands, database: WriteDatabase
) -> None:
    executor = await commands_on.executor()
    await submit_all(executor, SHOP)
    first = await submit(executor, place_order(1))
    again = await submit(executor, place_order(1))
    assert again.replayed
    assert (again.subject_id, again.position, again.version) == (first.subject_id, first.position, first.version)
    other = place_order(1, lines={1: 2})
    with pytest.raises(InvalidArgument) as caught:
        await submit(executor, other)
    assert caught.value.reason == "REQUEST_ID_REUSED"
    assert len(database.events()) == 3


async def test_repeats_in_one_batch_are_one(commands_on: Commands, database: WriteDatabase) -> None:
    executor = await commands_on.executor()
    await submit_all(executor, SHOP)
    outcomes = await submit_all(executor, [place_order(1)] * 20)
    assert [it.replayed for it in outcomes if isinstance(it, Receipt)] == [False] + [True] * 19
    assert {it.position for it in outcomes if isinstance(it, Receipt)} == {3}
    assert len(database.events()) == 3


async def refusal_of(executor: Executor, request: Message) -> Status:
    with pytest.raises(TandemError) as caught:
        await submit(executor, request)
    return to_status(caught.value)


async def test_a_refusal_stays_true_also_where_the_same_call_comes_late_to_another_server(
    commands_on: Commands, database: WriteDatabase
) -> None:
    one, two = await commands_on.executor(), await commands_on.executor()
    await submit_all(one, [register_customer(1), add_product(1, stock=0)])
    refused = [await refusal_of(two, it) for it in (place_order(1), PAY)]
    assert [it.code for it in refused] == [code_pb2.FAILED_PRECONDITION, code_pb2.NOT_FOUND]
    assert len(database.events()) == 2
    # Now both could be done.
    await submit(two, commands.AdjustStockRequest(product_id=identity("product", 1), delta=10))
    another = place_order(1)
    another.request_id = identity("another")
    await submit(two, another)
    assert [await refusal_of(one, it) for it in (place_order(1), PAY)] == refused, "word for word"
    assert len(database.events()) == 4


async def test_a_time_that_one_server_finds_in_the_future_is_in_the_future_for_all(
    commands_on: Commands, database: WriteDatabase
) -> None:
    behind = await commands_on.executor(clock=lambda: NOW - timedelta(hours=1))
    ahead = await commands_on.executor()
    await submit_all(ahead, SHOP)
    order = place_order(1)
    order.placed_at.FromDatetime(NOW)
    refused = await refusal_of(behind, order)
    assert await refusal_of(ahead, order) == refused
    assert len(database.events()) == 2


async def test_a_refusal_and_a_first_run_that_meet_have_one_outcome(
    commands_on: Commands, database: WriteDatabase
) -> None:
    """One server's clock is behind, so it refuses what the other does: whoever stores first tells both callers."""
    behind = await commands_on.executor(clock=lambda: NOW - timedelta(hours=1))
    ahead = await commands_on.executor()
    await submit_all(ahead, SHOP)
    done = 0
    for number in range(1, 21):
        order = place_order(number)
        order.placed_at.FromDatetime(NOW)
        outcomes = await asyncio.gather(*(submit(it, order) for it in (behind, ahead)), return_exceptions=True)
        assert len({isinstance(it, Receipt) for it in outcomes}) == 1, outcomes
        done += isinstance(outcomes[0], Receipt)
    assert len(database.events()) == 2 + done


async def test_a_refusal_of_a_command_without_a_request_id_stores_nothing(
    commands_on: Commands, database: WriteDatabase
) -> None:
    executor = await commands_on.executor()
    await refusal_of(executor, commands.PayOrderRequest(order_id=identity("order", 1)))
    with database.engine.connect() as connection:
        assert connection.execute(receipt.select()).all() == []


async def test_a_command_without_a_request_id_is_done_each_time(commands_on: Commands) -> None:
    executor = await commands_on.executor()
    adjust = commands.AdjustStockRequest(product_id=identity("product", 1), delta=1)
    await submit_all(executor, SHOP)
    outcomes = await submit_all(executor, [adjust, adjust])
    assert [it.version for it in outcomes if isinstance(it, Receipt)] == [2, 3]


async def test_a_repeat_that_overtakes_its_first_run_is_replayed_and_not_refused_by_a_rule(
    commands_on: Commands, database: WriteDatabase
) -> None:
    """Both servers wait for the order's row; the second must find the first one's receipt, not "already paid"."""
    one, two = await commands_on.executor(), await commands_on.executor()
    await submit_all(one, [*SHOP, place_order(1)])
    with database.engine.begin() as connection:
        connection.execute(text(f"SELECT 1 FROM {order_table.fullname} FOR UPDATE"))
        tasks = [asyncio.create_task(submit(it, PAY)) for it in (one, two)]
        await until_blocked(database, sessions=2)
    receipts = await asyncio.gather(*tasks)
    assert sorted(it.replayed for it in receipts) == [False, True]
    assert len({it.position for it in receipts}) == 1


async def test_creations_that_collide_on_two_servers_are_one(commands_on: Commands, database: WriteDatabase) -> None:
    one, two = await commands_on.executor(), await commands_on.executor()
    await submit_all(one, SHOP)
    for number in range(1, 21):
        receipts = await asyncio.gather(*(submit(it, place_order(number)) for it in (one, two)))
        assert sorted(it.replayed for it in receipts) == [False, True]
    assert len(database.events()) == 22


@pytest.mark.parametrize("stored", [True, False])
async def test_a_connection_that_breaks_during_commit_is_found_out_by_the_receipts(
    commands_on: Commands,
    database: WriteDatabase,
    proxy: CuttingProxy,
    through_proxy: DatabaseSettings,
    *,
    caplog: pytest.LogCaptureFixture,
    stored: bool,
) -> None:
    executor = await commands_on.executor(through_proxy)
    await submit_all(executor, [*SHOP, place_order(1)])
    proxy.cut_on(b"COMMIT", after=stored)
    with capture_logs() as logs:
        paid = await submit(executor, PAY)
    assert proxy.cuts == 1
    assert not paid.replayed, "it was sent once, whether the first run has stored it or the second"
    assert paid.version == 2
    assert len(database.events()) == 4
    assert (await submit(executor, PAY)).replayed
    # Neither ours nor those of the pool, which logs what it meets when a connection comes back.
    assert not [it for it in logs if it["log_level"] == "error" or "exc_info" in it], "it was dealt with"
    assert not [it for it in caplog.records if it.levelno >= logging.ERROR or it.exc_info], "it was dealt with"


@pytest.mark.parametrize("behind", ["SELECT 1 / 0", "SELECT pg_terminate_backend(pg_backend_pid())"])
async def test_what_fails_behind_commit_is_no_failure_of_what_it_has_stored(
    commands_on: Commands, database: WriteDatabase, monkeypatch: pytest.MonkeyPatch, behind: str
) -> None:
    executor = await commands_on.executor()
    await submit_all(executor, SHOP)
    with monkeypatch.context() as patch:
        patch.setattr("tandem.commands.receipts._WAKE", behind)
        with capture_logs() as logs:
            placed = await submit(executor, place_order(1))
    assert (placed.replayed, placed.position) == (False, 3)
    assert not [it for it in logs if it["log_level"] == "error" or "splitting" in it["event"]]
    assert (await submit(executor, place_order(1))).replayed
    assert not (await submit(executor, PAY)).replayed
    assert len(database.events()) == 4


async def test_an_outcome_that_cannot_be_learnt_is_said_to_be_unknown_and_the_request_id_tells_later(
    commands_on: Commands, database: WriteDatabase, proxy: CuttingProxy, through_proxy: DatabaseSettings
) -> None:
    executor = await commands_on.executor(through_proxy, retry_seconds=0.0)
    await submit_all(executor, [*SHOP, place_order(1)])
    proxy.cut_on(b"COMMIT", after=True)
    with pytest.raises(Unavailable) as caught:
        await submit(executor, PAY)
    assert caught.value.reason == "OUTCOME_UNKNOWN"
    assert (await submit(executor, PAY)).replayed
    assert len(database.events()) == 4


async def test_a_connection_that_breaks_before_commit_is_made_anew_and_nothing_is_lost(
    commands_on: Commands, database: WriteDatabase, proxy: CuttingProxy, through_proxy: DatabaseSettings
) -> None:
    executor = await commands_on.executor(through_proxy)
    await submit_all(executor, SHOP)
    # What inserts the rows: the statement has been prepared, and is told by its name.
    proxy.cut_on(b"_WITH", after=False)
    receipt_ = await submit(executor, place_order(1))
    assert proxy.cuts == 1
    assert (receipt_.replayed, receipt_.position) == (False, 3)


KEEP = timedelta(days=7)
HALF_A_PERIOD = KEEP / 6 + timedelta(seconds=1)


def purge(database: WriteDatabase, *, later: timedelta = timedelta()) -> None:
    """As a server does it, at a later time."""
    with database.engine.begin() as connection:
        connection.execute(update(receipt_period).values({it: column(it) - later for it in ("began_at", "ended_at")}))
    Maintenance(database.engine, ReceiptSettings(), Ledger(None)).purge()


def stored(database: WriteDatabase) -> dict[int, set[UUID]]:
    """The request ids of the receipts, by period."""
    found: dict[int, set[UUID]] = {}
    with database.engine.connect() as connection:
        for row in connection.execute(receipt.select()):
            found.setdefault(row.period, set()).add(row.request_id)
    return found


async def test_a_request_id_is_known_for_as_long_as_receipts_are_kept_and_a_period_goes_at_once(
    commands_on: Commands, database: WriteDatabase
) -> None:
    executor = await commands_on.executor()
    first = add_product(100)
    first.request_id = identity("first")
    await submit(executor, first)
    for number in range(1, 4):
        for _ in range(2):
            purge(database, later=HALF_A_PERIOD)
        assert (await submit(executor, first)).replayed
        await submit(executor, add_product(number))
    assert [len(it) for _, it in sorted(stored(database).items())] == [1] * 4
    for _ in range(2):
        purge(database, later=HALF_A_PERIOD)
    assert UUID(identity("first")) not in set().union(*stored(database).values())
    with pytest.raises(TandemError, match="exists"):
        await submit(executor, first)
    for number in range(10, 40):
        purge(database, later=HALF_A_PERIOD)
        await submit(executor, add_product(number))
    assert len(stored(database)) == 4, "the tables are used again, and no more are looked into"


async def test_no_request_id_is_stored_in_two_periods(database: WriteDatabase) -> None:
    """The second call looked it up before the first one was stored, and stores it when the next period has begun."""
    again = CommandReceipt(identity("twice"), b"f", identity("product", 1), 0, 0, refusal=b"r")
    with database.engine.connect() as late, database.engine.connect() as early:
        for connection in (late, early):
            assert find_receipts(connection, [identity("twice")])() == {}
        append_refusals(early, [again])
        early.commit()
        with pytest.raises(DBAPIError, match="lock timeout"), database.engine.begin() as connection:
            begin_period(connection, datetime.now(UTC) + KEEP, KEEP)
        with pytest.raises(DBAPIError, match="duplicate key"):
            append_refusals(late, [again])
        late.rollback()
    with database.engine.begin() as connection:
        assert begin_period(connection, datetime.now(UTC) + KEEP, KEEP) == 1
    with database.engine.connect() as connection:
        assert [*find_receipts(connection, [identity("twice")])()] == [identity("twice")]
        append_refusals(connection, [again._replace(request_id=identity("another"))])
        connection.commit()
    assert {period: len(it) for period, it in stored(database).items()} == {0: 1, 1: 1}


async def test_a_period_with_an_unfinished_command_stays(database: WriteDatabase) -> None:
    with database.engine.begin() as connection:
        append_refusals(connection, [CommandReceipt(identity("erase"), b"f", identity("customer", 1), 0, 0)])
        connection.execute(
            text("INSERT INTO tandem_write.unfinished VALUES (:id, '', '', '')"), {"id": identity("erase")}
        )
        assert begin_period(connection, datetime.now(UTC) + KEEP, KEEP) == 1
    later = datetime.now(UTC) + 3 * KEEP
    with database.engine.begin() as connection:
        assert purge_receipts(connection, later, KEEP) is None
        connection.execute(text("DELETE FROM tandem_write.unfinished"))
        assert purge_receipts(connection, later, KEEP) == 0


async def test_a_server_whose_clock_is_not_the_databases_purges_nothing(
    commands_on: Commands, database: WriteDatabase
) -> None:
    executor = await commands_on.executor()
    await submit_all(executor, SHOP)
    side = create_database_engine(database.settings, name="side", pool_size=1)
    off = timedelta(days=45)
    with pytest.raises(ClocksDiffer):
        Maintenance(side, ReceiptSettings(), Ledger(None), clock=lambda: datetime.now(UTC) + off).purge()
    side.dispose()
    assert round(CLOCK_DIFFERENCE._value.get()) == off.total_seconds()
    with database.engine.connect() as connection:
        assert len(connection.execute(receipt.select()).all()) == len(SHOP)


async def test_an_event_is_recorded_when_it_is_decided_and_not_when_its_command_began_to_wait(
    commands_on: Commands, database: WriteDatabase
) -> None:
    moments = iter([NOW, *[NOW + timedelta(seconds=number) for number in (0, 1, 2)]])
    executor = await commands_on.executor(clock=lambda: next(moments))
    await submit_all(executor, [add_product(1)])
    with database.engine.begin() as connection:
        connection.execute(text("SELECT 1 FROM tandem_write.product FOR UPDATE"))
        adjusting = asyncio.create_task(
            submit(executor, commands.AdjustStockRequest(product_id=identity("product", 1), delta=1))
        )
        await until_blocked(database)
    await adjusting
    assert [it.event.recorded_at.ToDatetime(UTC) - NOW for it in database.feed()] == [
        timedelta(0),
        timedelta(seconds=2),
    ]


async def test_one_that_has_waited_is_recorded_when_it_is_decided_wherever_it_is_in_its_batch(
    commands_on: Commands, database: WriteDatabase
) -> None:
    taken_and_decided = iter([NOW, NOW - timedelta(seconds=2), NOW])
    executor = await commands_on.executor(clock=lambda: next(taken_and_decided))
    calls = [call_of(add_product(number)) for number in (1, 2)]
    executor.put_all(calls)
    await asyncio.gather(*(asyncio.wrap_future(it.future) for it in calls))
    assert [it.event.recorded_at.ToDatetime(UTC) for it in database.feed()] == [NOW, NOW]
