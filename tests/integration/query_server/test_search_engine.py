"""SearchProducts with a search engine that finds the products, on emulators: of OpenSearch (osmem-server) and of
Elasticsearch (noida-db). Neither is the engine itself. The test is the projector; its indexer is the real one.
"""

import asyncio
import itertools
import os
import signal
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from grpc import aio
from pydantic import SecretStr
from sqlalchemy import text

from commerce.internal.v1.stored_pb2 import ProductText, SearchPageToken
from commerce.query.v1.query_service_pb2 import (
    ProductSort,
    SearchBoost,
    SearchProductsRequest,
    SearchProductsResponse,
)
from commerce.type.v1.consistency_pb2 import Consistency
from query_server.search.memory import SearchMemory
from query_server.search.synonyms import parse
from shop.product_index import PRODUCT_INDEX
from tandem.projection import indexing
from tandem.projection.indexing import Indexer
from tandem.queries.index import IndexReader
from tandem.queries.page_token import decode_stored
from tandem.read_store.search_engine import SearchEngine
from tandem.read_store.search_index import Document, SearchEngineSettings
from tandem.read_store.tables import newest
from tandem.runtime.settings import DatabaseSettings
from tests.integration.query_server.conftest import ReadSide, Serve, detail, position_of, reason, until
from tests.integration.query_server.test_search_languages import PRODUCTS
from tests.integration.query_server.test_search_languages import events as language_events
from tests.integration.query_server.test_search_relevance import northwind_products, project
from tests.support import events
from tests.support.catalogue import catalogue
from tests.support.metrics import sample
from tests.support.northwind import FOLDER, Northwind
from tests.support.search_engines import EMULATORS, Announcing, SearchServer, indexer, search_server
from tests.support.search_queries import CATALOGUE_QUERIES, NORTHWIND_QUERIES, made_up
from tests.support.searching import Searcher, Shelf
from tests.support.stack import Databases

VIEW = PRODUCT_INDEX.view
_ROW = text(f"SELECT * FROM {newest(repr(VIEW))} AS p")
# noida-db looks at every document for every part of a query, and takes a tenth of a second.
EVERY = {"osmem-server": 1, "noida-db": 6}


@pytest.fixture(scope="module", params=EMULATORS)
def emulator(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SearchServer]:
    with search_server(request.param, tmp_path_factory.mktemp("search")) as server:
        yield server


def settings_of(server: SearchServer) -> SearchEngineSettings:
    # Each test has indexes of its own.
    return SearchEngineSettings(url=server.url, prefix=f"t{uuid.uuid4().hex[:8]}", timeout=20)


def index_row(database: Any) -> Any:
    """Where the index is, as searches see it; None before it is filled."""
    with database.connect() as connection:
        return connection.execute(_ROW).one_or_none()


class Searching:
    """A searcher by an engine. asked: how many searches it was asked for; answered: how many of them it answered."""

    def __init__(
        self, settings: DatabaseSettings, engine: SearchEngineSettings, rest_seconds: float = 0.05, **options: Any
    ) -> None:
        self.reader = IndexReader(PRODUCT_INDEX, engine, Announcing(), rest_seconds=rest_seconds)
        self.searcher = Searcher(settings, options.pop("memory", SearchMemory(0)), reader=self.reader, **options)
        self.asked = self.answered = 0
        search = self.reader.search

        def counted(name: str, body: dict[str, Any]) -> list[tuple[str, float]]:
            self.asked += 1
            found = search(name, body)
            self.answered += 1
            return found

        self.reader.search = counted  # type: ignore[method-assign]

    def names(self, query: str, **fields: Any) -> list[str]:
        return [it.product.name for it in self(query, **fields).hits]

    def __call__(self, query: str, **fields: Any) -> Any:
        return self.searcher(query, **fields)

    def explain(self, query: str) -> Any:
        return self.searcher.explain(query)

    async def close(self) -> None:
        self.searcher.close()
        await self.reader.stop()


