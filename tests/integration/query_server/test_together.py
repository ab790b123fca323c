"""What is answered at a desk is what the method answers; what has to wait or is wrong is left to it."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from google.protobuf.message import Message
from prometheus_client import REGISTRY

from commerce.query.v1 import query_service_pb2 as queries
from commerce.query.v1.views_pb2 import OrderSummary
from query_server.database import ONE_PLAN, ReadDatabase
from query_server.lists import LISTS
from query_server.queries.search.memory import SearchMemory
from query_server.queries.search.reader import SearchReader
from query_server.queries.search.statements import SESSION
from query_server.together import PagesTogether, SearchesTogether
from tandem.feed.token import Token
from tandem.runtime.desk import AnswerTogether
from tests.integration.query_server.conftest import ReadSide, Serve
from tests.integration.query_server.test_search import Shelf
from tests.support.builders import identity

ADA, BOB = identity("customer", "ada"), identity("customer", "bob")
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


class Announcements:
    """Stands for Freshness: every view is announced at one position, or none is."""

    def __init__(self, token: Token | None) -> None:
        self._announced = token and SimpleNamespace(token=token)

    def announced(self, _view: str) -> Any:
        return self._announced


Together = Callable[[str], AnswerTogether]


@pytest.fixture
def transport() -> str:
    """The method is the same on both."""
    return "grpcio"


@pytest.fixture
def blind() -> bool:
    return False


@pytest.fixture
def together(read_side: ReadSide, blind: bool) -> Iterator[Together]:
    """What answers an RPC at its desk, with what is committed by then announced."""
    database = ReadDatabase(read_side.settings, connections=1, session=ONE_PLAN)
    searched = ReadDatabase(read_side.settings, connections=1, session=SESSION)

    def make(rpc: str) -> AnswerTogether:
        freshness: Any = Announcements(None if blind else Token(read_side.feed, read_side.position))
        if rpc == "SearchProducts":
            return SearchesTogether(SearchReader(searched, database, SearchMemory(2**20)), freshness)
        return PagesTogether(LISTS[rpc], database, freshness)

    yield make
    for it in (database, searched):
        it._engine.dispose()


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
}

each_rpc = pytest.mark.parametrize("rpc", REQUESTS)


def ask(answers: AnswerTogether, *requests: Message) -> list[bytes | None]:
    return list(answers(requests))


def read_together(kind: str) -> list[float]:
    """How many batches there were, and how much was read in them."""
    name, labels = "tandem_read_batch_size", {"kind": kind}
    return [REGISTRY.get_sample_value(f"{name}_{it}", labels) or 0 for it in ("count", "sum")]


@each_rpc
async def test_an_answer_at_a_desk_is_the_one_of_the_method(
    rpc: str, filled: ReadSide, together: Together, serve: Serve
) -> None:
    method = getattr(await serve(), rpc)
    answers = ask(together(rpc), *REQUESTS[rpc])
    for request, answer in zip(REQUESTS[rpc], answers, strict=True):
        response = await method(request, timeout=10)
        assert type(response).FromString(answer) == response
        if response.next_page_token:
            following = type(request)()
            following.CopyFrom(request)
            following.page_token = response.next_page_token
            [next_answer] = ask(together(rpc), following)
            assert type(response).FromString(next_answer) == await method(following, timeout=10)


@pytest.mark.parametrize(("rpc", "kind"), [("ListRecentOrders", "list"), ("SearchProducts", "search")])
def test_what_several_calls_want_is_read_once(rpc: str, kind: str, filled: ReadSide, together: Together) -> None:
    before = read_together(kind)
    ask(together(rpc), *REQUESTS[rpc])
    batches, read = (after - it for it, after in zip(before, read_together(kind), strict=True))
    assert (batches, read) == (1, len({it.SerializeToString().lower() for it in REQUESTS[rpc]}))


@each_rpc
def test_what_is_wrong_is_left_to_the_method_and_the_others_are_answered(
    rpc: str, filled: ReadSide, together: Together
) -> None:
    right = REQUESTS[rpc][0]
    wrong = type(right)()
    wrong.CopyFrom(right)
    wrong.page_size = 1000
    answers = ask(together(rpc), wrong, right)
    assert [it is None for it in answers] == [True, False]
    assert ask(together(rpc), wrong) == [None]


def fresh(request: Any, **consistency: Any) -> Any:
    asked = type(request)()
    asked.CopyFrom(request)
    asked.consistency.SetInParent()
    for name, value in consistency.items():
        setattr(asked.consistency, name, value)
    return asked


@each_rpc
def test_what_must_wait_is_left_to_the_method(rpc: str, filled: ReadSide, together: Together) -> None:
    reached, ahead = filled.token(filled.position), filled.token(filled.position + 1)
    request = REQUESTS[rpc][0]
    answers = ask(
        together(rpc),
        fresh(request, at_least_as_fresh=reached),
        fresh(request, at_least_as_fresh=ahead),
        fresh(request, fully_consistent=True),
    )
    assert [it is None for it in answers] == [False, True, True]


@each_rpc
def test_a_database_that_is_behind_what_was_announced_answers_no_token(
    rpc: str, filled: ReadSide, together: Together
) -> None:
    filled.position += 1
    answers_of = together(rpc)
    request = REQUESTS[rpc][0]
    ahead = fresh(request, at_least_as_fresh=filled.token(filled.position))
    assert [it is None for it in ask(answers_of, ahead, request)] == [True, False]


@pytest.mark.parametrize("blind", [True])
@each_rpc
def test_without_announcements_only_calls_without_a_token_are_answered(
    rpc: str, filled: ReadSide, together: Together
) -> None:
    request = REQUESTS[rpc][0]
    answers = ask(together(rpc), request, fresh(request, at_least_as_fresh=filled.token(1)))
    assert [it is None for it in answers] == [False, True]


@each_rpc
def test_without_a_database_all_is_left_to_the_method(rpc: str, filled: ReadSide, together: Together) -> None:
    answers_of = together(rpc)
    filled.let_in(anybody=False)
    try:
        assert ask(answers_of, *REQUESTS[rpc]) == [None] * len(REQUESTS[rpc])
    finally:
        filled.let_in(anybody=True)
