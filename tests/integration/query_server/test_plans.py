"""How often PostgreSQL plans what is asked all the time: planning takes longer than finding the rows."""

import uuid
from collections.abc import Iterator, Sequence

import pytest
from sqlalchemy import text

from commerce.query.v1.query_service_pb2 import SearchProductsRequest
from query_server.database import ONE_PLAN, ReadDatabase
from query_server.page_token import FIRST_PAGE
from query_server.queries.orders import OF_CUSTOMER
from query_server.queries.pages import PageKey, Selection, read_pages
from query_server.queries.search.memory import SearchMemory
from query_server.queries.search.reader import SearchReader
from query_server.queries.search.request import search_key
from query_server.queries.search.statements import SESSION
from query_server.validation import Checker
from tests.integration.query_server.conftest import ReadSide

# PostgreSQL compares the first five plans with one that knows no values.
_COMPARED = 5


@pytest.fixture
def session() -> Sequence[str]:
    return ONE_PLAN


@pytest.fixture
def database(read_side: ReadSide, session: Sequence[str]) -> Iterator[ReadDatabase]:
    database = ReadDatabase(read_side.settings, connections=1, session=session)
    yield database
    database._engine.dispose()


def planned(database: ReadDatabase) -> list[tuple[int, int]]:
    """How often each prepared statement ran with a plan of its own, and with a shared one."""
    statement = text(
        "SELECT custom_plans, generic_plans FROM pg_prepared_statements WHERE statement NOT LIKE '%plans%'"
    )
    return [(it.custom_plans, it.generic_plans) for it in database._execute(statement, {})]


def test_reads_by_key_and_lists_share_a_plan_whatever_is_asked(database: ReadDatabase) -> None:
    for number in range(1, 10):
        keys = [uuid.uuid4() for _ in range(number)]
        database.rows("order_details", keys)
        read_pages(database, [PageKey(Selection(OF_CUSTOMER, equal=(key,)), FIRST_PAGE, number) for key in keys])
    assert planned(database) == [(0, 9), (0, 9)]


@pytest.mark.parametrize("session", [SESSION])
def test_searches_for_rare_words_share_a_plan_and_others_do_not(database: ReadDatabase) -> None:
    reader = SearchReader(database, database, SearchMemory(0))
    for number in range(10):
        reader([search_key(SearchProductsRequest(query=f"of walnut{number}"), Checker(0))])
        reader([search_key(SearchProductsRequest(query=f"of w{number}"), Checker(0))])
    # The others are not prepared at all; what corrects them all is.
    assert (_COMPARED, 10 - _COMPARED) in planned(database)
    assert len(planned(database)) == 2
