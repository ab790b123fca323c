"""What the words of a query decide alone, kept until the texts of the products change.

Nothing is invalidated, and nothing grows too old: each entry names the content of its view that it is of, and
holds for rows that were read with the same content. It does not matter which database or replica they came from.
"""

import sys
import threading
import uuid
from array import array
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar

from query_server.search.synonyms import Span

Alternatives = tuple[tuple[str, ...], ...]
"""For each word of a query what it is taken for too, best first."""

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

# The objects around an entry; and for each hit with marks.
_ENTRY_BYTES = 600
_MARKED_BYTES = 300
_KEY_BYTES = 16
# A tuple.
_EMPTY_BYTES = 48


def _size_of(words: Sequence[str]) -> int:
    return sum(map(sys.getsizeof, words)) + 8 * len(words)


def split_keys(keys: bytes) -> list[bytes]:
    """Keys that are written one behind the other."""
    return [keys[at : at + _KEY_BYTES] for at in range(0, len(keys), _KEY_BYTES)]


class TextKey(NamedTuple):
    """What a text search depends on, beside the text."""

    words: tuple[str, ...]
    alternatives: Alternatives
    spans: tuple[Span, ...]
    include_discontinued: bool
    with_attributes: bool
    by_engine: bool = False

    @property
    def size(self) -> int:
        """In bytes."""
        synonyms = [it for span in self.spans for it in span.synonyms]
        return _size_of(self.words) + sum(_EMPTY_BYTES + _size_of(it) for it in (*self.alternatives, *synonyms))


class Candidates:
    """The products that a text search found, in little room. content: of product_search.

    Of each its key, its score, the position at which it was added, its category, and its attributes as `shop.facets`
    writes them, "" where the search does not look at them. keys: one behind the other.
    """

    def __init__(
        self,
        content: uuid.UUID,
        keys: bytes,
        scores: Iterable[int],
        added: Iterable[int],
        categories: Iterable[str],
        *,
        facets: Sequence[str] = (),
    ) -> None:
        self.content = content
        self._keys = keys
        self._scores = array("q", scores)
        self._added = array("q", added)
        # There are few categories.
        self._categories = tuple([sys.intern(it) for it in categories])
        self._facets = tuple([sys.intern(it) for it in facets])

    def __len__(self) -> int:
        return len(self._categories)

    def __iter__(self) -> Iterator[tuple[bytes, int, int, str, str]]:
        facets = self._facets or ("",) * len(self)
        return zip(self.keys(), self._scores, self._added, self._categories, facets, strict=True)

    @property
    def size(self) -> int:
        """In bytes."""
        return 40 * len(self) + sum(map(sys.getsizeof, self._facets))

    def keys(self) -> list[bytes]:
        return split_keys(self._keys)


class Correction(NamedTuple):
    """What a word is taken for too. content: of search_word. slip_for: a word that it may be a slip for, though the
    catalogue knows it, or "".
    """

    content: uuid.UUID
    alternatives: tuple[str, ...]
    slip_for: str = ""


class SuggestionKey(NamedTuple):
    """What suggestions depend on, beside the text. words: the last one is being typed."""

    words: tuple[str, ...]
    spans: tuple[Span, ...]

    @property
    def size(self) -> int:
        """In bytes."""
        return _size_of(self.words) + sum(_EMPTY_BYTES + _size_of(it) for span in self.spans for it in span.synonyms)


class Suggestions(NamedTuple):
    """What may be meant. content: of product_search. completed: what the last word may become. products: serialised."""

    content: uuid.UUID | None
    completed: tuple[str, ...]
    products: tuple[bytes, ...]

    @property
    def size(self) -> int:
        """In bytes."""
        return _size_of(self.completed) + sum(map(sys.getsizeof, self.products))


class Marked(NamedTuple):
    """What a query marks in a product. card: as it was found, and is not damaged. texts: how many bytes of it the
    texts take. fields: of the hit, serialised.
    """

    card: bytes
    texts: int
    fields: bytes

    def holds_for(self, card: bytes) -> bool:
        """Whether a card has the same texts.

        Fields are in the order of their numbers, and each text is behind its length. One that is empty is left out: the
        tag of what follows says that it still is.
        """
        beginning = self.card[: self.texts + 1]
        return len(beginning) > self.texts and card.startswith(beginning)


Marks = dict[bytes, Marked]
"""By the product's key."""


class Lru(Generic[K, V]):
    """Some entries; when they take too much, those that were not asked for the longest go. For several threads."""

    def __init__(self, most_bytes: int, size: Callable[[K, V], int]) -> None:
        """size: of an entry with its key, in bytes. Both are a caller's, or of a caller's length."""
        self._most = most_bytes
        self._size = size
        self._lock = threading.Lock()
        self._entries: OrderedDict[K, V] = OrderedDict()
        self.bytes = 0

    def get(self, key: K) -> V | None:
        with self._lock:
            found = self._entries.get(key)
            if found is not None:
                self._entries.move_to_end(key)
            return found

    def put(self, key: K, value: V) -> None:
        with self._lock:
            before = self._entries.pop(key, None)
            if before is not None:
                self.bytes -= self._size(key, before)
            self._entries[key] = value
            self.bytes += self._size(key, value)
            while self.bytes > self._most:
                self.bytes -= self._size(*self._entries.popitem(last=False))


def _size_of_marks(marks: Marks) -> int:
    return _ENTRY_BYTES + sum(_MARKED_BYTES + len(it.card) + len(it.fields) for it in marks.values())


class SearchMemory:
    """For all threads that search. Marks take most room, a kilobyte a hit, and are soonest made again."""

    def __init__(self, most_bytes: int) -> None:
        sixteenth = most_bytes // 16
        self.candidates = Lru[TextKey, Candidates](5 * sixteenth, lambda key, it: key.size + _ENTRY_BYTES + it.size)
        self.corrections = Lru[str, Correction](
            sixteenth, lambda key, it: _size_of((key,)) + _ENTRY_BYTES + _size_of((*it.alternatives, it.slip_for))
        )
        self.suggestions = Lru[SuggestionKey, Suggestions](
            2 * sixteenth, lambda key, it: key.size + _ENTRY_BYTES + it.size
        )
        self.marks = Lru[tuple[str, ...], Marks](8 * sixteenth, lambda key, it: _size_of(key) + _size_of_marks(it))
