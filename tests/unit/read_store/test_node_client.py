"""A batch of entries from and to memcached, however the answer comes in pieces."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.read_store.memcached import MemcachedClient
from tandem.read_store.node import NodeClient, NodeError
from tandem.read_store.nodes import node_client

KEYS = [f"view:epoch:{number:032x}" for number in range(8)]
# What an answer's own lines look like may stand in an entry too.
VALUES = st.one_of(st.binary(max_size=40), st.sampled_from([b"END\r\n", b"\r\nEND\r\n", b"VALUE a 0 1\r\n", b"\r\n"]))


class Pieces:
    """A connection that answers with these, one each time it is asked."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = list(pieces)
        self.sent = b""
        self.closed = False

    def sendall(self, data: bytes) -> None:
        self.sent += data

    def recv(self, most: int) -> bytes:
        return self.pieces.pop(0) if self.pieces else b""

    def close(self) -> None:
        self.closed = True


def new_client(timeout: float) -> MemcachedClient:
    client = node_client("127.0.0.1:1", timeout=timeout)
    assert isinstance(client, MemcachedClient)
    return client


def connected(*pieces: bytes) -> tuple[MemcachedClient, Pieces]:
    client = new_client(1)
    client.sock = connection = Pieces(*pieces)
    return client, connection


def answer(entries: dict[str, bytes]) -> bytes:
    lines = [b"VALUE %b 0 %d\r\n%b\r\n" % (key.encode(), len(value), value) for key, value in entries.items()]
    return b"".join([*lines, b"END\r\n"])


@given(st.dictionaries(st.sampled_from(KEYS), VALUES), st.data())
def test_entries_are_the_same_however_the_answer_is_cut(entries: dict[str, bytes], data: st.DataObject) -> None:
    whole = answer(entries)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(whole) - 1), max_size=6)))
    pieces = [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    client, connection = connected(*pieces)

    assert client.ask(KEYS).answer() == entries
    assert connection.sent == b"get " + " ".join(KEYS).encode() + b"\r\n"
    assert not connection.closed


@pytest.mark.parametrize(
    "said",
    [
        pytest.param([b"SERVER_ERROR out of memory\r\n"], id="an error"),
        pytest.param([b"VALUE view:epoch:1 0 3\r\nab"], id="the end of the connection in an entry"),
        pytest.param([], id="the end of the connection"),
        pytest.param([b"END\r\nEND\r\n"], id="more than was asked for"),
        pytest.param([b"VALUE view:epoch:1 0\r\n"], id="a line that is not memcached's"),
    ],
)
def test_a_connection_that_is_out_of_step_is_closed(said: list[bytes]) -> None:
    client, connection = connected(*said)

    with pytest.raises((NodeError, OSError, ValueError)):
        client.ask(KEYS).answer()

    assert connection.closed
    assert client.sock is None


class Endless(Pieces):
    """Answers bit by bit, and never comes to the end."""

    def recv(self, most: int) -> bytes:
        return b"VALUE"


@pytest.mark.parametrize("command", [lambda it: it.ask(KEYS).answer(), lambda it: it.store({KEYS[0]: b""}, 60)])
def test_an_answer_that_never_ends_is_not_waited_for(command: Callable[[NodeClient], object]) -> None:
    client = new_client(0.01)
    client.sock = connection = Endless()
    with pytest.raises((TimeoutError, NodeError)):
        command(client)
    assert connection.closed


@given(st.lists(st.dictionaries(st.sampled_from(KEYS), VALUES), min_size=1, max_size=4), st.data())
def test_answers_come_in_the_order_of_what_was_asked_for(asked: list[dict[str, bytes]], data: st.DataObject) -> None:
    whole = b"".join(map(answer, asked))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(whole) - 1), max_size=6)))
    pieces = [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    client, connection = connected(*pieces)

    for _ in asked:
        client.ask(KEYS)
    assert [client.answer() for _ in asked] == asked
    assert not connection.closed


def test_what_a_closed_connection_was_asked_for_is_forgotten() -> None:
    client, _ = connected(answer({}) + answer({}))
    client.ask(KEYS).ask(KEYS).answer()
    client.close()
    with pytest.raises(AssertionError):
        client.answer()


ENTRIES = {f"view:epoch:{number:032x}": b"entry %d" % number for number in range(3)}


@given(st.sets(st.integers(1, 23), max_size=6))
def test_entries_are_stored_when_each_is_confirmed_however_the_answer_is_cut(cuts: set[int]) -> None:
    whole = b"STORED\r\n" * 3
    pieces = [whole[start:end] for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(whole)], strict=True)]
    client, connection = connected(*pieces)

    client.store(ENTRIES, 60)

    assert connection.sent == b"".join(
        b"set %b 0 60 7\r\n%b\r\n" % (key.encode(), entry) for key, entry in ENTRIES.items()
    )
    assert connection.pieces == []
    assert not connection.closed


