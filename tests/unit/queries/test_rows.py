"""Rows by id: requests known by their bytes, entries passed on as they are, misses read together and filled."""

import threading
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pytest
from google.protobuf import message_factory
from google.protobuf.message import DecodeError, Message
from hypothesis import given
from hypothesis import strategies as st

from commerce.query.v1 import query_service_pb2 as queries
from commerce.query.v1.views_pb2 import ProductCard
from shop.views import CACHED_VIEWS
from tandem.feed.token import Token, decode_token
from tandem.queries.cache import Lookup
from tandem.queries.checker import QueryChecker
from tandem.queries.freshness import Freshness
from tandem.queries.rows import ManyRows, OneRow, RowQueries, queries_by_id
from tandem.queries.settings import CacheSettings, FreshnessSettings, ReaderSettings
from tandem.queries.store import Rows
from tandem.read_store.announcement import Announcement
from tandem.read_store.cache import PLACEHOLDER, CacheEpochs, encode_entry
from tandem.runtime.call import LocalCall, Method
from tandem.runtime.errors import InvalidArgument, NotFound, Unavailable
from tests.support.metrics import sample
from tests.support.watching import Silence

SERVICE = queries.DESCRIPTOR.services_by_name["QueryService"]
QUERIES = queries_by_id(SERVICE, CACHED_VIEWS)
# Where the length of a value takes a byte more, and around it.
SIZES = [0, 1, 2, 125, 126, 127, 128, 129, 130, 131, 16_382, 16_383, 16_384, 16_385, 16_388, 70_000]
LONG = 20.0

each_query = pytest.mark.parametrize("query", QUERIES, ids=lambda it: it.name)


def test_what_is_a_query_by_id_and_of_which_view_is_read_from_the_contract() -> None:
    assert {it.name: (type(it), it.view, it.id_field) for it in QUERIES} == {
        "GetOrderDetails": (OneRow, "order_details", "order_id"),
        "BatchGetOrderDetails": (ManyRows, "order_details", "order_ids"),
        "GetProduct": (OneRow, "product_card", "product_id"),
        "BatchGetProducts": (ManyRows, "product_card", "product_ids"),
        "GetCustomer": (OneRow, "customer_profile", "customer_id"),
        "GetSubscription": (OneRow, "subscription_details", "subscription_id"),
    }
    assert queries_by_id(SERVICE, []) == []


def request_class(query: OneRow | ManyRows) -> type[Any]:
    return message_factory.GetMessageClass(SERVICE.methods_by_name[query.name].input_type)


def as_read(query: OneRow | ManyRows, request: bytes) -> list[str] | None:
    """The ids as they are found by parsing; None for a request that is wrong or wants more than rows."""
    try:
        message = request_class(query).FromString(request)
        check = QueryChecker(default_max_wait=0)
        rows = query.keys(message, check)
        check.finish()
    except (DecodeError, InvalidArgument):
        return None
    return None if message.HasField("consistency") else rows


def request_of(query: OneRow | ManyRows, ids: list[str]) -> Message:
    request: Message = request_class(query)(**{query.id_field: ids if isinstance(query, ManyRows) else ids[0]})
    return request


@each_query
@given(ids=st.lists(st.uuids(), min_size=1, max_size=5, unique=True))
def test_ids_alone_are_known_by_their_bytes(query: OneRow | ManyRows, ids: list[uuid.UUID]) -> None:
    request = request_of(query, [str(it) for it in ids]).SerializeToString()
    assert query.keys_alone(request) == as_read(query, request)
    assert query.keys_alone(request) is not None


@each_query
@given(
    ids=st.lists(st.one_of(st.uuids().map(str), st.uuids().map(lambda it: str(it).upper()), st.text(max_size=40))),
    rest=st.binary(max_size=60),
)
def test_what_is_known_of_other_requests_is_what_parsing_them_says(
    query: OneRow | ManyRows, ids: list[str], rest: bytes
) -> None:
    request = request_of(query, ids or [""]).SerializeToString() + rest
    known = query.keys_alone(request)
    assert known is None or known == as_read(query, request)


@each_query
def test_no_id_twice_and_no_more_than_a_hundred_are_known(query: OneRow | ManyRows) -> None:
    one = request_of(query, [str(uuid.UUID(int=1))]).SerializeToString()
    assert query.keys_alone(one + one) is None
    many = b"".join(request_of(query, [str(uuid.UUID(int=it))]).SerializeToString() for it in range(101))
    assert query.keys_alone(many) is None


