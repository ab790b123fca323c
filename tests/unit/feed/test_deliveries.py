"""Which events come into a message, and where the next one goes on."""

import uuid

import pytest

from tandem.feed.live import Entry
from tandem.feed.service import MAX_MESSAGE_BYTES, Selection, deliver
from tandem.feed.token import Token
from tandem.runtime.errors import Unavailable

EPOCH = uuid.uuid4()


def at(position: int) -> Token:
    return Token(EPOCH, position)


def entries(count: int, *, first: int = 1) -> list[Entry]:
    """Alternately of kind "even" and "odd", each about its number modulo 5."""
    return [
        Entry(number, "odd" if number % 2 else "even", frozenset({str(number % 5)}), b"%d;" % number)
        for number in range(first, first + count)
    ]


def numbers(items: list[bytes]) -> list[int]:
    return [int(item.rstrip(b";")) for item in items]


@pytest.mark.parametrize("most", [1, 3, 10])
@pytest.mark.parametrize(
    ("kinds", "ids"), [(set(), set()), ({"odd"}, set()), (set(), {"0", "3"}), ({"even"}, {"1"}), ({"none"}, set())]
)
def test_batches_one_after_the_other_hold_all_that_is_wanted_once(kinds: set[str], ids: set[str], most: int) -> None:
    rows = entries(57, first=4)
    selection = Selection(frozenset(kinds), frozenset(ids), max_events=most)
    found: list[int] = []
    position = 3
    while position < 60:
        batch = deliver(rows[position - 3 :], selection, after=at(position), head=60, read=lambda entry: entry)
        assert len(batch.items) <= most
        assert batch.position > position, "it moves on, also over what is not wanted"
        position = batch.position
        found += numbers(batch.items)
    wanted = [it for it in rows if (not kinds or it.kind in kinds) and (not ids or ids & it.ids)]
    assert found == [it.position for it in wanted]
    assert position == 60


def test_nothing_after_a_position_is_an_empty_batch_there() -> None:
    batch = deliver([], Selection(), after=at(9), head=9, read=lambda entry: entry)
    assert (batch.items, batch.position, batch.head) == ([], 9, 9)


def test_a_head_is_never_said_to_be_before_what_is_sent() -> None:
    batch = deliver(entries(3), Selection(), after=at(0), head=1, read=lambda entry: entry)
    assert (batch.position, batch.head) == (3, 3)


def test_a_message_takes_no_more_once_it_is_large() -> None:
    large = [Entry(number, "large", item=b"x" * (MAX_MESSAGE_BYTES // 3)) for number in range(1, 10)]
    batch = deliver(large, Selection(max_events=1000), after=at(0), head=9, read=lambda entry: entry)
    assert batch.position == len(batch.items) == 4


def test_only_what_may_be_wanted_is_read() -> None:
    read: list[int] = []

    def reading(entry: Entry) -> Entry:
        read.append(entry.position)
        return entry

    deliver(entries(100), Selection(kinds=frozenset({"odd"}), max_events=3), after=at(0), head=100, read=reading)
    assert read == [1, 3, 5]


def test_an_unreadable_event_ends_a_batch_before_it_and_fails_the_next_one() -> None:
    rows = [*entries(3), Entry(4, "even", unreadable="damaged"), *entries(2, first=5)]
    batch = deliver(rows, Selection(), after=at(0), head=6, read=lambda entry: entry)
    assert batch.position == 3
    with pytest.raises(Unavailable, match="event 4 cannot be read: damaged") as raised:
        deliver(rows[3:], Selection(), after=at(3), head=6, read=lambda entry: entry)
    assert raised.value.metadata == {"position": "4"}
    others = deliver(rows, Selection(kinds=frozenset({"odd"})), after=at(0), head=6, read=lambda entry: entry)
    assert numbers(others.items) == [1, 3, 5]
