"""What is remembered of searches: an answer that is made of it is the one that a search in full would give."""

import uuid
from collections import Counter
from typing import Any

import pytest
from sqlalchemy import text

from commerce.event.v1.event_pb2 import Event
from commerce.query.v1.query_service_pb2 import ProductFilter, ProductSort, SearchProductsRequest
from commerce.type.v1.consistency_pb2 import Consistency
from query_server.search.memory import SearchMemory
from query_server.search.statements import MOST_REMEMBERED
from shop.views import VIEWS
from tandem.queries.store import Store
from tests.integration.query_server.conftest import OpenSearcher, ReadSide, Serve
from tests.integration.query_server.test_search import names, search
from tests.support import events
from tests.support.builders import identity, usd
from tests.support.events import feed_events
from tests.support.projecting import PROJECTIONS, fold, upsert
from tests.support.searching import Counted, Shelf
from tests.support.stack import Databases


@pytest.fixture
def transport() -> str:
    """The transports are the other suites' affair."""
    return "native"


@pytest.mark.parametrize(
    ("query", "fields"),
    [
        ("lamp", {}),
        ("lamp", {"page_size": 2}),
        ("", {}),
        ("lmap", {}),
        ("lamp nothing", {}),
        ("lamp", {"filter": ProductFilter(in_stock=True, max_price=usd(1003))}),
        ("lamp", {"sort": ProductSort.PRODUCT_SORT_PRICE_DESC, "page_size": 2}),
        ("lamp", {"filter": ProductFilter(include_discontinued=True)}),
    ],
)
def test_what_is_asked_again_is_answered_from_the_cards_alone(
    shelf: Shelf, read_side: ReadSide, opened: OpenSearcher, query: str, fields: dict[str, Any]
) -> None:
    for number in range(6):
        shelf.add(f"Lamp {number}", price=usd(1000 + number), stock=number)
    shelf.happen(events.product_discontinued(1))
    asked = opened(read_side)
    first = asked(query, **fields)
    full = asked.full
    assert full > 0
    assert asked(query, **fields) == first
    if first.next_page_token:
        page = asked(query, page_token=first.next_page_token, **fields)
        fresh = opened(read_side, SearchMemory(0))
        assert page == fresh(query, page_token=first.next_page_token, **fields)
        assert page.hits
    assert asked.full == full


