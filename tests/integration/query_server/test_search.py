"""SearchProducts over gRPC: what is found, how it is counted, sorted, paged and shown, and what is refused."""

import unicodedata
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc import aio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr
from sqlalchemy import text

from commerce.query.v1.query_service_pb2 import ProductFilter, ProductSort, SearchProductsRequest
from commerce.query.v1.query_service_pb2 import SearchProductsResponse as Response
from commerce.type.v1.consistency_pb2 import Consistency
from query_server.search.memory import SearchMemory
from query_server.search.query import SearchQuery
from query_server.search.request import search_key
from query_server.search.statements import SESSION
from tandem.queries.checker import QueryChecker
from tandem.queries.encoding import room_for_rows
from tandem.queries.store import Store
from tandem.runtime.errors import InvalidArgument
from tandem.runtime.settings import DatabaseSettings
from tests.integration.query_server.conftest import ReadSide, Serve, detail, reason
from tests.support import events
from tests.support.builders import euros, identity, usd
from tests.support.searching import Shelf, answered

if TYPE_CHECKING:
    # The stubs alone know it.
    from commerce.query.v1.query_service_pb2_grpc import QueryServiceAsyncStub

Sort = ProductSort


@pytest.fixture
def transport() -> str:
    """The transports are the other suites' affair."""
    return "native"


async def search(stub: "QueryServiceAsyncStub", query: str = "", **fields: Any) -> Response:
    return await stub.SearchProducts(SearchProductsRequest(query=query, **fields), timeout=10)


def names(response: Response) -> list[str]:
    return [hit.product.name for hit in response.hits]


async def test_words_are_found_in_name_category_attributes_and_description_in_this_order(
    shelf: Shelf, serve: Serve
) -> None:
    shelf.add("Iron Kettle", description="Boils water for a pot of Assam.")
    shelf.add("Brown Bags", Origin="Assam")
    shelf.add("Morning Blend", category="Assam")
    shelf.add("Assam Gold")
    shelf.add("Green Tea")
    stub = await serve()
    assert names(await search(stub, "assam")) == ["Assam Gold", "Morning Blend", "Brown Bags", "Iron Kettle"]
    assert names(await search(stub, "ass bags")) == ["Brown Bags"]
    assert names(await search(stub, "assam nothing")) == []


@pytest.mark.parametrize(
    "query",
    [
        "creme brulee",
        "CRÈME",
        "crème brûlée",
        "cre\u0300me bru\u0302le\u0301e",
        "brul",
        "brûlees",
        "cremes",
        "brulée creme",
        "creme-brulee!",
    ],
)
async def test_case_accents_punctuation_and_endings_make_no_difference(shelf: Shelf, serve: Serve, query: str) -> None:
    shelf.add("Crepe Pan")
    # As some systems type it: the accents behind their letters.
    shelf.add("Cre\u0300me Bru\u0302le\u0301e")
    shelf.add("Crème Brûlée")
    first_two = names(await search(await serve(), query))[:2]
    assert [unicodedata.normalize("NFC", it) for it in first_two] == ["Crème Brûlée"] * 2


async def test_a_misspelled_word_finds_what_it_probably_means_and_says_so(shelf: Shelf, serve: Serve) -> None:
    for name in ("Gorgonzola Telino", "Mozzarella", "Gouda", "Goblet"):
        shelf.add(name)
    stub = await serve()
    found = await search(stub, "gorgonzla telino")
    assert (names(found), found.corrected_query) == (["Gorgonzola Telino"], "gorgonzola telino")
    assert found.hits[0].highlighted_name == "<em>Gorgonzola</em> <em>Telino</em>"
    assert names(await search(stub, "mozarela"))[0] == "Mozzarella"
    assert (await search(stub, "gouda")).corrected_query == ""
    assert names(await search(stub, "zzzzqqqq")) == []


async def test_swapped_letters_are_one_mistake_in_short_words_too(shelf: Shelf, serve: Serve) -> None:
    for name in ("Gravy Boat", "Gravy Bolt", "Gravy Coat", "Gravy Bath", "Beach Towel"):
        shelf.add(name)
    found = await search(await serve(), "gravy baot")
    assert (names(found)[0], found.corrected_query) == ("Gravy Boat", "gravy boat")


