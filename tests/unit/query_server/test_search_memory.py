"""What searches remember takes no more than it may, and is told about what it takes."""

import tracemalloc
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from commerce.query.v1.views_pb2 import ProductCard
from query_server.search.memory import (
    Candidates,
    Correction,
    Lru,
    Marked,
    SearchMemory,
    SuggestionKey,
    Suggestions,
    TextKey,
)
from query_server.search.page import _marks as marks_of
from query_server.search.synonyms import Span

CONTENT = uuid.uuid4()


def candidates(number: int, count: int = 14) -> Candidates:
    keys = b"".join([(number * 1000 + it).to_bytes(16, "big") for it in range(count)])
    scores = range(10**6, 10**6 + count)
    return Candidates(CONTENT, keys, scores, scores, [f"Category {it % 5}" for it in range(count)])


def test_candidates_come_back_as_they_were() -> None:
    found = [(bytes([it]) * 16, -it, 2**40 + it, "Tea", "") for it in range(3)]
    keys, scores, added, categories, _ = zip(*found, strict=True)
    kept = Candidates(CONTENT, b"".join(keys), scores, added, categories)
    assert list(kept) == found
    assert kept.keys() == list(keys)
    assert list(Candidates(CONTENT, b"", [], [], [])) == []


def test_what_was_not_asked_for_the_longest_goes_first() -> None:
    kept: Lru[str, int] = Lru(30, lambda _key, _value: 10)
    for name in ("a", "b", "c"):
        kept.put(name, 1)
    assert kept.get("a") == 1
    kept.put("d", 1)
    assert [kept.get(it) for it in "abcd"] == [1, None, 1, 1]


def test_an_entry_that_is_replaced_takes_no_room_any_more() -> None:
    kept: Lru[str, int] = Lru(30, lambda _key, size: size)
    for _ in range(5):
        kept.put("a", 20)
    assert (kept.get("a"), kept.bytes) == (20, 20)
    kept.put("a", 31)
    assert (kept.get("a"), kept.bytes) == (None, 0)


def test_a_memory_without_room_keeps_nothing() -> None:
    memory = SearchMemory(0)
    memory.candidates.put(TextKey(("a",), (), (), False, False), candidates(1))
    assert memory.candidates.get(TextKey(("a",), (), (), False, False)) is None


def _find(memory: SearchMemory, number: int) -> None:
    words = (f"walnut{number}", f"chair{number}")
    memory.candidates.put(TextKey(words, (), (), False, False), candidates(number))


def _correct(memory: SearchMemory, number: int) -> None:
    memory.corrections.put(f"walnut{number}", Correction(CONTENT, (f"walnuts{number}", f"walrus{number}")))


def _mark(memory: SearchMemory, number: int) -> None:
    words = (f"walnut{number}", f"chair{number}")
    keys = [(number * 14 + it).to_bytes(16, "big") for it in range(14)]
    memory.marks.put(words, {key: Marked(key * 16, 12, key * 20) for key in keys})


def _find_by_a_forged_token(memory: SearchMemory, number: int) -> None:
    """A token's alternatives are a caller's, as long as a token may be."""
    alternatives = tuple(tuple(f"{it:x}{other}{number:058}" for other in range(3)) for it in range(10))
    memory.candidates.put(TextKey(tuple("abcdefghij"), alternatives, (), False, False), candidates(number, 1))


def _suggest(memory: SearchMemory, number: int) -> None:
    span = Span(0, 1, ((f"saint{number}",), (f"holy{number}", f"man{number}")))
    key = SuggestionKey((f"st{number}",), (span,))
    memory.suggestions.put(key, Suggestions(CONTENT, (f"street{number}",), (b"%d" % number * 20,) * 3))


@pytest.mark.parametrize("remember", [_find, _correct, _mark, _find_by_a_forged_token, _suggest])
def test_memory_is_bounded_by_what_is_really_taken(remember: Callable[[Any, int], None]) -> None:
    most = 4 * 2**20
    memory = SearchMemory(most)
    tracemalloc.start()
    try:
        # More than twice as many as there is room for, of the smallest.
        for number in range(3_000):
            remember(memory, number)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    told = memory.candidates.bytes + memory.corrections.bytes + memory.marks.bytes + memory.suggestions.bytes
    assert told < most
    assert taken < 1.2 * told


def test_a_card_whose_stock_changes_costs_the_others_no_marks() -> None:
    memory = SearchMemory(2**20)
    cards = [ProductCard(product_id=str(uuid.UUID(int=number)), name=f"walnut chair {number}") for number in range(100)]

    def marked() -> list[bytes]:
        hits = [(uuid.UUID(it.product_id).bytes, it.SerializeToString()) for it in cards]
        return marks_of(hits, ("walnut",), memory)

    before = marked()
    kept = memory.marks.get(("walnut",))
    assert kept is not None
    assert len(kept) == len(cards)
    cards[7].available = 3
    assert marked() == before
    now = memory.marks.get(("walnut",))
    assert now is not None
    assert [key for key in kept if now.get(key) is not kept[key]] == [uuid.UUID(int=7).bytes]
