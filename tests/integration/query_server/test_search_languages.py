"""People find products in the script and the spelling that they type: tests/support/language_queries.txt."""

import itertools
import uuid
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from pydantic import SecretStr

from commerce.event.v1.event_pb2 import Event, ProductAdded
from query_server.search.memory import SearchMemory
from tandem.runtime.settings import DatabaseSettings
from tests.integration.query_server.test_search_relevance import project
from tests.support.searching import Searcher
from tests.support.stack import Databases

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
