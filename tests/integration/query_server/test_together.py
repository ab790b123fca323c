"""Lists and searches that come together are read together; each call gets what it alone would get."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from google.protobuf.message import Message

from commerce.query.v1 import query_service_pb2 as queries
from commerce.query.v1.views_pb2 import OrderSummary
from tandem.runtime.call import LocalCall
from tandem.runtime.errors import InvalidArgument, PreconditionFailed, Unavailable
from tests.integration.query_server.conftest import LocalQueries, ReadSide, position_of, until
from tests.support.builders import identity
from tests.support.metrics import sample
from tests.support.searching import Shelf

ADA, BOB = identity("customer", "ada"), identity("customer", "bob")
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.fixture
def filled(read_side: ReadSide) -> ReadSide:
    """With five orders of one customer and two products."""
    for number in range(5):
        summary = OrderSummary(order_id=identity("order", number), customer_id=ADA, unit_count=number)
        read_side.put_summary(summary.order_id, summary, customer=ADA, at=NOON)
    shelf = Shelf(read_side)
    shelf.add("Walnut Bowl", category="Kitchen")
    shelf.add("Walnut Box", category="Desk")
    return read_side


def recent(customer: str = ADA, **fields: Any) -> Message:
    return queries.ListRecentOrdersRequest(customer_id=customer, **fields)


def search(query: str, **fields: Any) -> Message:
    return queries.SearchProductsRequest(query=query, **fields)


REQUESTS: dict[str, list[Any]] = {
    "ListRecentOrders": [recent(), recent(page_size=2), recent(), recent(BOB), recent(ADA.upper())],
    "ListSubscriptions": [queries.ListSubscriptionsRequest(customer_id=ADA)],
    "SearchProducts": [
        search("walnut"),
        search("wal box"),
        search("walnut"),
        search(""),
        search("wulnat", page_size=1),
    ],
    "GetSalesSummary": [queries.GetSalesSummaryRequest(start_date=it) for it in ("2026-01-31", "2026-02-01")],
}

each_rpc = pytest.mark.parametrize("rpc", REQUESTS)


async def outcomes(calls: Sequence[LocalCall]) -> list[Any]:
    """The serialised responses, or the errors."""
    async with asyncio.timeout(20):
        return await asyncio.gather(*(asyncio.wrap_future(it.future) for it in calls), return_exceptions=True)


def parsed(rpc: str, response: bytes) -> Any:
    return getattr(queries, f"{rpc}Response").FromString(response)


def read_together(kind: str) -> list[float]:
    """How many batches there were, and how much was read in them."""
    name, labels = "tandem_read_batch_size", {"kind": kind}
    return [sample(f"{name}_{it}", **labels) or 0 for it in ("count", "sum")]


@each_rpc
async def test_a_call_gets_together_with_others_what_it_gets_alone(
    rpc: str, filled: ReadSide, local: LocalQueries
) -> None:
    requests = [*REQUESTS[rpc]]
    together = await outcomes(local.ask(rpc, *requests))
    for request, response in zip(list(requests), together, strict=True):
        assert await outcomes(local.ask(rpc, request)) == [response]
        if token := getattr(parsed(rpc, response), "next_page_token", ""):
            following = type(request)()
            following.CopyFrom(request)
            following.page_token = token
            requests.append(following)
    alone = [await outcomes(local.ask(rpc, it)) for it in requests]
    assert await outcomes(local.ask(rpc, *requests)) == [response for [response] in alone]


@pytest.mark.parametrize(("rpc", "kind"), [("ListRecentOrders", "list"), ("SearchProducts", "search")])
async def test_what_several_calls_want_is_read_once(rpc: str, kind: str, filled: ReadSide, local: LocalQueries) -> None:
    before = read_together(kind)
    await outcomes(local.ask(rpc, *REQUESTS[rpc]))
    batches, read = (after - it for it, after in zip(before, read_together(kind), strict=True))
    assert (batches, read) == (1, len({it.SerializeToString().lower() for it in REQUESTS[rpc]}))


async def test_reports_that_are_alike_are_made_once(filled: ReadSide, local: LocalQueries) -> None:
    before = read_together("sales")
    request = REQUESTS["GetSalesSummary"][0]
    assert len(set(await outcomes(local.ask("GetSalesSummary", *[request] * 10)))) == 1
    assert [after - it for it, after in zip(before, read_together("sales"), strict=True)] == [1, 1]


@pytest.mark.parametrize("rpc", [it for it in REQUESTS if it != "GetSalesSummary"])
async def test_what_is_wrong_is_refused_and_the_others_are_answered(
    rpc: str, filled: ReadSide, local: LocalQueries
) -> None:
    right = REQUESTS[rpc][0]
    wrong = type(right)()
    wrong.CopyFrom(right)
    wrong.page_size = 1000
    refused, answered = await outcomes(local.ask(rpc, wrong, right))
    assert isinstance(refused, InvalidArgument)
    assert [it.subject for it in refused.violations] == ["page_size"]
    assert isinstance(answered, bytes)


def fresh(request: Any, **consistency: Any) -> Any:
    asked = type(request)()
    asked.CopyFrom(request)
    asked.consistency.SetInParent()
    for name, value in consistency.items():
        setattr(asked.consistency, name, value)
    return asked


def waiting(count: int) -> Any:
    return until(lambda: sample("tandem_freshness_waiters") == count, f"{count} calls wait")


@each_rpc
async def test_what_must_wait_holds_up_nobody(rpc: str, filled: ReadSide, local: LocalQueries) -> None:
    reached = await filled.announce()
    request = REQUESTS[rpc][0]
    calls = local.ask(
        rpc,
        fresh(request, at_least_as_fresh=filled.token(reached)),
        fresh(request, at_least_as_fresh=filled.token(reached + 1)),
        fresh(request, fully_consistent=True),
    )
    answered, refused = await outcomes([calls[0], calls[2]])
    assert position_of(parsed(rpc, answered).as_of) == reached
    assert isinstance(refused, PreconditionFailed)
    await waiting(1)
    assert not calls[1].future.done()
    later = await filled.announce()
    [answered] = await outcomes([calls[1]])
    assert position_of(parsed(rpc, answered).as_of) == later


@each_rpc
async def test_a_database_that_is_behind_what_was_announced_answers_no_token_until_it_is_there(
    rpc: str, filled: ReadSide, local: LocalQueries
) -> None:
    ahead = await filled.announce(lost=True)
    request = REQUESTS[rpc][0]
    waits, answered = local.ask(rpc, fresh(request, at_least_as_fresh=filled.token(ahead)), request)
    [response] = await outcomes([answered])
    assert position_of(parsed(rpc, response).as_of) == ahead - 1
    await waiting(1)
    assert not waits.future.done()
    assert filled.advance() == ahead
    [response] = await outcomes([waits])
    assert position_of(parsed(rpc, response).as_of) == ahead


@each_rpc
async def test_without_announcements_the_database_says_whether_it_is_there(
    rpc: str, filled: ReadSide, local: LocalQueries
) -> None:
    request = REQUESTS[rpc][0]
    here, ahead = (fresh(request, at_least_as_fresh=filled.token(filled.position + it)) for it in (0, 1))
    plain, there, not_yet = local.ask(rpc, request, here, ahead)
    for response in await outcomes([plain, there]):
        assert position_of(parsed(rpc, response).as_of) == filled.position
    assert not not_yet.future.done()
    filled.advance()
    [response] = await outcomes([not_yet])
    assert position_of(parsed(rpc, response).as_of) == filled.position


@each_rpc
async def test_without_a_database_all_are_told_so(rpc: str, filled: ReadSide, local: LocalQueries) -> None:
    filled.let_in(anybody=False)
    try:
        refused = await outcomes(local.ask(rpc, *REQUESTS[rpc]))
    finally:
        filled.let_in(anybody=True)
    assert {it.reason for it in refused if isinstance(it, Unavailable)} == {"STORE_UNAVAILABLE"}
    assert all(isinstance(it, Unavailable) for it in refused)