async def test_what_is_found_as_it_is_written_comes_before_what_is_only_spelled_like_it(
    shelf: Shelf, serve: Serve
) -> None:
    shelf.add("Jug", description="With a silver ladle.")
    for number in range(5):
        shelf.add(f"Cradle {number}")
    shelf.add("Laddle")
    # No name has the word, so it is taken for others too, and the one description that has it comes first.
    found = names(await search(await serve(), "ladle"))
    assert found[0] == "Jug"
    assert "Laddle" in found


async def test_what_is_found_is_marked_and_the_rest_escaped(shelf: Shelf, serve: Serve) -> None:
    text = "Words before. " * 30 + "A <b>teapot</b> for Crème & more. " + "Words after. " * 30
    shelf.add("Teapot <Crème> & Co", description=text)
    [hit] = (await search(await serve(), "creme teapot")).hits
    assert hit.highlighted_name == "<em>Teapot</em> &lt;<em>Crème</em>&gt; &amp; Co"
    assert "&lt;b&gt;<em>teapot</em>&lt;/b&gt; for <em>Crème</em> &amp; more." in hit.highlighted_description
    assert hit.highlighted_description.startswith("… ")
    assert hit.highlighted_description.endswith(" …")
    assert len(hit.highlighted_description) < 300


async def test_filters_narrow_and_each_count_leaves_its_own_filter_aside(shelf: Shelf, serve: Serve) -> None:
    shelf.add("Green Tea", category="Tea/Green", price=usd(500))
    shelf.add("Black Tea", category="Tea", price=usd(700), stock=0)
    shelf.add("White Tea", category="Tea", price=usd(900))
    shelf.add("Teapot", category="Kitchen", price=usd(3000))
    shelf.add("Tea Tray", category="Kitchen", price=euros(2500))
    shelf.add("Old Tea", category="Tea", price=usd(100))
    shelf.happen(events.product_discontinued(shelf.number("Old Tea")))
    stub = await serve()

    everything = await search(stub, "tea")
    assert (everything.facets.total_count, everything.facets.in_stock_count) == (5, 4)
    counts = {it.category: it.count for it in everything.facets.categories}
    assert counts == {"Tea": 2, "Kitchen": 2, "Tea/Green": 1}
    assert [(it.lowest, it.highest) for it in everything.facets.prices] == [
        (euros(2500), euros(2500)),
        (usd(500), usd(3000)),
    ]
    narrow = ProductFilter(categories=["Tea", "Tea/Green"], min_price=usd(500), max_price=usd(700), in_stock=True)
    found = await search(stub, "tea", filter=narrow)
    assert names(found) == ["Green Tea"]
    assert {it.category: it.count for it in found.facets.categories} == {"Tea/Green": 1}
    assert found.facets.in_stock_count == 1
    assert [(it.lowest, it.highest) for it in found.facets.prices] == [(usd(500), usd(900))]
    assert names(await search(stub, "tea", filter=ProductFilter(max_price=euros(9999)))) == ["Tea Tray"]
    assert "Old Tea" in names(await search(stub, "tea", filter=ProductFilter(include_discontinued=True)))


async def test_products_come_in_the_order_that_is_asked_for_over_all_pages(shelf: Shelf, serve: Serve) -> None:
    prices = [700, 300, 900, 300, 500, 100, 800]
    for number, price in enumerate(prices):
        shelf.add(f"Cup {number}", price=usd(price))
    stub = await serve()

    async def pages(sort: ProductSort.ValueType, query: str = "cup") -> list[str]:
        found, token = [], ""
        while True:
            page = await search(stub, query, sort=sort, page_size=2, page_token=token)
            assert page.facets.total_count == len(prices)
            found += names(page)
            token = page.next_page_token
            if not token:
                return found

    newest = [f"Cup {number}" for number in reversed(range(len(prices)))]
    assert await pages(Sort.PRODUCT_SORT_NEWEST) == newest
    assert await pages(Sort.PRODUCT_SORT_UNSPECIFIED, "") == newest
    for sort, sign in ((Sort.PRODUCT_SORT_PRICE_ASC, 1), (Sort.PRODUCT_SORT_PRICE_DESC, -1)):
        found = await pages(sort)
        assert [prices[int(it[4:])] for it in found] == sorted(prices, key=lambda price: sign * price)
        assert len(set(found)) == len(prices)
    assert sorted(await pages(Sort.PRODUCT_SORT_RELEVANCE)) == sorted(newest)


