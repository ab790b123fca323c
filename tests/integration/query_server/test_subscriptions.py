"""Lists of subscriptions, by customer and status, page by page."""

import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc import aio

from commerce.query.v1 import query_service_pb2 as queries
from commerce.query.v1.views_pb2 import SubscriptionDetails
from commerce.type.v1.consistency_pb2 import Consistency
from commerce.type.v1.subscription_status_pb2 import SubscriptionStatus
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
