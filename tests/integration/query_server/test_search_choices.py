"""What a search's page lets people choose: attributes, steps of price, orders; other words, and why a hit is where it
is.
"""

from typing import Any

import pytest

from commerce.query.v1.query_service_pb2 import (
    AttributeFilter,
    ExplainSearchResponse,
    ProductFilter,
    ProductSort,
    SearchBoost,
    SearchProductsRequest,
    SearchProductsResponse,
)
from query_server.search.request import search_key
from query_server.search.synonyms import parse
from tandem.queries.checker import QueryChecker
from tandem.runtime.errors import InvalidArgument
from tandem.runtime.field_checks import field_checks
from tests.integration.query_server.conftest import OpenSearcher, ReadSide
from tests.support import events
from tests.support.builders import euros, usd
from tests.support.searching import Searcher, Shelf

SHIRTS = {"Tshirt, red", "T-Shirt, blue", "T Shirt, green"}


def names(response: SearchProductsResponse) -> list[str]:
    return [it.product.name for it in response.hits]


def counts(response: SearchProductsResponse) -> dict[str, dict[str, int]]:
    return {it.name: {value.value: value.count for value in it.values} for it in response.facets.attributes}


def filtered(**attributes: str | list[str]) -> ProductFilter:
    return ProductFilter(
        attributes=[
            AttributeFilter(name=name, values=[values] if isinstance(values, str) else values)
            for name, values in attributes.items()
        ]
    )


@pytest.fixture
def lamps(shelf: Shelf, read_side: ReadSide, opened: OpenSearcher) -> Searcher:
    for name, price, colour, size in (
        ("Lamp A", usd(150), "red", "S"),
        ("Lamp B", usd(2_000), "red", "M"),
        ("Lamp C", usd(4_999), "blue", "M"),
        ("Lamp D", euros(5_000), "blue", "L"),
        ("Lamp E", usd(0), "gre\u0301en", "S"),
    ):
        shelf.add(name, price=price, category="Home", Colour=colour, Size=size)
    shelf.add("Chair", Colour="red")
    return opened(read_side)


def test_attributes_are_counted_without_their_own_filter(lamps: Searcher) -> None:
    """Those of others count: who chose red sees how many blue ones there are, and the sizes of the red ones alone."""
    for _remembered in range(2):
        found = lamps("lamp", detailed_facets=True)
        assert counts(found) == {"Colour": {"blue": 2, "red": 2, "gréen": 1}, "Size": {"M": 2, "S": 2, "L": 1}}
        found = lamps("lamp", detailed_facets=True, filter=filtered(Colour="red"))
        assert set(names(found)) == {"Lamp A", "Lamp B"}
        assert found.facets.total_count == found.facets.in_stock_count == 2
        assert [(it.category, it.count) for it in found.facets.categories] == [("Home", 2)]
        assert counts(found) == {"Colour": {"blue": 2, "red": 2, "gréen": 1}, "Size": {"M": 1, "S": 1}}
        found = lamps("lamp", detailed_facets=True, filter=filtered(Colour=["red", "blue"], Size="M"))
        assert set(names(found)) == {"Lamp B", "Lamp C"}
        assert counts(found) == {"Colour": {"blue": 1, "red": 1}, "Size": {"M": 2, "L": 1, "S": 1}}
        found = lamps("lamp", filter=filtered(Colour="gr\u00e9en"))
        assert names(found) == ["Lamp E"], "however é is written"
        assert counts(found) == {}, "who does not ask for them has none"
        assert names(lamps("lamp", filter=filtered(Colour="red", Weight="1"))) == []


def test_prices_are_counted_by_steps_that_a_filter_takes_as_they_are(lamps: Searcher) -> None:
    found = lamps("lamp", detailed_facets=True)
    euro, dollar = found.facets.prices
    steps = [(it.lowest.minor_units, it.highest.minor_units, it.count) for it in dollar.steps]
    assert steps == [(0, 0, 1), (100, 199, 1), (2_000, 4_999, 2)]
    assert [(it.lowest.currency_code, it.lowest.minor_units) for it in euro.steps] == [("EUR", 5_000)]
    for it in dollar.steps:
        chosen = lamps("lamp", filter=ProductFilter(min_price=it.lowest, max_price=it.highest), detailed_facets=True)
        assert chosen.facets.total_count == it.count
        assert chosen.facets.prices == found.facets.prices, "without their own filter"
    assert not any(it.steps for it in lamps("lamp").facets.prices)


def test_filters_by_attributes_are_checked() -> None:
    def wrong(*attributes: AttributeFilter) -> set[tuple[str, str]]:
        check = QueryChecker(2.0)
        request = SearchProductsRequest(filter=ProductFilter(attributes=attributes))
        field_checks(request.DESCRIPTOR).check(request, check)
        search_key(request, check)
        with pytest.raises(InvalidArgument) as refused:
            check.finish()
        return {(it.subject, it.kind) for it in refused.value.violations}

    assert wrong(AttributeFilter()) == {
        ("filter.attributes[0].name", "REQUIRED"),
        ("filter.attributes[0].values", "OUT_OF_RANGE"),
    }
    red = AttributeFilter(name="é", values=["red"])
    assert wrong(red, AttributeFilter(name="e\u0301", values=["blue"])) == {("filter.attributes[1].name", "DUPLICATE")}