def test_searches_that_wait_together_are_answered_by_one_statement(
    shelf: Shelf, read_side: ReadSide, opened: OpenSearcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("Oak Lamp", "Oak Chair", "Brass Lamp"):
        shelf.add(name)
    asked = opened(read_side)
    requests = [SearchProductsRequest(query=it) for it in ("lamp", "oak", "brass lamp", "new")]
    one_by_one = [asked.together(it)[0] for it in requests[:3]]
    full, counted = asked.full, Counter[str]()
    execute = Store.execute_on

    def count(database: Store, view: str, *rest: Any, **more: Any) -> Any:
        counted[view] += not isinstance(database, Counted)
        return execute(database, view, *rest, **more)

    monkeypatch.setattr(Store, "execute_on", count)
    assert asked.together(*requests)[:3] == one_by_one
    assert counted == {"product_search": 1, "search_word": 0}
    assert asked.full > full, "the fourth is searched for in full"


def test_an_order_changes_the_stock_and_the_next_search_shows_it_without_searching_anew(
    shelf: Shelf, read_side: ReadSide, opened: OpenSearcher
) -> None:
    shelf.add("Lamp", stock=2)
    asked = opened(read_side)
    assert asked("lamp").hits[0].product.available == 2
    full = asked.full
    token = shelf.happen(events.order_placed(lines=[(1, 2)]))
    found = asked("lamp")
    assert (found.hits[0].product.available, found.facets.in_stock_count, found.as_of) == (0, 0, token)
    assert names(asked("lamp", filter=ProductFilter(in_stock=True))) == []
    assert asked.full == full


async def test_a_revised_product_is_found_by_its_new_words_and_not_by_its_old_ones_at_once(
    shelf: Shelf, serve: Serve
) -> None:
    shelf.add("Lamp")
    stub = await serve()
    for _ in range(2):
        assert names(await search(stub, "lamp")) == ["Lamp"]
        assert names(await search(stub, "candle")) == []
        assert names(await search(stub, "cnadle")) == []
    token = Consistency(at_least_as_fresh=shelf.happen(events.product_revised(shelf.number("Lamp"), name="Candle")))
    for _ in range(2):
        assert names(await search(stub, "lamp", consistency=token)) == []
        assert names(await search(stub, "candle", consistency=token)) == ["Candle"]
        corrected = await search(stub, "cnadle", consistency=token)
        assert (names(corrected), corrected.corrected_query) == (["Candle"], "candle")


def test_a_discontinued_product_is_found_only_by_who_wants_those_too(
    shelf: Shelf, read_side: ReadSide, opened: OpenSearcher
) -> None:
    shelf.add("Lamp")
    asked = opened(read_side)
    both = ProductFilter(include_discontinued=True)
    assert [names(asked("lamp")), names(asked("lamp", filter=both))] == [["Lamp"], ["Lamp"]]
    shelf.happen(events.product_discontinued(1))
    for _ in range(2):
        assert [names(asked("lamp")), names(asked("lamp", filter=both))] == [[], ["Lamp"]]


def test_what_a_word_was_taken_for_too_is_searched_for_anew_when_a_text_changes(
    shelf: Shelf, read_side: ReadSide, opened: OpenSearcher
) -> None:
    for number in range(3):
        shelf.add(f"Jug {number}", description="With a silver ladle.", stock=0)
    shelf.add("Laddle")
    asked, in_stock = opened(read_side), ProductFilter(in_stock=True)
    assert names(asked("ladle", filter=in_stock)) == ["Laddle"]
    shelf.happen(events.product_discontinued(shelf.number("Laddle")))
    # Enough are found as it is written: only those are searched for.
    assert len(asked("ladle").hits) == 3
    assert names(asked("ladle", filter=in_stock)) == []


def test_products_whose_cards_are_not_there_yet_leave_no_gap(
    shelf: Shelf, read_side: ReadSide, opened: OpenSearcher
) -> None:
    for number in range(6):
        shelf.add(f"Lamp {number}")
    asked, fresh = opened(read_side), opened(read_side, SearchMemory(0))
    asked("lamp", page_size=2)
    with read_side.engine.begin() as connection:
        for hit in fresh("lamp", page_size=2).hits:
            gone = {"key": hit.product.product_id}
            connection.execute(text("DELETE FROM tandem_read.product_card WHERE key = CAST(:key AS uuid)"), gone)
    found = asked("lamp", page_size=2)
    assert len(found.hits) == 2
    assert found == fresh("lamp", page_size=2)


def test_marks_follow_a_text_that_changes_in_the_card_alone(
    shelf: Shelf, read_side: ReadSide, opened: OpenSearcher
) -> None:
    """The views are not always at one position: what is shown is the card's."""
    shelf.add("Oak Lamp", description="A lamp.")
    asked = opened(read_side)
    assert asked("lamp").hits[0].highlighted_name == "Oak <em>Lamp</em>"
    Lagging(read_side, shelf).happen("product_card", events.product_revised(1, name="Lamp of oak"))
    [hit] = asked("lamp").hits
    assert (hit.highlighted_name, hit.highlighted_description) == ("<em>Lamp</em> of oak", "20 boxes")


@pytest.mark.parametrize("description", ["", "20", "A lamp."])
def test_marks_follow_a_description_that_is_written_for_the_first_time(
    shelf: Shelf, read_side: ReadSide, opened: OpenSearcher, description: str
) -> None:
    """With all else as it was, where a card may begin as it did."""
    shelf.add("Lamp", description=description)
    asked = opened(read_side)
    assert len(asked("lamp").hits) == 1
    shelf.happen(events.product_revised(1, name="Lamp"))
    [hit] = asked("lamp").hits
    assert (hit.product.description, hit.highlighted_description) == ("20 boxes", "20 boxes")


class Lagging:
    """Changes one view and not the others."""

    def __init__(self, read_side: ReadSide, shelf: Shelf) -> None:
        self._read_side = read_side
        self._history = shelf._history

    def happen(self, view: str, *later: Event) -> None:
        rows = fold(PROJECTIONS[view], feed_events([*self._history, *later]), {}).rows
        with self._read_side.engine.begin() as connection:
            upsert(
                connection,
                VIEWS[view],
                [(uuid.UUID(bytes=it), row.position, *row.columns, row.value) for it, row in rows.items() if row],
            )


@pytest.mark.parametrize("another_feed", [False, True])
def test_what_was_found_before_the_views_were_emptied_is_never_used_after_it(
    shelf: Shelf, read_side: ReadSide, opened: OpenSearcher, *, another_feed: bool
) -> None:
    shelf.add("Oak Lamp")
    shelf.add("Brass Lamp")
    asked = opened(read_side)
    assert len(asked("lamp").hits) == 2
    assert asked("lmap").corrected_query == "lamp"
    before = read_side.position
    if another_feed:
        read_side.feed = uuid.uuid4()
    with read_side.engine.begin() as connection:
        connection.execute(text(f"TRUNCATE {', '.join(it.fullname for it in VIEWS.values())}"))
        connection.execute(
            text("UPDATE tandem_read.projection SET position = 0, feed_epoch = :epoch"), {"epoch": read_side.feed}
        )
    empty = asked("lamp")
    assert (len(empty.hits), empty.as_of) == (0, read_side.token(0))
    assert asked("lmap").corrected_query == ""

    # The positions are those of before, and what they stand for is not: a newer projector, or another history.
    read_side.position = 0
    again = Shelf(read_side)
    again.add("Glass Lamp")
    read_side.position = before
    read_side.write_positions()
    for _ in range(2):
        found = asked("lamp")
        assert (names(found), found.as_of) == (["Glass Lamp"], read_side.token(before))


def test_databases_in_turns_get_each_its_own_answer(
    shelf: Shelf, read_side: ReadSide, opened: OpenSearcher, databases: Databases
) -> None:
    """As replicas behind one name, of which one lags: at the same position of the same feed, for the worst."""
    url = databases.create("read")
    other = ReadSide(url)
    other.feed, other.position = read_side.feed, read_side.position
    other.write_positions()
    shelf.add("Oak Lamp")
    Shelf(other).add("Glass Lamp")
    assert other.position == read_side.position
    memory = SearchMemory(2**20)
    one, two = opened(read_side, memory), opened(other, memory)
    for _ in range(3):
        assert (names(one("lamp")), names(two("lamp"))) == (["Oak Lamp"], ["Glass Lamp"])
    other.engine.dispose()
    one.close()
    two.close()
    databases.drop(url)


def test_more_than_is_remembered_is_searched_for_each_time(
    shelf: Shelf, read_side: ReadSide, opened: OpenSearcher
) -> None:
    shelf.add("Lamp")
    copy = """
        INSERT INTO tandem_read.{view} (key, value, {columns}) SELECT id, {value}, {columns}
        FROM {one}, generate_series(CAST(:first AS bigint), CAST(:last AS bigint)) AS n,
          CAST(lpad(to_hex(n), 32, '0') AS uuid) AS id"""
    columns = {
        "product_search": "position, category, discontinued, added_position, name_words, category_words,"
        " attribute_words, description_words",
        "product_card": "position, price, currency_code, available",
    }
    # A card has its id in it.
    own_id = (
        "overlay(value PLACING convert_to(id::text, 'UTF8') FROM position(convert_to(one.key::text, 'UTF8') IN value))"
    )
    values = {"product_search": "value", "product_card": own_id}

    def add(first: int, last: int) -> None:
        with read_side.engine.begin() as connection:
            for view, its in columns.items():
                one = f"(SELECT * FROM tandem_read.{view} WHERE key = '{identity('product', 1)}') AS one"
                statement = copy.format(view=view, value=values[view], columns=its, one=one)
                connection.execute(text(statement), {"first": first, "last": last})

    add(2, MOST_REMEMBERED)
    asked = opened(read_side)
    asked("lamp")
    asked("lamp")
    assert asked.full == 1, "as many as are remembered"
    add(MOST_REMEMBERED + 1, MOST_REMEMBERED + 1)
    asked("lamp")
    asked("lamp")
    assert asked.full == 3