@each_query
@pytest.mark.parametrize("size", SIZES)
def test_an_entry_gives_the_field_that_its_value_gives(query: OneRow | ManyRows, size: int) -> None:
    value = b"\x0a" * size
    assert query.value_of(encode_entry(value)) == query.value(value)


@each_query
@given(entry=st.binary(max_size=200))
def test_what_is_no_entry_gives_no_field_that_is_not_whole(query: OneRow | ManyRows, entry: bytes) -> None:
    field = query.value_of(entry)
    assert field is None or query.value.encodes(field)


@each_query
def test_a_placeholder_and_no_entry_give_nothing(query: OneRow | ManyRows) -> None:
    assert query.value_of(PLACEHOLDER) is None
    assert query.value_of(None) is None
    assert query.value_of(b"\xff\xff\xff") is None


@pytest.mark.parametrize("size", range(140))
def test_a_field_is_known_by_its_beginning(size: int) -> None:
    field = QUERIES[0].value
    whole = field(b"x" * size)
    assert field.encodes(whole)
    assert not field.encodes(whole[:-1])
    assert not field.encodes(whole + b"x")


FEED, LATER_FEED = uuid.UUID(int=1), uuid.UUID(int=2)
VIEW = "product_card"


class FakeStore:
    """A database with rows that say which they are; each read waits for `go`."""

    def __init__(self) -> None:
        self.as_of = Token(FEED, 7)
        self.reads: list[tuple[str, list[str]]] = []
        self.begun = threading.Semaphore(0)
        self.go = threading.Event()
        self.go.set()
        self.away: set[str] = set()
        self.others: dict[str, bytes] = {}
        self.parked: dict[str, int] = {}

    def rows(self, view: str, keys: Sequence[str]) -> Rows[str, bytes]:
        self.reads.append((view, list(keys)))
        self.begun.release()
        assert self.go.wait(LONG)
        if view in self.away:
            raise Unavailable("away", reason="STORE_UNAVAILABLE")
        # Of all views: the row's id is the first field.
        rows = {key: ProductCard(product_id=str(uuid.UUID(key))).SerializeToString() for key in keys}
        rows |= {key: value for key, value in self.others.items() if key in keys}
        rows.pop(uuid.UUID(int=0).hex, None)
        return Rows(rows, self.parked, self.as_of)


class FakeCache:
    """One cache for all threads, with what the test puts into it."""

    entries: dict[str, bytes]
    asked_by: int | None = None
    """The thread that looked up last."""

    def __init__(self, *_: object) -> None:
        pass

    def look_up(self, view: str, epochs: object, rows: Iterable[str]) -> Lookup:
        [found] = self.look_up_each(view, epochs, [rows])
        return found

    def look_up_each(self, _view: str, _epochs: object, wanted: Iterable[Iterable[str]]) -> Iterator[Lookup]:
        FakeCache.asked_by = threading.get_ident()
        for rows in map(list, wanted):
            yield Lookup({row: self.entries[row] for row in rows if row in self.entries}, len(rows))

    def lease(self, _view: str, _epochs: object, rows: Iterable[str]) -> dict[str, object]:
        return dict.fromkeys(rows)

    def fill(self, leases: dict[str, object], values: dict[str, bytes]) -> None:
        self.entries.update({row: encode_entry(values[row]) for row in leases if row in values})

    def close(self) -> None:
        pass


class Room:
    def __init__(self, max_batch: int = 256) -> None:
        listener: Any = Silence()
        self.store = FakeStore()
        store: Any = self.store
        nothing: Any = None
        self.freshness = Freshness(FreshnessSettings(), listener, dict, CACHED_VIEWS, nothing)
        reader = ReaderSettings(max_batch=max_batch)
        self.rows = RowQueries(QUERIES, store, self.freshness, reader, CacheSettings())

    def announce(self, position: int, feed: uuid.UUID = FEED, generation: int = 0) -> None:
        epochs: dict[str, CacheEpochs] = {view: {"node:1": "e"} for view in CACHED_VIEWS}
        generations = dict.fromkeys(CACHED_VIEWS, generation)
        announcement = Announcement(feed, dict.fromkeys(CACHED_VIEWS, position), epochs, generations=generations)
        self.freshness.apply_announcement(announcement, self.freshness._clock())

    def ask(self, rpc: str, *requests: Message, most: int = 2**22) -> list[LocalCall]:
        """Calls that come together, whose answers have at most so many bytes."""
        calls = [LocalCall(Method(rpc, type(it), max_response_bytes=most), it, seconds=60) for it in requests]
        self.rows.workers[rpc].put_all(calls)
        return calls

    def get(self, *numbers: int, **fields: Any) -> list[LocalCall]:
        ids = [str(uuid.UUID(int=it)) for it in numbers]
        return self.ask("GetProduct", *(queries.GetProductRequest(product_id=it, **fields) for it in ids))

    def get_many(self, *numbers: int, **fields: Any) -> LocalCall:
        ids = [str(uuid.UUID(int=it)) for it in numbers]
        [call] = self.ask("BatchGetProducts", queries.BatchGetProductsRequest(product_ids=ids, **fields))
        return call


