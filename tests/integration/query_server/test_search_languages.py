"""People find products in the script and the spelling that they type: tests/support/language_queries.txt."""

import itertools
import random
import unicodedata
import uuid
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import pytest
from pydantic import SecretStr

from commerce.event.v1.event_pb2 import Event, ProductAdded
from query_server.search.memory import SearchMemory
from shop.words import words_of
from tandem.runtime.settings import DatabaseSettings
from tests.integration.query_server.test_search_relevance import project
from tests.support.searching import Searcher
from tests.support.stack import Databases

FORMS: tuple[Literal["NFC", "NFD", "NFKC", "NFKD"], ...] = ("NFC", "NFD", "NFKC", "NFKD")
LISTS = Path(__file__).parents[2] / "support" / "language_queries.txt"


class Product(NamedTuple):
    script: str
    language: str
    name: str
    description: str
    queries: list[str]


def read_products() -> list[Product]:
    products: list[Product] = []
    script = language = ""
    # The first two lines say what the others are.
    for line in LISTS.read_text(encoding="utf-8").splitlines()[2:]:
        if line.startswith("# "):
            script, language = line[2:].split(" ", 1)
        elif line.startswith("= "):
            name, _, description = line[2:].partition(" | ")
            products.append(Product(script, language, name, description, []))
        else:
            products[-1].queries.append(line)
    return products


PRODUCTS = read_products()


def events() -> Iterator[Event]:
    for number, it in enumerate(PRODUCTS, start=1):
        added = ProductAdded(product_id=str(uuid.UUID(int=number)), version=1, name=it.name, stock=10)
        added.description = it.description
        added.price.minor_units, added.price.currency_code = 1000, "USD"
        yield Event(product_added=added)


@pytest.fixture(scope="module")
def search(databases: Databases) -> Iterator[Searcher]:
    url = databases.create("read")
    project(url, events())
    searcher = Searcher(DatabaseSettings(url=SecretStr(url)), SearchMemory(0))
    yield searcher
    searcher.close()
    databases.drop(url)


def test_the_lists_have_twenty_languages_with_fifteen_queries_each() -> None:
    counts: defaultdict[str, int] = defaultdict(int)
    for it in PRODUCTS:
        counts[it.language] += len(it.queries)
    assert len(counts) > 20
    assert min(counts.values()) >= 15


def test_queries_find_what_they_mean_in_each_script(search: Searcher) -> None:
    asked: defaultdict[str, int] = defaultdict(int)
    missed: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for it, query in itertools.chain.from_iterable([(it, query) for query in it.queries] for it in PRODUCTS):
        asked[it.script] += 1
        if it.name not in [hit.product.name for hit in search(query, page_size=3).hits]:
            missed[it.script].append((query, it.name))
    # Of a list shorter than twenty one may be missed.
    for script, count in asked.items():
        print(f"{script}: {count - len(missed[script])} of {count}; missed: {missed[script]}")
    assert [script for script, count in asked.items() if len(missed[script]) > max(1, 0.05 * count)] == []


def test_what_begins_a_word_finds_its_product_in_any_form_and_case(search: Searcher) -> None:
    dice = random.Random("beginnings")
    for it in PRODUCTS:
        word = dice.choice([word for word in it.name.split() if words_of(word)])
        beginning = word[: dice.randint(1, len(word))]
        form = dice.choice(FORMS)
        query = dice.choice([str.upper, str.lower, str.title])(unicodedata.normalize(form, beginning))
        if words_of(query):
            found = [hit.product.name for hit in search(query, page_size=100).hits]
            assert it.name in found, (query, form)


def test_a_query_without_a_word_finds_what_has_its_sign_or_nothing(search: Searcher) -> None:
    def names(query: str) -> list[str]:
        return [hit.product.name for hit in search(query, page_size=100).hits]

    assert names("++") == ["C++ Mug"]
    assert names("\u2b50") == names("\u2b50\u2b50\u2b50") == ["Rated \u2b50\u2b50\u2b50 Hotel Towel"]
    assert names("@#$%") == names("!!!") == names("\U0001f600") == names("+++") == []
    everything = search("").facets.total_count
    assert everything == len(PRODUCTS)
    assert search(" \u200b\ufeff").facets.total_count == everything


def test_a_correction_is_said_only_where_it_found_something(search: Searcher) -> None:
    assert search("gorgonzolla").corrected_query == ""
    # Misspelled, and no product has both words: nothing was found, nor corrected.
    assert search("kafeem\u00fchle zolty").corrected_query == ""
    assert search("kafeem\u00fchle").corrected_query == "kaffeemuhle"
    # What is found by a half of it is not misspelled.
    assert search("\u624b\u5de5\u7eff\u8336").corrected_query == ""


def test_what_is_found_is_marked_in_scripts_without_blanks_too(search: Searcher) -> None:
    [hit] = search("\u7eff\u8336", page_size=1).hits
    assert hit.highlighted_name == "\u6709\u673a<em>\u7eff\u8336</em>\u793c\u76d2"
    [hit] = search("\u30a4\u30e4\u30db\u30f3", page_size=1).hits
    assert hit.highlighted_name.endswith("<em>\u30a4\u30e4\u30db\u30f3</em>")