@pytest.mark.parametrize(
    "said",
    [
        pytest.param([b"STORED\r\nERROR\r\nSTORED\r\n"], id="an error"),
        pytest.param([b"STORED\r\nSTORED\r\nNOT_STORED\r\n"], id="an entry that was not stored"),
        pytest.param([b"STORED\r\nSTORED\r\n"], id="the end of the connection"),
        pytest.param([b"STORED\r\n" * 4], id="more than was sent"),
        pytest.param([b"STORED\r\nSERVER_ERROR\r\nSTORED\r\n"], id="an error that says nothing"),
    ],
)
def test_an_entry_that_was_missed_is_noticed_and_the_connection_closed(said: list[bytes]) -> None:
    client, connection = connected(*said)

    with pytest.raises((NodeError, OSError)):
        client.store(ENTRIES, 60)

    assert connection.closed
    assert client.sock is None


REFUSED = b"STORED\r\nSERVER_ERROR object too large for cache\r\nSTORED\r\n"


@pytest.mark.parametrize("said", [b"DELETED\r\n", b"NOT_FOUND\r\n"])
def test_what_a_node_does_not_take_is_deleted_there(said: bytes) -> None:
    client, connection = connected(REFUSED, said)

    client.store(ENTRIES, 60)

    assert connection.sent.endswith(b"delete %b\r\n" % list(ENTRIES)[1].encode())
    assert connection.sent.count(b"delete") == 1
    assert not connection.closed


@pytest.mark.parametrize("said", [b"SERVER_ERROR out of memory\r\n", b"STORED\r\n", b""])
def test_what_is_neither_stored_nor_deleted_is_noticed_and_the_connection_closed(said: bytes) -> None:
    client, connection = connected(REFUSED, said)

    with pytest.raises((NodeError, OSError)):
        client.store(ENTRIES, 60)

    assert connection.closed


def test_entries_are_added_where_there_are_none() -> None:
    client, connection = connected(b"STORED\r\nNOT_STORED\r\nSERVER_ERROR out of memory storing object\r\n")

    assert client.add_missing(ENTRIES, 3) == {next(iter(ENTRIES))}
    assert connection.sent.startswith(b"add %b 0 3 7\r\nentry 0\r\n" % KEYS[0].encode())
    assert not connection.closed


def test_entries_are_replaced_that_are_as_they_were_found() -> None:
    found = b"VALUE %b 0 3 17\r\nold\r\nVALUE %b 0 0 18\r\n\r\nEND\r\n" % (KEYS[0].encode(), KEYS[1].encode())
    client, connection = connected(found, b"STORED\r\nEXISTS\r\n")

    entries = client.ask_with_cas(KEYS[:3])
    assert entries == {KEYS[0]: (b"old", b"17"), KEYS[1]: (b"", b"18")}
    client.replace_unchanged({KEYS[0]: (b"new", b"17"), KEYS[1]: (b"newer", b"18")}, 60)
    assert connection.sent.endswith(
        b"cas %b 0 60 3 17\r\nnew\r\ncas %b 0 60 5 18\r\nnewer\r\n" % (KEYS[0].encode(), KEYS[1].encode())
    )
    assert not connection.closed


@pytest.mark.parametrize("size", [b"-5", b"-1", b"1048577", b"99999999999999999999"])
@pytest.mark.parametrize("with_cas", [False, True])
def test_a_size_that_no_entry_has_ends_the_connection(size: bytes, with_cas: bool) -> None:
    line = b"VALUE %b 0 %b%b\r\n" % (KEYS[0].encode(), size, b" 7" if with_cas else b"")
    client, connection = connected(line, *[b"x" * 100] * 3)

    with pytest.raises(NodeError):
        client.ask_with_cas(KEYS) if with_cas else client.ask(KEYS).answer()

    assert connection.closed
    assert len(connection.pieces) == 3, "nothing more was read"


def test_an_answer_without_an_end_ends_the_connection() -> None:
    client, connection = connected(*[b"VALUE %b 0 1\r\nx\r\n" % KEYS[0].encode()] * 1_000_000)
    client.timeout = 0.01

    with pytest.raises(TimeoutError):
        client.ask(KEYS).answer()

    assert connection.closed


def test_more_entries_than_are_sent_together_are_all_stored() -> None:
    client, connection = connected(b"STORED\r\n" * 1_000, b"STORED\r\n")
    client.store({str(number): b"" for number in range(1_001)}, 60)
    assert connection.sent.count(b"set ") == 1_001
    client.store({}, 60)
    assert connection.sent.count(b"set ") == 1_001