@pytest.mark.parametrize(
    "sort",
    [Sort.PRODUCT_SORT_RELEVANCE, Sort.PRODUCT_SORT_PRICE_ASC, Sort.PRODUCT_SORT_PRICE_DESC, Sort.PRODUCT_SORT_NEWEST],
)
async def test_pages_skip_and_repeat_nothing_that_stays_as_it_is(
    shelf: Shelf, serve: Serve, sort: ProductSort.ValueType
) -> None:
    lamps = [f"Lamp {number}" for number in range(8)]
    for number, name in enumerate(lamps):
        shelf.add(name, price=usd(1000 + number))
    stub = await serve()
    # Misspelled, and what it was taken for stays the same on all pages, whatever words come meanwhile.
    first = await search(stub, "lmap", sort=sort, page_size=4)
    assert first.corrected_query == "lamp"
    gone = names(first)[1]
    sold = next(it for it in lamps if it not in names(first))
    shelf.happen(
        events.product_revised(shelf.number(gone), name="Another thing"),
        events.stock_adjusted(shelf.number(sold), delta=-5),
    )
    for name, price in (("Lamp cheap", 1), ("Lamp dear", 90_000), ("Lmap", 1003)):
        shelf.add(name, price=usd(price))
    rest: list[str] = []
    token = first.next_page_token
    while token:
        page = await search(stub, "lmap", sort=sort, page_size=2, page_token=token)
        rest += names(page)
        token = page.next_page_token
    found = names(first) + rest
    assert len(found) == len(set(found))
    assert set(found) >= set(lamps)


async def test_a_search_sees_what_its_token_stands_for_in_both_views(
    shelf: Shelf, serve: Serve, read_side: ReadSide
) -> None:
    shelf.add("Lantern", stock=1)
    stub = await serve()
    token = shelf.happen(events.order_placed(lines=[(1, 1)]))
    found = await search(
        stub,
        "lantern",
        filter=ProductFilter(in_stock=True),
        consistency=Consistency(at_least_as_fresh=token),
    )
    assert names(found) == []
    assert found.as_of == token
    early = Consistency(at_least_as_fresh=read_side.token(read_side.position + 5))
    early.max_wait.FromMilliseconds(50)
    with pytest.raises(aio.AioRpcError) as caught:
        await search(stub, "lantern", consistency=early)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


async def test_a_misspelled_search_is_as_old_as_the_words_that_it_was_corrected_by(
    shelf: Shelf, serve: Serve, read_side: ReadSide
) -> None:
    shelf.add("Lantern")
    stub = await serve()
    token = read_side.token(read_side.position)
    behind = text("UPDATE tandem_read.projection SET position = position - 1 WHERE view = 'search_word'")
    with read_side.engine.begin() as connection:
        connection.execute(behind)
    assert (await search(stub, "lantern lantern lantern")).as_of == read_side.token(read_side.position - 1)
    fresh = Consistency(at_least_as_fresh=token)
    fresh.max_wait.FromMilliseconds(50)
    with pytest.raises(aio.AioRpcError) as caught:
        await search(stub, "lnatern", consistency=fresh)
    assert reason(caught.value) == "PROJECTION_LAG"


async def test_every_wrong_field_is_named(shelf: Shelf, serve: Serve) -> None:
    async def violations(**fields: Any) -> dict[str, str]:
        with pytest.raises(aio.AioRpcError) as caught:
            await search(stub, **fields)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        found = detail(caught.value, error_details_pb2.BadRequest).field_violations
        return {it.field: it.reason for it in found}

    shelf.add("Lamp 1")
    shelf.add("Lamp 2")
    stub = await serve()
    wrong = ProductFilter(categories=["x" * 101, "a\0"], min_price=usd(-1), max_price=euros(1))
    wrong.min_price.currency_code = ""
    assert await violations(query="x" * 201, filter=wrong, sort=9, page_size=101, page_token="x") == {
        "query": "TOO_LONG",
        "filter.categories[0]": "TOO_LONG",
        "filter.categories[1]": "MALFORMED",
        "filter.min_price.minor_units": "OUT_OF_RANGE",
        "filter.min_price.currency_code": "REQUIRED",
        "filter.max_price.currency_code": "INVALID",
        "sort": "MALFORMED",
        "page_size": "OUT_OF_RANGE",
        "page_token": "MALFORMED",
    }
    crossed = ProductFilter(min_price=usd(2), max_price=usd(1))
    assert await violations(filter=crossed) == {"filter.max_price.minor_units": "OUT_OF_RANGE"}
    many = ProductFilter(categories=[str(number) for number in range(51)])
    assert await violations(filter=many) == {"filter.categories": "OUT_OF_RANGE"}
    token = (await search(stub, "lamp", page_size=1)).next_page_token
    for other in ({"query": "lamps"}, {"query": "lamp", "filter": ProductFilter(in_stock=True)}):
        assert await violations(page_token=token, **other) == {"page_token": "MALFORMED"}


