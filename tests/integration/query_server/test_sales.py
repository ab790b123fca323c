"""GetSalesSummary on a real read database, compared with plain sums over the orders."""

import asyncio
import random
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc import aio
from sqlalchemy import update

from command_server.orders import MAX_TOTAL
from commerce.event.v1.event_pb2 import Event, OrderPlaced
from commerce.query.v1.query_service_pb2 import (
    GetProductRequest,
    GetSalesSummaryRequest,
    GetSalesSummaryResponse,
    ListRecentOrdersRequest,
)
from commerce.query.v1.sales_pb2 import SalesFigures
from commerce.type.v1.consistency_pb2 import Consistency
from projector.sales_summary import PROJECTION
from query_server.sales import MAX_CURRENCIES
from shop.views import sales_summary
from tests.integration.query_server.conftest import ReadSide, Serve, detail, position_of, reason
from tests.support import events
from tests.support.builders import identity
from tests.support.events import feed_events, timestamp
from tests.support.projecting import fold, upsert

if TYPE_CHECKING:
    # The stubs alone know it.
    from commerce.query.v1.query_service_pb2_grpc import QueryServiceAsyncStub

FIRST = date(2025, 11, 17)
DAYS = 120


@pytest.fixture
def transport() -> str:
    """What is summed up does not depend on it."""
    return "auto"


def project(read_side: ReadSide, history: Iterable[Event]) -> int:
    """Does what the projector does with all of the history; returns the position."""
    changes = fold(PROJECTION, feed_events(history), {})
    assert changes.stopped_by is None
    rows = [(uuid.UUID(bytes=key), row.position, *row.columns, row.value) for key, row in changes.rows.items() if row]
    with read_side.engine.begin() as connection:
        upsert(connection, sales_summary, rows)
    return read_side.advance()


def the_largest_order(number: int, day: date) -> Event:
    placed = an_order(number, day)
    order = placed.order_placed
    order.lines[0].line_total.minor_units = order.total.minor_units = MAX_TOTAL
    return placed


def an_order(number: int, day: date, *, product: int = 1, units: int = 1, currency: str = "USD") -> Event:
    moment = timestamp(datetime(day.year, day.month, day.day, 12, tzinfo=UTC))
    return events.order_placed(number, lines=[(product, units)], placed_at=moment, currency=currency)


def a_winter(seed: int) -> list[Event]:
    """Orders of 120 days over 30 products in two currencies, some cancelled, placed in no order."""
    rng = random.Random(seed)
    history: list[Event] = []
    for number in range(400):
        moment = datetime(FIRST.year, FIRST.month, FIRST.day, tzinfo=UTC) + timedelta(
            seconds=rng.randrange(DAYS * 86_400)
        )
        lines = [(product, rng.randint(1, 3)) for product in rng.sample(range(30), rng.randint(1, 4))]
        placed = events.order_placed(
            number, lines=lines, placed_at=timestamp(moment), currency=rng.choice(["USD", "USD", "EUR"])
        )
        for line in placed.order_placed.lines:
            line.product_name = f"{line.product_name} as of {moment.isoformat()}"
        history.append(placed)
        if rng.random() < 0.2:
            history.append(events.order_cancelled(placed=placed))
    return history


