"""What is answered at once is what the method answers: requests known by their bytes, entries passed on as they are."""

import uuid

import pytest
from google.protobuf.message import DecodeError, Message
from hypothesis import given
from hypothesis import strategies as st

from query_server.by_id import MANY_ROWS, ONE_ROW, ById
from tandem.queries.checker import QueryChecker
from tandem.read_store.cache import PLACEHOLDER, encode_entry
from tandem.runtime.errors import InvalidArgument

QUERIES: list[ById] = [*ONE_ROW.values(), *MANY_ROWS.values()]
# Where the length of a value takes a byte more, and around it.
SIZES = [0, 1, 2, 125, 126, 127, 128, 129, 130, 131, 16_382, 16_383, 16_384, 16_385, 16_388, 70_000]

each_query = pytest.mark.parametrize("query", QUERIES, ids=lambda it: it.request.DESCRIPTOR.name)


def as_read(query: ById, request: bytes) -> list[str] | None:
    """The ids as they are found by parsing; None for a request that is wrong or wants more than rows."""
    try:
        message = query.request.FromString(request)
        check = QueryChecker(default_max_wait=0)
        rows = query.check_ids(message, check)
        check.finish()
    except (DecodeError, InvalidArgument):
        return None
    return None if message.HasField("consistency") else rows


def request_of(query: ById, ids: list[str]) -> Message:
    return query.request(**{query.id_field: ids if query in MANY_ROWS.values() else ids[0]})


@each_query
@given(ids=st.lists(st.uuids(), min_size=1, max_size=5, unique=True))
def test_ids_alone_are_known_by_their_bytes(query: ById, ids: list[uuid.UUID]) -> None:
    request = request_of(query, [str(it) for it in ids]).SerializeToString()
    assert query.ids_alone(request) == as_read(query, request)
    assert query.ids_alone(request) is not None


@each_query
@given(
    ids=st.lists(st.one_of(st.uuids().map(str), st.uuids().map(lambda it: str(it).upper()), st.text(max_size=40))),
    rest=st.binary(max_size=60),
)
def test_other_requests_are_read_in_peace(query: ById, ids: list[str], rest: bytes) -> None:
    request = request_of(query, ids or [""]).SerializeToString() + rest
    known = query.ids_alone(request)
    # What is known says what reading says; of several values for one id the last counts. Duplicates are for the check.
    read = as_read(query, request)
    assert known is None or read is None or known[-len(read) :] == read
    assert known is None or read is not None or len(set(known)) < len(known)


@each_query
@pytest.mark.parametrize("size", SIZES)
def test_an_entry_gives_the_field_that_its_value_gives(query: ById, size: int) -> None:
    value = b"\x0a" * size
    assert query.value_of(encode_entry(value)) == query.value(value)


@each_query
@given(entry=st.binary(max_size=200))
def test_what_is_no_entry_gives_no_field_that_is_not_whole(query: ById, entry: bytes) -> None:
    field = query.value_of(entry)
    assert field is None or query.value.encodes(field)


@each_query
def test_a_placeholder_and_no_entry_give_nothing(query: ById) -> None:
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