def test_what_was_sold_most_comes_first_whatever_was_cancelled(
    shelf: Shelf, read_side: ReadSide, opened: OpenSearcher
) -> None:
    for name in ("Lamp A", "Lamp B", "Lamp C"):
        shelf.add(name, stock=50)
    search = opened(read_side)
    shelf.happen(events.order_placed(1, lines=[(2, 3), (3, 5)]), events.order_placed(2, lines=[(3, 1), (3, 1)]))
    for _remembered in range(2):
        found = search("lamp", sort=ProductSort.PRODUCT_SORT_SALES)
        assert [(it.product.name, it.product.units_sold) for it in found.hits] == [
            ("Lamp C", 7), ("Lamp B", 3), ("Lamp A", 0),
        ]  # fmt: skip
    shelf.happen(events.order_cancelled(1, lines=[(2, 3), (3, 5)]))
    sold, rest = search("lamp", sort=ProductSort.PRODUCT_SORT_SALES, page_size=1), []
    while sold.next_page_token:
        rest += names(sold)
        sold = search("lamp", sort=ProductSort.PRODUCT_SORT_SALES, page_size=1, page_token=sold.next_page_token)
    assert rest + names(sold) == ["Lamp C", "Lamp A", "Lamp B"], "of equal ones by their ids"


@pytest.fixture
def with_synonyms(shelf: Shelf, read_side: ReadSide, opened: OpenSearcher) -> Searcher:
    others = ("Saint Bernard Mug", "St Bernard Bowl", "Cellphone Case", "Mobile Phone Stand", "Sneakers", "Trainers")
    for name in (*others, *SHIRTS):
        shelf.add(name)
    synonyms = parse("st, saint\nmobile phone, cellphone\ntrainers => sneakers")
    return opened(read_side, synonyms=synonyms)


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("st bernard", {"Saint Bernard Mug", "St Bernard Bowl"}),
        ("bernard SAINT", {"Saint Bernard Mug", "St Bernard Bowl"}),
        ("mobile phones", {"Mobile Phone Stand"}),
        ("mobile phone", {"Mobile Phone Stand", "Cellphone Case"}),
        ("cellphone stand", {"Mobile Phone Stand"}),
        ("trainers", {"Trainers", "Sneakers"}),
        ("sneakers", {"Sneakers"}),
        *(
            (it, {"Tshirt, red", "T-Shirt, blue", "T Shirt, green"})
            for it in ("t-shirt", "Tshirt", "T shirt", "tshirts")
        ),
    ],
)
def test_words_find_what_others_find_that_stand_for_them(with_synonyms: Searcher, query: str, found: set[str]) -> None:
    for _remembered in range(2):
        assert set(names(with_synonyms(query))) == found


def test_what_a_synonym_finds_is_marked(with_synonyms: Searcher) -> None:
    marked = [it.highlighted_name for it in with_synonyms("st bernard").hits]
    assert sorted(marked) == ["<em>Saint</em> <em>Bernard</em> Mug", "<em>St</em> <em>Bernard</em> Bowl"]


def test_a_word_that_may_be_a_slip_is_offered_and_not_searched_for(
    shelf: Shelf, read_side: ReadSide, opened: OpenSearcher
) -> None:
    for name in ("Beer Glass", "Beer Mug", "Teddy Bear", "Teas", "Glass", "Glass, blue"):
        shelf.add(name)
    search = opened(read_side)
    for _remembered in range(2):
        found = search("bear glass")
        assert (names(found), found.did_you_mean, found.corrected_query) == ([], "beer glass", "")
        assert len(search(found.did_you_mean).hits) == 1
        found = search("beeer mug")
        assert (names(found), found.did_you_mean, found.corrected_query) == (["Beer Mug"], "", "beer mug")
        assert search("glass").did_you_mean == "", "enough is found"
        assert search("tea").did_you_mean == "", "teas are another form of it"


def parts(explained: ExplainSearchResponse, number: int) -> dict[str, int]:
    return {SearchBoost.Name(it.boost): it.score for it in explained.hits[number].parts}


def test_it_is_explained_why_a_hit_stands_where_it_does(
    shelf: Shelf, read_side: ReadSide, opened: OpenSearcher
) -> None:
    for name, fields in (("Oak Chair", {}), ("Oak Chairs, sold out", {"stock": 0}), ("Lamp", {"Foot": "oak chair"})):
        shelf.add(name, **fields)
    search = opened(read_side, synonyms=parse("chair, seat"))
    explained = search.explain("oak chair")
    assert [it.name for it in explained.hits] == names(search("oak chair"))
    assert [it.score for it in explained.hits] == sorted((it.score for it in explained.hits), reverse=True)
    assert [it.score for it in explained.hits] == [sum(part.score for part in it.parts) for it in explained.hits]
    assert parts(explained, 0)["SEARCH_BOOST_IN_STOCK"] == 1
    assert parts(explained, 0)["SEARCH_BOOST_NAME"] > parts(explained, 2)["SEARCH_BOOST_NAME"]
    assert [it.word for it in explained.words] == ["oak", "chair"]
    assert [(it.words, list(it.synonyms)) for it in explained.synonyms] == [("chair", ["seat"])]
    assert explained.as_of
    [_, taken] = search.explain("oak chiar").words
    assert list(taken.taken_for)[:1] == ["chair"]
    as_written = parts(search.explain("oak chiar"), 0)["SEARCH_BOOST_AS_WRITTEN"]
    assert as_written == 0, "no product has what was written"


@pytest.mark.parametrize("sort", [it for it in ProductSort.values() if it > ProductSort.PRODUCT_SORT_RELEVANCE])
def test_it_is_explained_what_a_search_is_sorted_by(lamps: Searcher, sort: Any) -> None:
    explained = lamps.explain(sort=sort, page_size=3)
    assert [it.name for it in explained.hits] == names(lamps(sort=sort, page_size=3))
    by = [it.sorted_by for it in explained.hits]
    assert by == sorted(by, reverse=True)