class Plain:
    """The same answers, by adding up the orders themselves."""

    def __init__(self, history: Iterable[Event]) -> None:
        history = list(history)
        self.orders = [it.order_placed for it in history if it.HasField("order_placed")]
        self.gone = {it.order_cancelled.order_id for it in history if it.HasField("order_cancelled")}

    def within(self, first: date, last: date, currency: str) -> list[OrderPlaced]:
        return [it for it in self.orders if it.total.currency_code == currency and first <= day_of(it) <= last]

    def figures(self, orders: Iterable[OrderPlaced]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of the orders that stand and of those that were cancelled: orders, units, revenue, shipping fees."""
        both = [[it for it in orders if (it.order_id in self.gone) is gone] for gone in (False, True)]
        sold, cancelled = (
            (
                len(them),
                sum(line.quantity for it in them for line in it.lines),
                sum(line.line_total.minor_units for it in them for line in it.lines),
                sum(it.shipping_fee.minor_units for it in them),
            )
            for them in both
        )
        return sold, cancelled

    def top(self, orders: Iterable[OrderPlaced], most: int) -> list[tuple[Any, ...]]:
        """Product id, name, orders, units, revenue."""
        names: dict[str, str] = {}
        sums: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for it in sorted(orders, key=lambda it: it.placed_at.ToNanoseconds()):
            for line in it.lines:
                names[line.product_id] = line.product_name
                if it.order_id not in self.gone:
                    sums[line.product_id].update(orders=1, units=line.quantity, revenue=line.line_total.minor_units)
        best = sorted(sums, key=lambda product: (-sums[product]["revenue"], product))[:most]
        return [(it, names[it], sums[it]["orders"], sums[it]["units"], sums[it]["revenue"]) for it in best]


def day_of(order: OrderPlaced) -> date:
    return order.placed_at.ToDatetime().date()


def numbers(figures: SalesFigures, currency: str) -> tuple[int, ...]:
    assert figures.revenue.currency_code == figures.shipping_fees.currency_code == currency
    return figures.order_count, figures.unit_count, figures.revenue.minor_units, figures.shipping_fees.minor_units


async def ask(stub: "QueryServiceAsyncStub", first: date, last: date | None = None, **more: Any) -> Any:
    end = last.isoformat() if last else ""
    request = GetSalesSummaryRequest(start_date=first.isoformat(), end_date=end, **more)
    answer: GetSalesSummaryResponse = await stub.GetSalesSummary(request, timeout=20)
    return answer


async def test_days_ranges_and_top_products_are_the_plain_sums_of_the_orders(read_side: ReadSide, serve: Serve) -> None:
    stub = await serve()
    history = a_winter(seed=1)
    plain = Plain(history)
    position = project(read_side, history)
    rng = random.Random(2)
    starts = [FIRST, *(FIRST + timedelta(days=rng.randrange(DAYS)) for _ in range(25))]
    lengths = [DAYS, *(rng.choice([1, 2, 31, 59, 90]) for _ in range(25))]
    for start, days in zip(starts, lengths, strict=True):
        end = start + timedelta(days=days - 1)
        answer = await ask(stub, start, end, top_products=7)
        assert position_of(answer.as_of) == position
        found = [it.currency_code for it in answer.summaries]
        assert found == [it for it in ("EUR", "USD") if plain.within(start, end, it)]
        for it in answer.summaries:
            currency = it.currency_code
            orders = plain.within(start, end, currency)
            assert (numbers(it.sold, currency), numbers(it.cancelled, currency)) == plain.figures(orders)
            assert [(day.date, numbers(day.sold, currency), numbers(day.cancelled, currency)) for day in it.days] == [
                (day.isoformat(), *plain.figures([it for it in orders if day_of(it) == day]))
                for day in sorted({day_of(it) for it in orders})
            ]
            assert [
                (top.product_id, top.product_name, top.order_count, top.unit_count, top.revenue.minor_units)
                for top in it.top_products
            ] == plain.top(orders, 7)


async def test_one_currency_few_products_or_none_may_be_asked_for(read_side: ReadSide, serve: Serve) -> None:
    stub = await serve()
    history = a_winter(seed=3)
    project(read_side, history)
    last = FIRST + timedelta(days=DAYS)
    everything = {it.currency_code: it for it in (await ask(stub, FIRST, last, top_products=100)).summaries}
    assert {len(it.top_products) for it in everything.values()} == {30}
    for currency, expected in everything.items():
        [one] = (await ask(stub, FIRST, last, currency_code=currency, top_products=100)).summaries
        assert one == expected
        [one] = (await ask(stub, FIRST, last, currency_code=currency)).summaries
        assert list(one.top_products) == list(expected.top_products[:10])
        [one] = (await ask(stub, FIRST, last, currency_code=currency, top_products=0)).summaries
        assert not one.top_products
        assert one.days == expected.days
    assert not (await ask(stub, FIRST, last, currency_code="JPY")).summaries


async def test_products_of_equal_revenue_come_by_id_and_those_that_only_cancelled_orders_have_not_at_all(
    read_side: ReadSide, serve: Serve
) -> None:
    stub = await serve()
    gone = an_order(9, FIRST, product=9)
    project(
        read_side, [gone, *(an_order(n, FIRST, product=n) for n in range(1, 5)), events.order_cancelled(placed=gone)]
    )
    [summary] = (await ask(stub, FIRST)).summaries
    assert [it.product_id for it in summary.top_products] == sorted(identity("product", n) for n in range(1, 5))
    assert numbers(summary.cancelled, "USD") == (1, 1, 900, 495)


async def test_a_range_without_orders_is_empty_and_says_how_fresh(read_side: ReadSide, serve: Serve) -> None:
    stub = await serve()
    position = project(read_side, [an_order(1, FIRST)])
    answer = await ask(stub, FIRST + timedelta(days=1), FIRST + timedelta(days=40))
    assert not answer.summaries
    assert position_of(answer.as_of) == position


async def test_a_summary_with_a_token_waits_for_it(read_side: ReadSide, serve: Serve) -> None:
    stub = await serve()
    wanted = await read_side.announce() + 1
    consistency = Consistency(at_least_as_fresh=read_side.token(wanted))
    consistency.max_wait.FromMilliseconds(50)
    with pytest.raises(aio.AioRpcError) as raised:
        await ask(stub, FIRST, consistency=consistency)
    assert reason(raised.value) == "PROJECTION_LAG"
    project(read_side, [an_order(1, FIRST)])
    await read_side.announce()
    assert (await ask(stub, FIRST, consistency=consistency)).summaries[0].sold.order_count == 1


async def test_every_wrong_field_is_named_and_nothing_is_read(read_side: ReadSide, serve: Serve) -> None:
    stub = await serve()
    read_side.drop_schema()
    request = GetSalesSummaryRequest(
        start_date="2026-02-30",
        end_date="tomorrow",
        currency_code="euro",
        top_products=101,
        consistency=Consistency(at_least_as_fresh="x"),
    )
    with pytest.raises(aio.AioRpcError) as raised:
        await stub.GetSalesSummary(request, timeout=10)
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    violations = detail(raised.value, error_details_pb2.BadRequest).field_violations
    assert {it.field for it in violations} == {
        "start_date", "end_date", "currency_code", "top_products", "consistency.at_least_as_fresh",
    }  # fmt: skip


async def test_more_currencies_than_an_answer_holds_must_be_asked_for_one_by_one(
    read_side: ReadSide, serve: Serve
) -> None:
    stub = await serve()
    letters = "ABCDEFGH"
    codes = [f"X{one}{two}" for one in letters for two in letters][: MAX_CURRENCIES + 1]
    project(
        read_side, [an_order(n, FIRST + timedelta(days=n == MAX_CURRENCIES), currency=it) for n, it in enumerate(codes)]
    )
    assert [it.currency_code for it in (await ask(stub, FIRST)).summaries] == codes[:MAX_CURRENCIES]
    with pytest.raises(aio.AioRpcError) as raised:
        await ask(stub, FIRST, FIRST + timedelta(days=1))
    assert raised.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert reason(raised.value) == "TOO_MANY_CURRENCIES"
    assert len((await ask(stub, FIRST, FIRST + timedelta(days=1), currency_code=codes[-1])).summaries) == 1


async def test_a_report_that_waits_holds_no_other_read_up(read_side: ReadSide, serve: Serve) -> None:
    stub = await serve()
    project(read_side, [an_order(1, FIRST)])
    with read_side.engine.connect() as locking:
        locking.exec_driver_sql(f"LOCK TABLE {sales_summary.fullname} IN ACCESS EXCLUSIVE MODE")
        waiting = stub.GetSalesSummary(GetSalesSummaryRequest(start_date=FIRST.isoformat()), timeout=20)
        await read_side.until_blocked()
        with pytest.raises(aio.AioRpcError) as raised:
            await stub.GetProduct(GetProductRequest(product_id=identity("product", 1)), timeout=10)
        assert raised.value.code() == grpc.StatusCode.NOT_FOUND
        await stub.ListRecentOrders(ListRecentOrdersRequest(customer_id=identity("customer", 1)), timeout=10)
        assert not waiting.done()
    assert (await waiting).summaries[0].sold.order_count == 1


async def test_a_sum_that_no_answer_can_hold_is_the_largest_number_and_no_failure(
    read_side: ReadSide, serve: Serve
) -> None:
    """9,224 of the largest orders pass 2^63: on one day, and over a range of which no day does."""
    stub = await serve()
    days = [FIRST, FIRST + timedelta(days=1), FIRST + timedelta(days=2)]
    history = [
        the_largest_order(number, days[0] if number < 9_300 else days[1 + number % 2]) for number in range(18_600)
    ]
    project(read_side, history)
    for first, last, revenue in (
        (days[0], days[0], 2**63 - 1),
        (days[1], days[2], 2**63 - 1),
        (days[1], days[1], 4_650 * MAX_TOTAL),
    ):
        [summary] = (await ask(stub, first, last)).summaries
        assert summary.sold.revenue.minor_units == revenue
        assert [it.revenue.minor_units for it in summary.top_products] == [revenue]


async def test_a_damaged_row_fails_the_sums_that_show_it_alone(read_side: ReadSide, serve: Serve) -> None:
    project(read_side, [an_order(1, FIRST), an_order(2, FIRST, currency="EUR")])
    with read_side.engine.begin() as connection:
        connection.execute(
            update(sales_summary)
            .where(sales_summary.c.product_id.is_not(None), sales_summary.c.currency_code == "USD")
            .values(value=b"\xff")
        )
    stub = await serve()
    day = FIRST.isoformat()
    both = await asyncio.gather(
        *(
            stub.GetSalesSummary(GetSalesSummaryRequest(start_date=day, currency_code=it), timeout=10)
            for it in ("USD", "EUR")
        ),
        return_exceptions=True,
    )
    assert isinstance(both[0], aio.AioRpcError)
    assert reason(both[0]) == "ROW_DAMAGED"
    assert not isinstance(both[1], BaseException)
    assert len(both[1].summaries) == 1
