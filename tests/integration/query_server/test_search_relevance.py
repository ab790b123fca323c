"""Known searches find the product that they mean among the first three: 77 real products, and 20,000 made up ones."""

import itertools
import re
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import TextClause, text

from commerce.event.v1.event_pb2 import Event, ProductAdded
from commerce.query.v1.query_service_pb2 import (
    ProductFilter,
    ProductSort,
    SearchProductsRequest,
    SearchProductsResponse,
)
from commerce.type.v1.money_pb2 import Money
from query_server.search.memory import SearchMemory
from query_server.search.query import SearchQuery
from query_server.search.statements import SESSION
from tandem.queries.encoding import room_for_rows
from tandem.queries.store import Store
from tandem.runtime.database import create_database_engine
from tandem.runtime.settings import DatabaseSettings
from tests.support.catalogue import catalogue
from tests.support.events import feed_events
from tests.support.northwind import FOLDER, Northwind
from tests.support.projecting import OWNER, plan, store
from tests.support.search_queries import CATALOGUE_QUERIES, NORTHWIND_QUERIES, KnownQuery, made_up
from tests.support.searching import answered
from tests.support.stack import Databases

VIEWS = ("product_card", "product_search", "search_word")


def northwind_products(northwind: Northwind) -> Iterator[Event]:
    for number, product in enumerate(northwind.products, start=1):
        added = ProductAdded(
            product_id=str(uuid.UUID(int=number)),
            version=1,
            name=product["product_name"],
            description=product["quantity_per_unit"],
            category=product["category"],
            stock=10,
        )
        added.price.minor_units, added.price.currency_code = 1000, "USD"
        yield Event(product_added=added)


def project(url: str, events: Iterable[Event]) -> None:
    """What a projector does, without a feed."""
    settings = DatabaseSettings(url=SecretStr(url), statement_timeout=60)
    engine = create_database_engine(settings, name="test", pool_size=1)
    epoch = uuid.uuid4()
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        for view in VIEWS:
            connection.execute(
                text(
                    "INSERT INTO tandem_read.projection (view, feed_epoch, position, owner)"
                    " VALUES (:view, :epoch, 0, :owner)"
                ),
                {"view": view, "epoch": epoch, "owner": OWNER},
            )
        fed = iter(feed_events(events))
        while batch := list(itertools.islice(fed, 5000)):
            changes = {view: plan(connection, view, batch) for view in VIEWS}
            store(connection, epoch, batch[0].position - 1, batch[-1].position, changes)
        connection.execute(
            # As a running PostgreSQL does by itself; until then new words are in a list that every search reads.
            text("VACUUM ANALYZE tandem_read.product_search, tandem_read.product_card, tandem_read.search_word")
        )
    engine.dispose()


class PlannedDatabase(Store):
    """Remembers, once told to, how PostgreSQL reads what is asked of it."""

    plans: list[str] | None = None

    def execute(self, statement: TextClause, arguments: dict[str, object]) -> Sequence[Any]:
        if self.plans is not None:
            with self._engine.connect() as connection:
                self.plans += connection.execute(text(f"EXPLAIN {statement.text}"), arguments).scalars()
        return super().execute(statement, arguments)


@pytest.fixture(scope="module")
def database(databases: Databases) -> Iterator[PlannedDatabase]:
    url = databases.create("read")
    real = northwind_products(Northwind.read()) if FOLDER.is_dir() else ()
    project(url, itertools.chain(real, (it.added() for it in catalogue())))
    database = PlannedDatabase(DatabaseSettings(url=SecretStr(url)), connections=2, session=SESSION)
    yield database
    database.close()
    databases.drop(url)


def search(database: Store, query: str, **fields: Any) -> SearchProductsResponse:
    searches = SearchQuery(database, database, SearchMemory(0), room_for_rows(4 * 2**20))
    [answer] = answered(searches, SearchProductsRequest(query=query, page_size=3, **fields))
    return SearchProductsResponse.FromString(answer)


def missed(database: Store, known: Sequence[KnownQuery]) -> list[tuple[KnownQuery, list[str]]]:
    """The queries that do not find what they mean among the first three, with what they find."""
    found = [(it, [hit.product.name for hit in search(database, it.query).hits]) for it in known]
    return [(it, names) for it, names in found if it.expected not in names]


def assert_95_of_100(database: Store, known: Sequence[KnownQuery]) -> None:
    assert len(known) >= 100
    misses = missed(database, known)
    print(f"{len(known) - len(misses)} of {len(known)} queries found what they mean; missed:", *misses, sep="\n")
    assert len(misses) <= 0.05 * len(known)


@pytest.mark.skipif(not FOLDER.is_dir(), reason="the Northwind data is not beside this project")
def test_queries_about_77_real_products_find_them_in_the_first_three(database: PlannedDatabase) -> None:
    assert_95_of_100(database, NORTHWIND_QUERIES)


def test_queries_about_20_000_products_find_them_in_the_first_three(database: PlannedDatabase) -> None:
    assert_95_of_100(database, [*CATALOGUE_QUERIES, *made_up(catalogue(), each=6)])


def test_each_query_means_a_product_that_is_there() -> None:
    assert {it.expected for it in CATALOGUE_QUERIES} <= {it.name for it in catalogue()}


def plans_of(database: PlannedDatabase, *queries: str, **fields: Any) -> str:
    plans: list[str] = []
    database.plans = plans
    for query in queries:
        search(database, query, **fields)
    database.plans = None
    return "\n".join(plans)


def test_a_search_looks_its_words_up_and_each_price_alone(database: PlannedDatabase) -> None:
    plans = plans_of(database, "halvorsen", "oak", "bread knife", "gorgonzla", "mabrle picture frame")
    cheap = ProductFilter(categories=["Garden"], max_price=Money(minor_units=900, currency_code="EUR"))
    plans += plans_of(database, "oak", sort=ProductSort.PRODUCT_SORT_PRICE_ASC, filter=cheap)
    assert "Index Scan on product_search_document" in plans
    # The words of the catalogue are some hundreds, which are read as fast whole.
    assert set(re.findall(r"Seq Scan on (\w+)", plans)) <= {"projection", "search_word"}


def test_a_search_that_finds_nearly_everything_reads_no_table_of_prices(database: PlannedDatabase) -> None:
    plans = plans_of(database, "", "s", "a")
    assert "Index Scan using product_card_pkey" in plans
    assert "Seq Scan on product_card" not in plans


def test_the_whole_catalogue_is_counted_as_far_as_is_looked_at(database: PlannedDatabase) -> None:
    everything = search(database, "").facets
    assert (everything.total_count, everything.truncated) == (10_000, True)
    teapots = search(database, "teapot").facets
    assert not teapots.truncated
    assert teapots.total_count == sum("Teapot" in it.name + it.description for it in catalogue())
