"""How often PostgreSQL plans what is asked all the time: planning takes longer than finding the rows."""

import uuid
from collections.abc import Iterator, Sequence

import pytest
from sqlalchemy import text

from commerce.query.v1.query_service_pb2 import SearchProductsRequest
from query_server.orders import OF_CUSTOMER
from query_server.search.memory import SearchMemory
from query_server.search.query import SearchQuery
from query_server.search.statements import SESSION
from tandem.queries.encoding import room_for_rows
from tandem.queries.page_token import FIRST_PAGE
from tandem.queries.pages import PageKey, Selection, read_pages
from tandem.queries.store import ONE_PLAN, Store
from tests.integration.query_server.conftest import ReadSide
from tests.support.searching import answered

# PostgreSQL compares the first five plans with one that knows no values.
_COMPARED = 5


@pytest.fixture
def session() -> Sequence[str]:
    return ONE_PLAN


@pytest.fixture
def database(read_side: ReadSide, session: Sequence[str]) -> Iterator[Store]:
    database = Store(read_side.settings, connections=1, session=session)
    yield database
    database.close()


def planned(database: Store) -> list[tuple[int, int]]:
    """How often each prepared statement ran with a plan of its own, and with a shared one."""
    statement = text(
        "SELECT custom_plans, generic_plans FROM pg_prepared_statements WHERE statement NOT LIKE '%plans%'"
    )
    return [(it.custom_plans, it.generic_plans) for it in database.execute(statement, {})]


def test_reads_by_key_and_lists_share_a_plan_whatever_is_asked(database: Store) -> None:
    for number in range(1, 10):
        keys = [uuid.uuid4() for _ in range(number)]
        database.rows("order_details", [key.hex for key in keys])
        pages = [PageKey(Selection(OF_CUSTOMER, equal=(key,)), FIRST_PAGE, number) for key in keys]
        read_pages(database, pages, room=1)
    assert planned(database) == [(0, 9), (0, 9)]


@pytest.mark.parametrize("session", [SESSION])
def test_searches_for_rare_words_share_a_plan_and_others_do_not(database: Store) -> None:
    searches = SearchQuery(database, database, SearchMemory(0), room_for_rows(4 * 2**20))
    for number in range(10):
        answered(searches, SearchProductsRequest(query=f"of walnut{number}"))
        answered(searches, SearchProductsRequest(query=f"of w{number}"))
    # The others are not prepared at all; what corrects them all is.
    assert (_COMPARED, 10 - _COMPARED) in planned(database)
    assert len(planned(database)) == 2