Start = Callable[..., Any]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Starts an indexer, or takes a searcher, and ends it after the test."""
    running: list[Any] = []

    async def begin(it: Any) -> Any:
        if isinstance(it, Indexer):
            await it.start()
        running.append(it)
        return it

    yield begin
    for it in reversed(running):
        await (it.stop() if isinstance(it, Indexer) else it.close())


class Indexed:
    """A read side with a search engine beside it. `caught_up`: the index has all that the shelf has."""

    def __init__(self, read_side: ReadSide, server: SearchServer, start: Start) -> None:
        self.side, self.engine, self._start = read_side, settings_of(server), start
        self.server = server

    async def index(self) -> Indexer:
        made: Indexer = await self._start(indexer(self.side.settings, self.engine, heartbeat_seconds=0.1))
        return made

    async def search(self, **options: Any) -> Searching:
        made: Searching = await self._start(Searching(self.side.settings, self.engine, **options))
        return made

    async def caught_up(self) -> None:
        def there() -> bool:
            row = index_row(self.side.engine)
            return row is not None and row.position == self.side.position

        await until(there, "the index has caught up")

    @property
    def name(self) -> str:
        return str(index_row(self.side.engine).index_name)


@pytest.fixture
def indexed(read_side: ReadSide, emulator: SearchServer, start: Start) -> Indexed:
    return Indexed(read_side, emulator, start)


# What people look for: as PostgreSQL alone is asked in test_search_relevance.py and test_search_languages.py.


async def filled(databases: Databases, server: SearchServer, start: Start, products: Any) -> tuple[str, Searching]:
    url = databases.create("read")
    project(url, products)
    settings, engine = DatabaseSettings(url=SecretStr(url)), settings_of(server)
    fills = await start(indexer(settings, engine))
    await until(lambda: sample("tandem_index_serves", view=VIEW) == 1, "the index is filled")
    await fills.stop()
    return url, await start(Searching(settings, engine))


def found_by(searcher: Searcher, query: str) -> list[str]:
    return [it.product.name for it in searcher(query, page_size=3).hits]


async def test_known_queries_find_what_they_find_in_postgresql_too(
    databases: Databases, emulator: SearchServer, start: Start
) -> None:
    asked = [*CATALOGUE_QUERIES, *made_up(catalogue(), each=6)]
    meant = {it.expected for it in asked}
    others = (it.added() for it in catalogue() if it.name not in meant)
    real = list(northwind_products(Northwind.read())) if FOLDER.is_dir() else []
    products = [*real, *(it.added() for it in catalogue() if it.name in meant), *itertools.islice(others, 60)]
    url, search = await filled(databases, emulator, start, products)
    alone = Searcher(DatabaseSettings(url=SecretStr(url)), SearchMemory(0))
    for known in (NORTHWIND_QUERIES if real else (), asked):
        some = known[:: EVERY[emulator.name]]
        missed = [it for it in some if it.expected not in search.names(it.query, page_size=3)]
        # Which misses at most one in twenty of all.
        too = [it for it in missed if it.expected not in found_by(alone, it.query)]
        assert missed == too, "PostgreSQL finds the others"
    alone.close()
    assert search.answered >= len(some)


async def test_each_script_finds_its_products(databases: Databases, emulator: SearchServer, start: Start) -> None:
    _, search = await filled(databases, emulator, start, language_events())
    asked: defaultdict[str, int] = defaultdict(int)
    missed: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for it in PRODUCTS:
        for query in it.queries[::5]:
            asked[it.script] += 1
            if it.name not in search.names(query, page_size=3):
                missed[it.script].append((query, it.name))
    assert [script for script, count in asked.items() if len(missed[script]) > max(1, 0.05 * count)] == [], missed
    assert search.answered >= sum(asked.values()) - 20  # those of signs alone are asked for too


# The index and the view.


async def test_a_page_is_what_postgresql_would_show(indexed: Indexed, shelf: Shelf) -> None:
    shelf.add("Green Tea", category="Tea", Colour="green")
    shelf.add("Tea Pot", category="Pots", description="For green tea", stock=0)
    shelf.add("Oolong", category="Tea", description="A green one, in a tin")
    shelf.add("Sencha Tea", category="Tea", price=None)
    await indexed.index()
    search, plain = await indexed.search(), await indexed.search()
    await indexed.caught_up()
    plain.reader.search = None  # type: ignore[assignment]
    for query, fields in (
        ("tea", {}),
        ("green tea", {"detailed_facets": True}),
        ("tea", {"sort": ProductSort.PRODUCT_SORT_NEWEST}),
        ("teas", {}),
        ("gren te", {}),
    ):
        found = search(query, **fields)
        expected = Searcher(indexed.side.settings, SearchMemory(0))
        try:
            wanted = expected(query, **fields)
        finally:
            expected.close()
        assert {it.product.name for it in found.hits} == {it.product.name for it in wanted.hits}, query
        assert found.facets == wanted.facets
        assert found.corrected_query == wanted.corrected_query
        assert {it.highlighted_name for it in found.hits} == {it.highlighted_name for it in wanted.hits}
    assert search.names("green tea")[0] == "Green Tea"
    assert search.answered >= 6


async def test_pages_go_on_where_the_last_one_ended_while_products_come(indexed: Indexed, shelf: Shelf) -> None:
    for number in range(7):
        shelf.add(f"Tea Number {number}")
    await indexed.index()
    search = await indexed.search()
    await indexed.caught_up()
    first = search("tea", page_size=4)
    for number in range(4):
        shelf.add(f"Coffee {number}", description="tea it is not")
    await indexed.caught_up()
    second = search("tea", page_size=4, page_token=first.next_page_token)
    seen = [it.product.name for it in (*first.hits, *second.hits) if it.product.name.startswith("Tea")]
    assert sorted(seen) == sorted({f"Tea Number {number}" for number in range(7)})
    stored, _ = decode_stored(SearchPageToken, first.next_page_token, 10_000)
    assert stored.by_engine


async def test_synonyms_and_what_is_remembered_are_as_without_an_engine(indexed: Indexed, shelf: Shelf) -> None:
    shelf.add("Red Sneakers")
    await indexed.index()
    search = await indexed.search(memory=SearchMemory(2**20), synonyms=parse("trainers => sneakers"))
    await indexed.caught_up()
    assert search.names("trainers") == ["Red Sneakers"]
    asked = search.asked
    assert search.names("trainers") == ["Red Sneakers"]
    # The text has not changed: the words need not be found again.
    assert search.asked == asked
    shelf.add("Blue Sneakers")
    await indexed.caught_up()
    assert set(search.names("trainers")) == {"Red Sneakers", "Blue Sneakers"}
    assert search.asked > asked


async def test_an_explanation_adds_up_to_what_products_are_sorted_by(indexed: Indexed, shelf: Shelf) -> None:
    shelf.add("Green Tea")
    shelf.add("Tea Towel", description="green")
    await indexed.index()
    search = await indexed.search()
    await indexed.caught_up()
    explained = search.explain("green tea")
    assert [it.name for it in explained.hits] == ["Green Tea", "Tea Towel"]
    for hit in explained.hits:
        assert hit.score == sum(part.score for part in hit.parts)
        assert {it.boost for it in hit.parts if it.score} >= {SearchBoost.SEARCH_BOOST_WORDS}


async def test_a_product_that_changes_is_found_by_what_it_says_now(indexed: Indexed, shelf: Shelf) -> None:
    shelf.add("Kettle")
    await indexed.index()
    search = await indexed.search()
    await indexed.caught_up()
    assert search.names("kettle") == ["Kettle"]
    shelf.happen(events.product_revised(shelf.number("Kettle"), name="Samovar"))
    await indexed.caught_up()
    assert search.names("samovar") == ["Samovar"]
    assert search.names("kettle") == []
    shelf.happen(events.product_discontinued(shelf.number("Kettle"), version=3))
    await indexed.caught_up()
    assert search.names("samovar") == []


async def test_what_comes_late_is_refused_by_its_version(indexed: Indexed, shelf: Shelf) -> None:
    shelf.add("Kettle")
    shelf.happen(events.product_revised(1, name="Samovar"))
    await indexed.index()
    await indexed.caught_up()
    engine = SearchEngine(indexed.engine)
    key = uuid.UUID(events.product_added(1).product_added.product_id).hex
    try:
        # As a projector does that paused before the product was revised.
        late = engine.write([indexed.name], [Document(key, 1, {"words": ["kettle"], "name": ["kettle"]})])
        assert (late.taken, late.refused) == (0, 1)
        # Of a row that is gone nothing is left but its version.
        gone = engine.write([indexed.name], [Document(key, 9, {}), Document(key, 8, {"words": ["kettle"]})])
        assert (gone.taken, gone.refused) == (1, 1)
        engine.refresh([indexed.name])
    finally:
        engine.close()
    search = await indexed.search()
    assert search.names("kettle") == []


async def test_an_indexer_goes_on_where_the_last_one_was_and_one_alone_writes(indexed: Indexed, shelf: Shelf) -> None:
    for number in range(5):
        shelf.add(f"Tea {number}")
    first = await indexed.index()
    await indexed.caught_up()
    name, taken = indexed.name, sample("tandem_index_documents_total", view=VIEW) or 0
    standby = await indexed.index()
    await first.stop()
    shelf.add("Tea 5")
    await indexed.caught_up()
    # The new product, and that of the position where the last one was, once more.
    assert (sample("tandem_index_documents_total", view=VIEW) or 0) - taken <= 2
    assert indexed.name == name
    assert standby is not first


async def test_a_view_that_is_made_anew_gets_another_index_beside_the_one_that_serves(
    indexed: Indexed, shelf: Shelf
) -> None:
    shelf.add("Green Tea")
    await indexed.index()
    search = await indexed.search()
    await indexed.caught_up()
    before = indexed.name
    with indexed.side.engine.begin() as connection:
        connection.execute(
            text("UPDATE tandem_read.projection SET generation = 7, content = gen_random_uuid() WHERE view = :view"),
            {"view": PRODUCT_INDEX.source},
        )
    indexed.side.advance()
    await until(lambda: indexed.name != before, "another index serves")
    await indexed.caught_up()
    engine = SearchEngine(indexed.engine)
    try:
        await until(lambda: not engine.is_there(before), "the one of before is gone")
    finally:
        engine.close()
    assert search.names("tea") == ["Green Tea"]
    assert search.answered == 1


async def test_what_the_log_does_not_say_is_found_all_the_same(
    indexed: Indexed, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "_ROWS", 2)
    for number in range(5):
        shelf.add(f"Tea {number}")
    fills = await indexed.index()
    await indexed.caught_up()
    await fills.stop()
    # While nobody looked, and in another generation of the view.
    shelf.add("Tea 5")
    with indexed.side.engine.begin() as connection:
        connection.execute(text("DELETE FROM tandem_read.change"))
        connection.execute(
            text("UPDATE tandem_read.projection SET generation = 7 WHERE view = :view"), {"view": PRODUCT_INDEX.source}
        )
    await indexed.index()
    search = await indexed.search()
    await indexed.caught_up()
    assert set(search.names("tea")) == {f"Tea {number}" for number in range(6)}
    assert search.answered == 1


async def test_what_is_parked_is_said_where_the_index_is(indexed: Indexed, shelf: Shelf) -> None:
    shelf.add("Green Tea")
    key = events.product_added(1).product_added.product_id
    await indexed.index()
    search = await indexed.search()
    since = indexed.side.park("product_search", key)
    indexed.side.advance()
    await indexed.caught_up()
    found = search("tea")
    assert [it.product.name for it in found.hits] == ["Green Tea"]
    assert (found.parked_rows, found.parked_since, position_of(found.as_of)) == (1, since, since - 1)
    # The log says nothing of a row that takes in what waited for it. That the rows say something else now, does.
    indexed.side.redrive("product_search", key, ProductText(name="Green Tea"), since)
    with indexed.side.engine.begin() as connection:
        connection.execute(text("UPDATE tandem_read.product_search SET name_words = 'samovar'"))
    indexed.side.advance()
    await indexed.caught_up()
    assert search("samovar").parked_rows == 0
    assert search.names("samovar") == ["Green Tea"]


# Tokens.


def asking(query: str, token: str = "", wait: float = 10.0) -> SearchProductsRequest:
    consistency = Consistency()
    if token:
        consistency.at_least_as_fresh = token
    consistency.max_wait.FromMilliseconds(int(1000 * wait))
    return SearchProductsRequest(query=query, consistency=consistency)


@pytest.mark.parametrize("transport", ["native"])
async def test_a_search_waits_until_the_index_has_its_token(indexed: Indexed, shelf: Shelf, serve: Serve) -> None:
    side = indexed.side
    shelf.add("Green Tea")
    fills = await indexed.index()
    await indexed.caught_up()
    stub = await serve(search={"engine": indexed.engine})
    await side.announce()
    await until(lambda: sample("tandem_announced_position", view=VIEW) == side.position, "the index is announced")

    token = shelf.add("White Tea")
    await side.announce()
    found = await stub.SearchProducts(asking("tea", token), timeout=20)
    assert {it.product.name for it in found.hits} == {"Green Tea", "White Tea"}

    # The view goes on without the index.
    await indexed.caught_up()
    await fills.stop()
    token = shelf.add("Black Tea")
    await side.announce()
    with pytest.raises(aio.AioRpcError) as raised:
        await stub.SearchProducts(asking("tea", token, wait=0.2), timeout=20)
    assert (reason(raised.value), _view_of(raised.value)) == ("PROJECTION_LAG", VIEW)
    without = await stub.SearchProducts(asking("tea"), timeout=20)
    assert {it.product.name for it in without.hits} == {"Green Tea", "White Tea"}

    # Who waits is answered when the index comes.
    waiting = asyncio.ensure_future(stub.SearchProducts(asking("tea", token, wait=15), timeout=20))
    await indexed.index()
    assert len((await waiting).hits) == 3


def _view_of(error: aio.AioRpcError) -> str:
    from google.rpc import error_details_pb2

    return str(detail(error, error_details_pb2.ErrorInfo).metadata["view"])


async def test_searches_that_are_answered_together_wait_once_for_a_silent_engine(
    read_side: ReadSide, shelf: Shelf, start: Start, tmp_path: Path
) -> None:
    shelf.add("Green Tea")
    with search_server("osmem-server", tmp_path) as server:
        indexed = Indexed(read_side, server, start)
        fills = await indexed.index()
        await indexed.caught_up()
        await fills.stop()
        impatient = indexed.engine.model_copy(update={"timeout": 0.2})
        search = await start(Searching(read_side.settings, impatient, rest_seconds=60))
        os.kill(server.pid, signal.SIGSTOP)
        together = search.searcher.together(*(SearchProductsRequest(query=f"tea {it}") for it in ("g", "gr", "gre")))
        assert [len(SearchProductsResponse.FromString(it).hits) for it in together] == [1, 1, 1]
        assert (search.asked, search.answered) == (1, 0)


@pytest.mark.parametrize("transport", ["native"])
async def test_without_the_engine_postgresql_answers_and_its_pages_are_not_mixed(
    read_side: ReadSide, shelf: Shelf, serve: Serve, start: Start, tmp_path: Path
) -> None:
    shelf.add("Green Tea")
    shelf.add("White Tea")
    with search_server("osmem-server", tmp_path) as server:
        indexed = Indexed(read_side, server, start)
        await indexed.index()
        await indexed.caught_up()
        # What is remembered would be shown without asking it.
        stub = await serve(search={"engine": indexed.engine, "engine_rest_seconds": 0.05, "remembered_mib": 0})
        await read_side.announce()
        await until(
            lambda: sample("tandem_announced_position", view=VIEW) == read_side.position, "the index is announced"
        )
        first = await stub.SearchProducts(SearchProductsRequest(query="tea", page_size=1), timeout=20)
        second = SearchProductsRequest(query="tea", page_size=1, page_token=first.next_page_token)
        assert len((await stub.SearchProducts(second, timeout=20)).hits) == 1

        server.end()
        token = shelf.add("Black Tea")
        await read_side.announce()
        found = await stub.SearchProducts(asking("tea", token), timeout=20)
        assert len(found.hits) == 3
        with pytest.raises(aio.AioRpcError) as raised:
            await stub.SearchProducts(second, timeout=20)
        assert reason(raised.value) == "STORE_UNAVAILABLE"

        # It comes back, and has nothing any more.
        server.start()
        await until(lambda: sample("tandem_index_serves", view=VIEW) == 1, "the index serves again")
        await indexed.caught_up()

        async def by_engine() -> bool:
            page = await stub.SearchProducts(SearchProductsRequest(query="tea", page_size=1), timeout=20)
            return decode_stored(SearchPageToken, page.next_page_token, 10_000)[0].by_engine

        for _ in range(200):
            if await by_engine():
                break
            await asyncio.sleep(0.05)
        assert await by_engine()