@pytest.fixture
def searches(read_side: ReadSide, shelf: Shelf, fresh_database: Callable[[], str]) -> Iterator[SearchQuery]:
    for name in ("Crème Brûlée", "A & B | C", "100% Cotton", "O'Neill \\ Sons"):
        shelf.add(name, category="It's", Size="10:30")
    url = read_side.engine.url.render_as_string(hide_password=False).replace("+psycopg", "")
    database = Store(DatabaseSettings(url=SecretStr(url)), connections=1, session=SESSION)
    yield SearchQuery(database, database, SearchMemory(2**20), room_for_rows(4 * 2**20))
    database.close()


HOSTILE = [
    "&",
    "|",
    "!",
    ":*",
    "'",
    "\\",
    "(",
    ")",
    "<->",
    "%",
    "_",
    "a:b",
    "';--",
    "NULL",
    "$1",
    ":w0",
    "\u0130",
    "ﬁ",
    "e\u0301",
]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(query=st.one_of(st.text(max_size=200), st.lists(st.sampled_from([*HOSTILE, "tea", "creme"])).map(" ".join)))
def test_any_text_is_searched_for_or_refused_and_nothing_breaks(searches: SearchQuery, query: str) -> None:
    try:
        [answer] = answered(searches, SearchProductsRequest(query=query))
    except InvalidArgument:
        return
    response = Response.FromString(answer)
    assert len(response.hits) == min(20, response.facets.total_count)


def test_a_search_is_bound_to_its_words_and_not_to_how_they_are_spaced() -> None:
    def key(query: str) -> Any:
        return search_key(SearchProductsRequest(query=query), QueryChecker(2.0)).query

    assert key(" green   tea ") == key("green tea")
    assert key("green tea") != key("greentea")


async def test_a_damaged_card_fails_the_searches_that_show_it_alone(
    shelf: Shelf, read_side: ReadSide, serve: Serve
) -> None:
    shelf.add("Iron Kettle")
    shelf.add("Green Tea")
    stub = await serve()
    for remembered in (False, True):
        assert names(await search(stub, "kettle")) == ["Iron Kettle"]
        with read_side.engine.begin() as connection:
            connection.execute(
                text("UPDATE tandem_read.product_card SET value = '\\xff' WHERE key = :key"),
                {"key": identity("product", shelf.number("Iron Kettle"))},
            )
        with pytest.raises(aio.AioRpcError) as damaged:
            await search(stub, "kettle")
        assert reason(damaged.value) == "ROW_DAMAGED", remembered
        assert names(await search(stub, "tea")) == ["Green Tea"]
        shelf.happen()


async def test_of_equal_products_those_in_stock_come_first(shelf: Shelf, serve: Serve) -> None:
    for number in range(6):
        shelf.add(f"Lamp {number}", stock=number % 2)
    stub = await serve()
    for _remembered in range(2):
        first = await search(stub, "lamp", page_size=4)
        rest = await search(stub, "lamp", page_size=4, page_token=first.next_page_token)
        assert [it.product.available for it in (*first.hits, *rest.hits)] == [1, 1, 1, 0, 0, 0]
    shelf.happen(events.order_placed(lines=[(2, 1)]), events.order_placed(lines=[(4, 1)]))
    assert [it.product.available for it in (await search(stub, "lamp", page_size=2)).hits] == [1, 0]


async def test_categories_that_look_alike_are_one(shelf: Shelf, serve: Serve) -> None:
    shelf.add("Lamp", category="B\u00fcro")
    shelf.add("Chair", category="Bu\u0308ro")
    stub = await serve()
    [facet] = (await search(stub)).facets.categories
    assert (facet.category, facet.count) == ("B\u00fcro", 2)
    for spelling in ("B\u00fcro", "Bu\u0308ro"):
        found = await search(stub, filter=ProductFilter(categories=[spelling]))
        assert [it.product.category for it in found.hits] == ["Bu\u0308ro", "B\u00fcro"]
