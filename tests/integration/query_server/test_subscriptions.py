"""Lists of subscriptions, by customer and status, page by page."""

import asyncio
import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc import aio
from sqlalchemy import text

from commerce.query.v1 import query_service_pb2 as queries
from commerce.query.v1.views_pb2 import SubscriptionDetails
from commerce.type.v1.consistency_pb2 import Consistency
from commerce.type.v1.subscription_status_pb2 import SubscriptionStatus
from query_server import orders, subscriptions
from tandem.queries.page_token import FIRST_PAGE
from tandem.read_store.tables import SCHEMA
from tests.integration.query_server.conftest import ReadSide, Serve, detail
from tests.support.builders import identity

if TYPE_CHECKING:
    # The stubs alone know it.
    from commerce.query.v1.query_service_pb2_grpc import QueryServiceAsyncStub

DAY = datetime(2026, 1, 31, tzinfo=UTC)
ADA, BOB = identity("customer", "ada"), identity("customer", "bob")
ACTIVE = SubscriptionStatus.SUBSCRIPTION_STATUS_ACTIVE
CANCELING = SubscriptionStatus.SUBSCRIPTION_STATUS_CANCELING
LAPSED = SubscriptionStatus.SUBSCRIPTION_STATUS_LAPSED


def put(read_side: ReadSide, number: int, customer: str, status: SubscriptionStatus.ValueType) -> str:
    """Subscriptions are started in threes at the same moment, so that the position has to break ties."""
    key = identity("subscription", number)
    columns = {
        "customer_id": uuid.UUID(customer),
        "status": status,
        "started_at": DAY + timedelta(microseconds=number // 3),
    }
    message = SubscriptionDetails(subscription_id=key, customer_id=customer, status=status)
    read_side.put_listed("subscription_details", key, message, columns, "started_position")
    return key


async def listed(
    stub: "QueryServiceAsyncStub", *statuses: SubscriptionStatus.ValueType, customer: str = "", size: int = 2
) -> list[str]:
    """The ids over all pages."""
    ids, token = [], ""
    while True:
        request = queries.ListSubscriptionsRequest(
            customer_id=customer, statuses=statuses, page_size=size, page_token=token
        )
        page = await stub.ListSubscriptions(request, timeout=10)
        assert len(page.subscriptions) <= size
        ids += [it.subscription_id for it in page.subscriptions]
        token = page.next_page_token
        if not token:
            return ids


async def test_subscriptions_come_newest_first_by_customer_by_status_and_by_both(
    read_side: ReadSide, serve: Serve
) -> None:
    stub = await serve()
    statuses = [ACTIVE, CANCELING, LAPSED]
    kept = [
        (put(read_side, number, customer, status), customer, status)
        for number, (customer, status) in enumerate((c, s) for _ in range(4) for c in (ADA, BOB) for s in statuses)
    ]
    kept.reverse()
    assert await listed(stub, customer=ADA) == [key for key, customer, _ in kept if customer == ADA]
    assert await listed(stub, LAPSED) == [key for key, _, status in kept if status == LAPSED]
    assert await listed(stub, ACTIVE, LAPSED, ACTIVE, size=3) == [
        key for key, _, status in kept if status in (ACTIVE, LAPSED)
    ]
    assert await listed(stub, CANCELING, LAPSED, customer=BOB) == [
        key for key, customer, status in kept if customer == BOB and status in (CANCELING, LAPSED)
    ]
    assert await listed(stub, customer=identity("nobody")) == []


async def test_a_list_that_grows_while_its_pages_are_read_repeats_and_skips_nothing(
    read_side: ReadSide, serve: Serve
) -> None:
    stub = await serve()
    before = [put(read_side, number, ADA, ACTIVE) for number in range(6)][::-1]
    request = queries.ListSubscriptionsRequest(statuses=[ACTIVE], page_size=3)
    first = await stub.ListSubscriptions(request, timeout=10)
    put(read_side, 7, BOB, ACTIVE)
    request.page_token = first.next_page_token
    second = await stub.ListSubscriptions(request, timeout=10)
    assert [it.subscription_id for it in (*first.subscriptions, *second.subscriptions)] == before
    assert second.next_page_token == ""


async def test_lists_that_are_asked_for_together_do_not_mix(read_side: ReadSide, serve: Serve) -> None:
    stub = await serve()
    ada = [put(read_side, number, ADA, (ACTIVE, LAPSED)[number % 2]) for number in range(6)][::-1]
    bob = [put(read_side, number, BOB, ACTIVE) for number in range(6, 9)][::-1]
    recent = stub.ListRecentOrders(queries.ListRecentOrdersRequest(customer_id=ADA), timeout=10)
    *lists, no_orders = await asyncio.gather(
        listed(stub, customer=ADA),
        listed(stub, customer=BOB, size=1),
        listed(stub, ACTIVE, size=4),
        listed(stub, ACTIVE, LAPSED),
        listed(stub, LAPSED, customer=ADA, size=1),
        listed(stub, ACTIVE, LAPSED, customer=ADA),
        recent,
    )
    assert lists == [ada, bob, bob + ada[1::2], bob + ada, ada[::2], ada]
    assert list(no_orders.orders) == []


async def test_one_that_changes_its_status_between_pages_moves_no_other(read_side: ReadSide, serve: Serve) -> None:
    stub = await serve()
    before = [put(read_side, number, ADA, ACTIVE) for number in range(6)][::-1]
    request = queries.ListSubscriptionsRequest(customer_id=ADA, statuses=[ACTIVE], page_size=2)
    first = await stub.ListSubscriptions(request, timeout=10)
    # The last one of the first page: the next page begins after it all the same.
    put(read_side, 4, ADA, LAPSED)
    request.page_token, request.page_size = first.next_page_token, 10
    second = await stub.ListSubscriptions(request, timeout=10)
    assert [it.subscription_id for it in (*first.subscriptions, *second.subscriptions)] == before


def test_each_list_is_a_walk_down_an_index_of_its_own(read_side: ReadSide) -> None:
    expected = {
        orders.OF_CUSTOMER: "order_summary_recent",
        subscriptions.OF_CUSTOMER: "subscription_details_by_customer_id",
        subscriptions.OF_STATUSES: "subscription_details_by_status",
        subscriptions.OF_CUSTOMER_AND_STATUSES: "subscription_details_by_customer_id_status",
    }
    page: dict[str, object] = {"e0": [uuid.UUID(ADA)], "one_of": ["{1,4}"], "limits": [20]}
    page |= {"times": [FIRST_PAGE.at], "positions": [FIRST_PAGE.position]}
    with read_side.engine.connect() as connection:
        # As many rows as make an index worth while: ten customers with many, of two statuses.
        for table, status in (("order_summary", ""), ("subscription_details", "n % 2 + 1,")):
            connection.execute(
                text(
                    f"INSERT INTO {SCHEMA}.{table} SELECT gen_random_uuid(), n,"
                    f" CAST(lpad(CAST(n % 10 AS text), 32, '0') AS uuid), {status} now() + n * interval '1 s', n, ''"
                    " FROM generate_series(1, 20000) AS n"
                )
            )
        connection.execute(text(f"ANALYZE {SCHEMA}.order_summary, {SCHEMA}.subscription_details"))
        for rows, index in expected.items():
            plan = "\n".join(connection.execute(text(f"EXPLAIN {rows.look_up.plain.text}"), page).scalars())
            assert f"Index Scan using {index} on" in plan, plan
            condition = plan.split(f"Index Scan using {index} on")[1].split("Index Cond:")[1].splitlines()[0]
            assert "ROW(" in condition, "the pages before are passed over in the index"
            assert "Filter:" not in plan, plan


async def test_a_list_waits_for_its_token(read_side: ReadSide, serve: Serve) -> None:
    stub = await serve()
    put(read_side, 1, ADA, ACTIVE)
    request = queries.ListSubscriptionsRequest(
        customer_id=ADA, consistency=Consistency(at_least_as_fresh=read_side.token(read_side.position + 1))
    )
    request.consistency.max_wait.FromMilliseconds(50)
    with pytest.raises(aio.AioRpcError) as caught:
        await stub.ListSubscriptions(request, timeout=10)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert detail(caught.value, error_details_pb2.ErrorInfo).reason == "PROJECTION_LAG"


async def test_every_wrong_field_is_named(read_side: ReadSide, serve: Serve) -> None:
    async def violations(request: queries.ListSubscriptionsRequest) -> dict[str, str]:
        with pytest.raises(aio.AioRpcError) as caught:
            await stub.ListSubscriptions(request, timeout=10)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        found = detail(caught.value, error_details_pb2.BadRequest).field_violations
        return {it.field: it.reason for it in found}

    stub = await serve()
    assert await violations(queries.ListSubscriptionsRequest()) == {"customer_id": "REQUIRED", "statuses": "REQUIRED"}
    wrong = queries.ListSubscriptionsRequest(customer_id="x", page_size=101, page_token="y")
    wrong.statuses.extend([ACTIVE, 0, 9])  # type: ignore[list-item]
    assert await violations(wrong) == {
        "customer_id": "MALFORMED",
        "statuses[1]": "MALFORMED",
        "statuses[2]": "MALFORMED",
        "page_size": "OUT_OF_RANGE",
        "page_token": "MALFORMED",
    }
    for number in range(3):
        put(read_side, number, ADA, ACTIVE)
    page = await stub.ListSubscriptions(queries.ListSubscriptionsRequest(customer_id=ADA, page_size=1), timeout=10)
    other = queries.ListSubscriptionsRequest(statuses=[ACTIVE], page_size=1, page_token=page.next_page_token)
    assert await violations(other) == {"page_token": "MALFORMED"}
