"""Known searches find the product that they mean among the first three: 77 real products, and 20,000 made up ones."""

import itertools
import uuid
from collections.abc import Iterable, Iterator

import pytest
from pydantic import SecretStr
from sqlalchemy import text

from commerce.event.v1.event_pb2 import Event, ProductAdded
from commerce.query.v1.query_service_pb2 import SearchProductsRequest, SearchProductsResponse
from projector.app import MIGRATIONS
from projector.apply import Move, commit, plan
from query_server.database import ReadDatabase
from query_server.queries.search import SearchReader, search_key
from query_server.validation import Checker
from tandem.read_store.tables import SCHEMA
from tandem.runtime.database import create_database_engine, migrate
from tandem.runtime.settings import DatabaseSettings
from tests.support.catalogue import Search, catalogue, searches
from tests.support.events import feed_events
from tests.support.northwind import FOLDER, Northwind
from tests.support.stack import Databases

VIEWS = ("product_card", "product_search", "search_word")

# What people type, and the number of the product in the Northwind data that they mean.
NORTHWIND: list[tuple[str, int]] = [
    # as it is written, or a part of it
    ("chai", 1),
    ("chang", 2),
    ("Aniseed Syrup", 3),
    ("cajun seasoning", 4),
    ("gumbo mix", 5),
    ("boysenberry", 6),
    ("organic dried pears", 7),
    ("cranberry sauce", 8),
    ("ikura", 10),
    ("tofu", 14),
    ("scones", 21),
    ("pavlova", 16),
    ("sasquatch", 34),
    ("ravioli", 57),
    ("longlife tofu", 74),
    ("clam chowder", 41),
    ("okra", 66),
    ("ipoh coffee", 43),
    # the words in another order, with or without what is between them
    ("pears dried", 7),
    ("syrup aniseed", 3),
    ("marmalade sir rodney", 20),
    ("niku kobe", 9),
    ("hot pepper louisiana", 65),
    ("bread long scottish", 68),
    ("crab boston", 40),
    ("verte chartreuse", 39),
    ("england chowder", 41),
    # as far as it is typed
    ("gorgon", 31),
    ("mascar", 32),
    ("mozz", 72),
    ("camem", 60),
    ("steel", 35),
    ("manji", 51),
    ("louisiana fie", 65),
    ("raclet", 59),
    ("escar", 58),
    ("gudbrand", 69),
    ("singap", 42),
    ("teatime cho", 19),
    # without accents, and with accents that are not there
    ("guarana fantastica", 24),
    ("cote de blaye", 38),
    ("pate chinois", 55),
    ("tourtiere", 54),
    ("rossle sauerkraut", 28),
    ("thuringer rostbratwurst", 29),
    ("gumbar gummibarchen", 26),
    ("knackebrod", 22),
    ("tunnbrod", 23),
    ("sirop d'erable", 61),
    ("rhonbrau klosterbier", 75),
    ("lakkalikoori", 76),
    ("rod kaviar", 73),
    ("tárte au sucré", 62),
    ("chocoladé", 48),
    ("semmelknodel", 64),
    ("grune sose", 77),
    # misspelled
    ("gorgonzla", 31),
    ("mozarella", 72),
    ("cammembert", 60),
    ("mascarpne", 32),
    ("chartruse", 39),
    ("sauerkraut rosle", 28),
    ("tofuu", 14),
    ("marmelade", 20),
    ("biskuits chocolate", 19),
    ("ravoli angelo", 57),
    ("gnochi", 56),
    ("sasquach ale", 34),
    ("cranbery sauce", 8),
    ("louisana okra", 66),
    ("escargot bourgogne", 58),
    ("queso mancheggo", 12),
    ("rostbratwrust", 29),
    ("clam chowdre", 41),
    ("manjimup aples", 51),
    ("perth pastis", 53),
    ("chef antons gumbo", 5),
    # what it is, and in which category
    ("condiments gula", 44),
    ("seafood konbu", 13),
    ("dairy geitost", 33),
    ("beverages outback", 70),
    ("confections maxilaku", 49),
    ("poultry mutton", 17),
    ("cereals filo", 52),
    ("produce tofu longlife", 74),
]


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
    migrate(settings, MIGRATIONS, SCHEMA)
    engine = create_database_engine(settings, name="test", pool_size=1)
    epoch = uuid.uuid4()
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        for view in VIEWS:
            connection.execute(
                text("INSERT INTO tandem_read.projection (view, feed_epoch, position) VALUES (:view, :epoch, 0)"),
                {"view": view, "epoch": epoch},
            )
        fed = iter(feed_events(events))
        while batch := list(itertools.islice(fed, 1000)):
            moves = {
                view: Move(batch[0].position - 1, batch[-1].position, plan(connection, view, batch)) for view in VIEWS
            }
            commit(connection, epoch, moves)
        connection.execute(
            text("ANALYZE tandem_read.product_search, tandem_read.product_card, tandem_read.search_word")
        )
    engine.dispose()


@pytest.fixture(scope="module")
def reader(databases: Databases) -> Iterator[SearchReader]:
    if not FOLDER.exists():
        pytest.skip("the Northwind data is not beside this project, in ../shared/data/northwind")
    url = databases.create()
    project(url, itertools.chain(northwind_products(Northwind.read()), catalogue()))
    database = ReadDatabase(DatabaseSettings(url=SecretStr(url)), connections=1)
    yield SearchReader(database)
    database._engine.dispose()
    databases.drop(url)


def search(reader: SearchReader, query: str, **fields: object) -> SearchProductsResponse:
    check = Checker(2.0)
    wanted = search_key(SearchProductsRequest(query=query, page_size=3, **fields), check)  # type: ignore[arg-type]
    check.finish()
    return SearchProductsResponse.FromString(reader([wanted])[wanted].response)


def test_95_of_100_searches_find_what_they_mean_in_the_first_three(
    reader: SearchReader,
) -> None:
    known = [Search(query, str(uuid.UUID(int=number))) for query, number in NORTHWIND] + searches()
    assert len(known) >= 100
    missed = []
    for it in known:
        hits = search(reader, it.query).hits
        if it.product_id not in [hit.product.product_id for hit in hits]:
            missed.append((it.query, [hit.product.name for hit in hits]))
    share = 1 - len(missed) / len(known)
    print(f"{len(known) - len(missed)} of {len(known)} searches found what they mean; missed: {missed}")
    assert share >= 0.95, missed


def test_the_whole_catalogue_is_counted_as_far_as_is_looked_at(reader: SearchReader) -> None:
    everything = search(reader, "").facets
    assert (everything.total_count, everything.truncated) == (10_000, True)
    teapots = search(reader, "teapot").facets
    assert not teapots.truncated
    assert teapots.total_count == sum(1 for it in catalogue() if "Teapot" in it.product_added.name)