@pytest.fixture
async def room(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("tandem.queries.rows.Cache", FakeCache)
    monkeypatch.setattr(FakeCache, "entries", {}, raising=False)
    room = Room()
    await room.rows.start()
    yield room
    room.store.go.set()
    await room.rows.stop()


def answered(call: LocalCall) -> bytes:
    response: bytes = call.future.result(LONG)
    return response


def failure(call: LocalCall) -> Any:
    return call.future.exception(LONG)


def as_of(call: LocalCall) -> Token:
    """Of a GetProduct."""
    return decode_token(queries.GetProductResponse.FromString(answered(call)).as_of)


async def test_a_row_that_several_calls_ask_for_is_read_once_with_the_others(room: Room) -> None:
    calls = room.get(1, 2, 1, 1)
    assert {as_of(it) for it in calls} == {Token(FEED, 7)}
    [(view, keys)] = room.store.reads
    assert (view, [uuid.UUID(it).int for it in keys]) == (VIEW, [1, 2])


async def test_a_call_does_not_join_a_read_that_has_begun(room: Room) -> None:
    room.store.go.clear()
    [first] = room.get(1)
    assert room.store.begun.acquire(timeout=LONG)
    [second] = room.get(1)
    room.store.as_of = Token(FEED, 8)
    room.store.go.set()
    answered(first)
    assert as_of(second) == Token(FEED, 8)
    assert len(room.store.reads) == 2


async def test_a_row_whose_callers_have_gone_is_not_read(room: Room) -> None:
    room.store.go.clear()
    [first] = room.get(1)
    assert room.store.begun.acquire(timeout=LONG)
    gone, stays = room.get(2, 3)
    while room.rows._all[0].waiting < 2:
        await_turn()
    gone.future.cancel()
    room.store.go.set()
    answered(stays)
    answered(first)
    assert [uuid.UUID(it).int for _, keys in room.store.reads for it in keys] == [1, 3]


def await_turn() -> None:
    threading.Event().wait(0.001)


async def test_each_view_is_read_in_a_statement_of_its_own_and_fails_alone(room: Room) -> None:
    room.store.go.clear()
    [first] = room.get(1)
    assert room.store.begun.acquire(timeout=LONG)
    [product] = room.get(2)
    [customer] = room.ask("GetCustomer", queries.GetCustomerRequest(customer_id=str(uuid.UUID(int=3))))
    while room.rows._all[0].waiting < 2:
        await_turn()
    room.store.away = {"customer_profile"}
    room.store.go.set()
    answered(first)
    answered(product)
    assert failure(customer).reason == "STORE_UNAVAILABLE"
    assert sorted(view for view, _ in room.store.reads[1:]) == ["customer_profile", VIEW]


async def test_what_was_missed_is_filled_before_it_is_answered(room: Room) -> None:
    room.announce(7)
    [missed] = room.get(1)
    answered(missed)
    [hit] = room.get(1)
    answered(hit)
    assert len(room.store.reads) == 1


@pytest.mark.parametrize(("announced", "in_database"), [(7, 9), (9, 7)])
async def test_an_answer_from_both_says_the_lower_position(room: Room, announced: int, in_database: int) -> None:
    room.announce(announced)
    room.store.as_of = Token(FEED, in_database)
    FakeCache.entries[uuid.UUID(int=1).hex] = encode_entry(b"")
    response = queries.BatchGetProductsResponse.FromString(answered(room.get_many(1, 2, 0)))
    assert decode_token(response.as_of) == Token(FEED, 7)
    assert (len(response.products), list(response.missing_product_ids)) == (2, [str(uuid.UUID(int=0))])
    assert [len(keys) for _, keys in room.store.reads] == [2]


async def test_what_is_of_two_feeds_is_read_from_the_database_alone(room: Room) -> None:
    room.announce(9, LATER_FEED)
    FakeCache.entries[uuid.UUID(int=1).hex] = encode_entry(b"")
    response = queries.BatchGetProductsResponse.FromString(answered(room.get_many(1, 2)))
    assert decode_token(response.as_of) == Token(FEED, 7)
    assert [len(keys) for _, keys in room.store.reads] == [1, 2]


async def test_what_is_of_two_generations_is_read_from_the_database_alone(room: Room) -> None:
    """The view was exchanged between the two reads: the cached row need not include what the database does."""
    room.announce(7, generation=1)
    room.store.as_of = Token(FEED, 9, generation=2)
    FakeCache.entries[uuid.UUID(int=1).hex] = encode_entry(b"")
    response = queries.BatchGetProductsResponse.FromString(answered(room.get_many(1, 2)))
    assert decode_token(response.as_of) == Token(FEED, 9)
    assert [len(keys) for _, keys in room.store.reads] == [1, 2]


async def test_what_is_not_there_is_named(room: Room) -> None:
    [call] = room.get(0)
    error = failure(call)
    assert isinstance(error, NotFound)
    assert (error.resource_type, error.resource_name) == ("product", f"products/{uuid.UUID(int=0)}")


async def test_a_long_request_is_put_into_the_queue_by_the_thread_that_receives(room: Room) -> None:
    room.announce(7)
    FakeCache.entries[uuid.UUID(int=1).hex] = encode_entry(b"")
    one = queries.GetProductRequest(product_id=str(uuid.UUID(int=1)))
    long = queries.GetProductRequest.FromString(one.SerializeToString() * 200)
    for request in (one, long):
        call = LocalCall(Method("GetProduct", queries.GetProductRequest), request, seconds=60)
        call.payload = request.SerializeToString() if request is one else one.SerializeToString() * 200
        room.rows.workers["GetProduct"].answer_inline([call])
        answered(call)
        assert (FakeCache.asked_by == threading.get_ident()) == (request is one)


@pytest.mark.parametrize("value", [b"\xff", ProductCard(product_id=str(uuid.UUID(int=2))).SerializeToString()])
async def test_a_damaged_row_fails_the_calls_that_want_it_alone_and_fills_nothing(room: Room, value: bytes) -> None:
    room.announce(7)
    damaged = uuid.UUID(int=1).hex
    room.store.others[damaged] = value
    before = sample("tandem_damaged_rows_total", view=VIEW) or 0
    room.store.go.clear()
    # One is read, and the others wait to be read together.
    [first] = room.get(9)
    assert room.store.begun.acquire(timeout=LONG)
    [one, other], both = room.get(1, 2), room.get_many(1, 3)
    while room.rows._all[0].waiting < 3:
        await_turn()
    room.store.go.set()
    answered(first)
    for call in (one, both):
        assert failure(call).reason == "ROW_DAMAGED"
        assert failure(call).metadata == {"view": VIEW, "key": damaged}
    assert queries.GetProductResponse.FromString(answered(other)).product.product_id == str(uuid.UUID(int=2))
    assert damaged not in FakeCache.entries
    assert sample("tandem_damaged_rows_total", view=VIEW) == before + 1


@pytest.mark.parametrize("cached", [[], [1, 2, 3], [2]], ids=["stored", "cached", "both"])
async def test_an_answer_with_too_many_bytes_ends_early_and_names_the_rest(room: Room, cached: list[int]) -> None:
    room.announce(7)
    ids = [str(uuid.UUID(int=it)) for it in (1, 2, 3)]
    cards = [ProductCard(product_id=it, description="d" * 700).SerializeToString() for it in ids]
    room.store.others = {it.replace("-", ""): card for it, card in zip(ids, cards, strict=True)}
    FakeCache.entries.update({uuid.UUID(int=it).hex: encode_entry(cards[it - 1]) for it in cached})
    request = queries.BatchGetProductsRequest(product_ids=ids)
    shown = []
    while request.product_ids:
        # Of which three quarters are for rows: one fits, and half of the next.
        [call] = room.ask("BatchGetProducts", request, most=1500)
        response = queries.BatchGetProductsResponse.FromString(answered(call))
        shown += [len(response.products)]
        assert list(response.remaining_product_ids) == list(request.product_ids)[1:]
        assert response.as_of
        request = queries.BatchGetProductsRequest(product_ids=response.remaining_product_ids)
    assert shown == [1, 1, 1]
