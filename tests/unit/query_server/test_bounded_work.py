"""What a legal request costs is bounded by its size, whatever its letters are: counted, not timed."""

import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shop.words
from commerce.query.v1.query_service_pb2 import ProductFilter, SearchProductsRequest
from projector.product_search import MAX_CORRECTABLE, PRODUCT_SEARCH, SEARCH_WORD
from query_server.search import request as search_request
from query_server.search.highlight import _marker, highlight, snippet
from query_server.search.request import search_key
from shop.words import MAX_LETTERS, MAX_WORD, is_mark, normalized, words_of
from tandem.queries.checker import QueryChecker
from tandem.runtime.errors import InvalidArgument
from tandem.runtime.field_checks import field_checks, rule_of
from tests.support import events
from tests.support.events import feed_events
from tests.support.projecting import fold

MAX_QUERY = rule_of(SearchProductsRequest.DESCRIPTOR.fields_by_name["query"]).max_length

# The letters that texts are crafted of: marks in an order that is to be reversed, what becomes many letters, a letter
# that many begin with, one that is another in lower case, and what separates words.
CRAFTED = st.sampled_from(
    [
        "\u0301\u0323",
        "\u0316\u0301",
        "\uff9e",
        "\U0001e944\U0001d16d",
        "\ufdfa",
        "\u3300",
        "\ufb01",
        "a",
        "ab",
        "İ",
        " ",
        "<",
    ]
)


def crafted(most: int) -> st.SearchStrategy[str]:
    """Few pieces that are repeated: what makes a text dear is that it is long and the same."""
    parts = st.tuples(st.lists(CRAFTED, min_size=1, max_size=4).map("".join), st.integers(1, most))
    return st.lists(parts, min_size=1, max_size=3).map(lambda it: "".join(part * count for part, count in it)[:most])


MARKS = frozenset(it for it in map(chr, range(0x300, 0x20000)) if is_mark(it))


class Normalizing:
    """Counts what unicodedata.normalize is given. It sorts marks in a time that is the square of their number."""

    def __init__(self) -> None:
        self.operations = 0

    def __call__(self, form: Any, text: str) -> str:
        run = 0
        for character in text:
            run = run + 1 if character in MARKS else 0
            self.operations += 1 + run
        return unicodedata.normalize(form, text)


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Normalizing]:
    normalizing = Normalizing()

    class Unicode:
        normalize = normalizing
        combining = unicodedata.combining
        category = unicodedata.category
        decimal = unicodedata.decimal

    for last in ("\uffff", "\U0001ffff"):
        shop.words._too_many_marks(last)  # made once
    with monkeypatch.context() as patched:
        patched.setattr(shop.words, "unicodedata", Unicode)
        yield normalizing


def calls_in(work: Any) -> int:
    """How many functions are called, Python's and C's. Each looks at a word or at less, of MAX_WORD letters."""
    calls = 0

    def count(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(before)
    return calls


def test_a_mark_is_known_in_all_of_unicode() -> None:
    others = [chr(it) for it in range(0x20000, 0x110000) if is_mark(chr(it))]
    assert others == []
    assert [it for it in map(chr, range(0x300)) if is_mark(it)] == []


@pytest.mark.parametrize("text", ["Crème brûlée", "Cre\u0300me", "ﬁlets", "ﾊﾞ", "a" + "\u0301\u0323" * 15, "ẹ́"])
def test_texts_that_somebody_writes_are_normalized_as_ever(text: str) -> None:
    for form in ("NFKC", "NFKD"):
        assert normalized(form, text) == unicodedata.normalize(form, text)


@settings(max_examples=60, deadline=None)
@given(text=crafted(4000))
def test_words_are_few_and_short_and_made_by_few_operations(text: str) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch, counted(monkeypatch) as normalizing:
        words = words_of(text)
    assert normalizing.operations <= 32 * len(text)
    assert all(len(it) <= MAX_WORD for it in words)
    assert sum(map(len, words)) <= MAX_LETTERS


@settings(max_examples=60, deadline=None)
@given(text=crafted(4000), query=crafted(MAX_QUERY))
def test_marks_cost_what_the_text_is_long(text: str, query: str) -> None:
    words = words_of(query)[:10]

    def mark() -> None:
        highlight(text[:200], words)
        snippet(text, words)

    with pytest.MonkeyPatch.context() as monkeypatch, counted(monkeypatch) as normalizing:
        mark()
    _marker.cache_clear()
    calls = calls_in(mark)
    assert normalizing.operations <= 64 * len(text) + 10_000
    # However many words are wanted: each word of the text is compared once.
    assert calls <= 10 * (len(text) + 1_000)


@settings(max_examples=30, deadline=None)
@given(text=crafted(4000))
def test_a_product_makes_few_words_and_a_row_that_the_index_takes(text: str) -> None:
    product = events.product_added()
    added = product.product_added
    added.name, added.category, added.description = text[:200], text[:100], text
    added.attributes.extend(type(added.attributes.add())(name=f"{it}", value=text[it : it + 200]) for it in range(49))
    assert len(fold(SEARCH_WORD, feed_events([product]), {}).rows) <= MAX_CORRECTABLE
    [row] = fold(PRODUCT_SEARCH, feed_events([product]), {}).rows.values()
    assert row is not None
    assert all(len(str(it)) <= 2 * MAX_LETTERS for it in row.columns[3:])


def test_a_product_of_many_words_has_those_of_its_name() -> None:
    product = events.product_added()
    product.product_added.name = "Walnut Chair"
    for number in range(50):
        value = " ".join(f"w{number}x{it}" for it in range(20))
        product.product_added.attributes.add(name=f"n{number}", value=value)
    rows = fold(SEARCH_WORD, feed_events([product]), {}).rows.values()
    words = {row.columns[0] for row in rows if row}
    assert len(words) == MAX_CORRECTABLE
    assert words >= {"walnut", "chair"}


def test_what_is_too_long_is_not_cut_into_words_nor_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    cut: list[str] = []

    def words_of_counted(text: str) -> list[str]:
        cut.append(text)
        return words_of(text)

    monkeypatch.setattr(search_request, "query_words", words_of_counted)
    check = QueryChecker(2)
    request = SearchProductsRequest(
        query="\u0301" * 400_000,
        filter=ProductFilter(categories=["x" * 400_000]),
        page_token="x" * 400_000,
    )
    field_checks(request.DESCRIPTOR).check(request, check)
    key = search_key(request, check)
    with pytest.raises(InvalidArgument) as refused:
        check.finish()
    assert {it.subject: it.kind for it in refused.value.violations} == {
        "query": "TOO_LONG",
        "filter.categories[0]": "TOO_LONG",
        "page_token": "MALFORMED",
    }
    assert cut == [""]
    assert all(len(it) < MAX_QUERY for it in key.query)
