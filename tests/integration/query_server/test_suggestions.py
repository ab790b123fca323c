"""SuggestProducts: what is suggested while somebody types, in which order, and for how long it is remembered."""

import unicodedata
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from commerce.query.v1.query_service_pb2 import SuggestProductsResponse as Response
from query_server.search.suggestions import MOST_LOOKED_AT
from query_server.search.synonyms import Synonyms, parse
from shop.words import words_of
from tests.integration.query_server.conftest import ReadSide
from tests.support import events
from tests.support.searching import Shelf, Suggester

NAMES = (
    "Large Green Flower Pot",
    "Green Tea",
    "Crème Brûlée Torch",
    "ΚΑΦΕΣ φίλτρου",
    "Липо́вый мёд",
    "有机绿茶礼盒",
    "ชาเขียวมัทฉะ",
    "شاي أخضر",
    "T Shirt, white",
    "QX.0815-42/B",
)


@pytest.fixture
def suggester(read_side: ReadSide) -> Iterator[Callable[..., Suggester]]:
    opened: list[Suggester] = []

    def start(synonyms: Synonyms | None = None) -> Suggester:
        opened.append(Suggester(read_side.settings, *([synonyms] if synonyms else [])))
        return opened[-1]

    yield start
    for it in opened:
        it.close()


def names(response: Response) -> list[str]:
    return [it.name for it in response.products]


def test_names_that_begin_so_come_first_then_those_that_have_the_words_further_on(
    shelf: Shelf, suggester: Callable[..., Suggester]
) -> None:
    for name in ("Large Flower Pot", "Flower Vase", "Flower Bulbs", "Tea", "Flour", "Flower, no longer sold"):
        shelf.add(name, category="Garden")
    shelf.add("Spade", description="For flowers")
    shelf.happen(events.product_discontinued(shelf.number("Flower, no longer sold")))
    suggest = suggester()
    found = suggest("FLO")
    assert names(found) == ["Flour", "Flower Bulbs", "Flower Vase", "Large Flower Pot"]
    assert list(found.completed_queries) == ["flower", "flour"]
    assert (found.products[1].highlighted_name, found.products[1].category) == ("<em>Flower</em> Bulbs", "Garden")
    assert names(suggest("FLO", 2)) == ["Flour", "Flower Bulbs"]
    assert list(suggest("  Large   flo").completed_queries) == ["Large flower"]
    assert names(suggest("pot la")) == ["Large Flower Pot"]
    assert list(suggest("pot-la").completed_queries) == ["pot-large"]
    for nothing in ("", " ", "++", "flo x", "\u200b"):
        found = suggest(nothing)
        assert (names(found), list(found.completed_queries)) == ([], [])
        assert found.as_of


def test_what_many_names_have_is_looked_for_in_a_bounded_number_of_them(
    shelf: Shelf, suggester: Callable[..., Suggester]
) -> None:
    shelf.happen(*(events.product_added(number) for number in range(1, MOST_LOOKED_AT + 50)))
    for number, query in enumerate(("1", "product", "p", "product 14")):
        found = suggester()(query, 20)
        assert len(found.products) == (20, 20, 20, 11)[number], query


@pytest.fixture
def full(shelf: Shelf, suggester: Callable[..., Suggester]) -> Suggester:
    for name in NAMES:
        shelf.add(name)
    return suggester(parse("tee, t shirt"))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_beginning_of_any_word_of_a_name_suggests_it(full: Suggester, data: st.DataObject) -> None:
    """In every case and normal form; with blanks before it, and behind words of the name that are whole."""
    name = data.draw(st.sampled_from(NAMES))
    typed = data.draw(st.sampled_from([unicodedata.normalize(it, name) for it in ("NFC", "NFD", "NFKC", "NFKD")]))
    typed = data.draw(st.sampled_from([typed, typed.upper(), typed.lower(), typed.casefold(), typed.title()]))
    words = typed.split()
    last = data.draw(st.integers(0, len(words) - 1))
    end = data.draw(st.integers(1, len(words[last])))
    before = data.draw(st.lists(st.sampled_from(words[:last]), unique=True, max_size=3)) if last else []
    query = data.draw(st.sampled_from(["", " ", "\u3000"])) + " ".join([*before, words[last][:end]])
    if words_of(words[last][:end]):
        assert name in names(full(query)), query


def test_words_are_suggested_by_others_that_stand_for_them(full: Suggester) -> None:
    for query in ("tee", "tshirt", "t-shirt", "T shi", "t shirt", "tsh"):
        assert names(full(query)) == ["T Shirt, white"], query


def test_what_a_text_suggests_is_remembered_until_a_text_changes(
    shelf: Shelf, read_side: ReadSide, suggester: Callable[..., Suggester]
) -> None:
    shelf.add("Green Tea")
    suggest = suggester()
    first = suggest("tea")
    shelf.happen(events.order_placed(lines=[(1, 2)]))
    before = suggest.statements
    assert names(suggest("tea")) == ["Green Tea"]
    assert suggest("tea").as_of != first.as_of, "it shows the state of now"
    assert suggest.statements == before + 2, "which looks at the position alone"
    shelf.add("Tea Pot")
    assert names(suggest("tea")) == ["Tea Pot", "Green Tea"]
    with read_side.engine.begin() as connection:
        connection.execute(text("UPDATE tandem_read.product_search SET discontinued = true"))
    assert names(suggest("tea")) == [], "whoever changed it"


def test_rows_that_are_parked_are_counted(
    shelf: Shelf, read_side: ReadSide, suggester: Callable[..., Suggester]
) -> None:
    shelf.add("Green Tea")
    suggest = suggester()
    assert suggest("tea").parked_rows == 0
    position = read_side.park("product_search", "00000000-0000-4000-8000-000000000001")
    for _remembered in range(2):
        found = suggest("tea")
        assert (names(found), found.parked_rows, found.parked_since) == (["Green Tea"], 1, position)
