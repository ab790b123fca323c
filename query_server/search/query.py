"""SearchProducts: several searches together. Those whose text was searched for before need one statement for all."""

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

from commerce.query.v1.query_service_pb2 import SearchProductsResponse
from query_server.search.memory import (
    Alternatives,
    Candidates,
    Correction,
    SearchMemory,
    TextKey,
    split_keys,
)
from query_server.search.page import (
    Card,
    Found,
    SearchPage,
    best,
    encode_response,
    likely_shown,
    page_of_cards,
    page_of_row,
)
from query_server.search.request import SEARCHED, SearchKey, search_key
from query_server.search.statements import (
    ALTERNATIVES,
    CARDS,
    MOST_REMEMBERED,
    STEPS,
    Shape,
    page_statement,
    swapped,
    word_arguments,
)
from query_server.search.synonyms import NO_SYNONYMS, Synonyms
from shop.views import product_search, search_word
from shop.words import fold, halves_of, pairs_of
from tandem.feed.token import Token
from tandem.queries.checker import QueryChecker
from tandem.queries.encoding import fitting
from tandem.queries.parked import Parked, parked_fields, parked_of
from tandem.queries.statements import Answer, StatementQuery, answer_each
from tandem.queries.store import Store, position_of
from tandem.runtime.arrays import array
from tandem.runtime.errors import TandemError, Unavailable

# With fewer the query may be misspelled: then what it may mean is looked for too.
_TOO_FEW = 3
# Few words begin with a word of so many letters; half of every catalogue has a word that begins with "s".
# Where one word of a query is rare, so are the products that have all of them.
_RARE = 4
_FIRST_ID = uuid.UUID(int=0)


class _Positions(NamedTuple):
    """What the three views were at, which content the text's had, and what of all three is parked."""

    products: Token
    cards: Token
    words: Token
    content: uuid.UUID | None
    word_content: uuid.UUID | None
    parked: Parked


class _Known(NamedTuple):
    """What is remembered for a search: what its words found, what they may mean, and what that found."""

    plain: Candidates
    corrections: Sequence[Correction | None]
    corrected: Candidates | None


class SearchQuery(StatementQuery[SearchKey]):
    name = "SearchProducts"
    kind = "search"
    views = SEARCHED

    def __init__(
        self,
        search_store: Store,
        card_store: Store,
        memory: SearchMemory,
        room: int,
        synonyms: Callable[[], Synonyms] = lambda: NO_SYNONYMS,
    ) -> None:
        """search_store: its connections are set up by SESSION. card_store: reads rows by their keys.

        memory: of all threads. room: bytes that the cards of a page may take; with more the page ends early.
        synonyms: those of now.
        """
        self._synonyms = synonyms
        self._search_store = search_store
        self._card_store = card_store
        self._memory = memory
        self._room = room

    def wanted(self, request: Any, check: QueryChecker) -> SearchKey:
        return search_key(request, check, self._synonyms())

    def read(self, wanted: Sequence[SearchKey]) -> Iterator[Answer | TandemError]:
        known = {key: it for key in wanted if (it := self._recall(key)) is not None}
        read = self._read_cards(known) if known else None

        def answer(key: SearchKey) -> Answer:
            found = self._remembered(key, known[key], *read) if read and key in known else None
            return found or self._in_full(key)

        return answer_each(answer, wanted)

    def _recall(self, wanted: SearchKey) -> _Known | None:
        found = self._memory.candidates.get(_text_key(wanted, wanted.alternatives))
        if found is None:
            return None
        corrections = self._corrections(wanted.words) if _may_be_misspelled(wanted) else []
        alternatives = _alternatives_of(corrections)
        corrected = self._memory.candidates.get(_text_key(wanted, alternatives)) if any(alternatives) else None
        return _Known(found, corrections, corrected)

    def _corrections(self, words: Sequence[str]) -> list[Correction | None]:
        return [self._memory.corrections.get(word) for word in words]

    def _read_cards(self, known: Mapping[SearchKey, _Known]) -> tuple[Mapping[bytes, Card], _Positions]:
        """The cards that the searches need, as they are at one moment."""
        shown: set[bytes] = set()
        counted: set[bytes] = set()
        for wanted, it in known.items():
            for candidates in filter(None, (it.plain, it.corrected)):
                shown.update(likely_shown(wanted, candidates))
                counted.update(candidates.keys())
        arguments: dict[str, object] = {"shown": array("UUID", shown), "counted": array("UUID", counted - shown)}
        [row] = CARDS.read(partial(self._card_store.execute_on, product_search.name, arguments=arguments))
        columns = [it or () for it in (row.prices, row.currencies, row.available, row.units_sold, row.values)]
        cards = dict(zip(split_keys(row.keys or b""), zip(*columns, strict=True), strict=True))
        return cards, _positions(row)

    def _remembered(
        self, wanted: SearchKey, known: _Known, cards: Mapping[bytes, Card], at: _Positions
    ) -> Answer | None:
        """What a search in full would find where the cards were read, or None where that is not known."""
        if known.plain.content != at.content:
            return None
        alternatives, consulted, did_you_mean = wanted.alternatives, [at.products, at.cards], ""
        page = page_of_cards(wanted, known.plain, cards)
        if page is not None and _may_be_misspelled(wanted) and page.total < _TOO_FEW:
            if not _hold(known.corrections, at):
                return None
            consulted.append(at.words)
            alternatives = _alternatives_of(known.corrections)
            if any(alternatives):
                if known.corrected is None or known.corrected.content != at.content:
                    return None
                corrected = page_of_cards(wanted, known.corrected, cards)
                if corrected is not None and corrected.total == page.total:
                    alternatives = wanted.alternatives
                else:
                    page = corrected
            else:
                did_you_mean = _did_you_mean(wanted.words, known.corrections)
        if page is None:
            return None
        return self._answer(wanted, Found(alternatives, page, _oldest(consulted), at.parked, did_you_mean))

    def _in_full(self, wanted: SearchKey) -> Answer:
        return self._answer(wanted, self.find(wanted))

    def find(self, wanted: SearchKey, *, explained: bool = False) -> Found:
        """Searches in full. Raises Unavailable."""
        alternatives, did_you_mean = wanted.alternatives, ""
        page, at = self._page(wanted, alternatives, explained)
        consulted = [at.products, at.cards]
        if _may_be_misspelled(wanted) and page.total < _TOO_FEW:
            corrections: Sequence[Correction | None] = self._corrections(wanted.words)
            words = at.words
            if not _hold(corrections, at):
                corrections, words = self._correct(wanted.words)
            alternatives = _alternatives_of(corrections)
            if any(alternatives):
                corrected, then = self._page(wanted, alternatives, explained)
                # What finds nothing more is no correction.
                if corrected.total == page.total:
                    alternatives = wanted.alternatives
                else:
                    page, at = corrected, then
            else:
                did_you_mean = _did_you_mean(wanted.words, corrections)
            consulted = [at.products, at.cards, words]
        return Found(alternatives, page, _oldest(consulted), at.parked, did_you_mean)

    def _answer(self, wanted: SearchKey, found: Found) -> Answer:
        shown = found.page.hits[: wanted.size]
        fits = fitting([len(card) for _, card in shown], self._room)
        if fits < len(shown):
            return self._in_full(wanted._replace(size=fits))
        response = encode_response(wanted, found, self._memory)
        return Answer(response + parked_fields(SearchProductsResponse, found.parked), found.as_of, found.parked)

    def _page(self, wanted: SearchKey, alternatives: Alternatives, explained: bool) -> tuple[SearchPage, _Positions]:
        """Searches for the words and their alternatives, and remembers what was found."""
        after = wanted.after
        shape = Shape(
            alternatives=tuple(map(len, alternatives)),
            spans=tuple([(it.first, it.length) for it in wanted.spans]),
            rare=any(len(word) >= _RARE for word in wanted.words),
            attributes=wanted.looks_at_attributes,
            detailed=wanted.detailed,
            explained=explained,
        )
        arguments: dict[str, object] = {
            **word_arguments(wanted.words, alternatives, wanted.spans),
            "query": " ".join(pair for word in best(wanted.words, alternatives) for pair in pairs_of(word)),
            "discontinued": wanted.include_discontinued,
            "any_category": not wanted.categories,
            "categories": list(wanted.categories),
            "currency": wanted.currency_code,
            "min_price": wanted.min_price,
            "max_price": wanted.max_price,
            "in_stock": wanted.in_stock,
            "sort": wanted.sort,
            "rank": after.rank if after else 2**63 - 1,
            "key": after.key if after else _FIRST_ID,
            "size": wanted.size,
        }
        if shape.attributes:
            arguments["attributes"] = [it for _, values in wanted.attributes for it in values]
            arguments["attribute_names"] = [name for name, _ in wanted.attributes]
        if shape.detailed:
            arguments["steps"] = STEPS
        [row] = self._search_store.execute_on(product_search.name, page_statement(shape), arguments)
        found = _candidates_of_row(row, shape)
        if found is not None:
            self._memory.candidates.put(_text_key(wanted, alternatives), found)
        return page_of_row(row, shape), _positions(row)

    def _correct(self, words: Sequence[str]) -> tuple[Sequence[Correction | None], Token]:
        """What each of the words is taken for too, and remembers it; with the position of the words' view."""
        others = [f"{number} {other}" for number, word in enumerate(words, start=1) for other in swapped(fold(word))]
        rows = self._search_store.execute_on(search_word.name, ALTERNATIVES, {"words": list(words), "swapped": others})
        found: list[list[str]] = [[] for _ in words]
        slips = [""] * len(words)
        for row in rows:
            if row.known:
                slips[row.number - 1] = row.plain_word
            elif row.number is not None:
                found[row.number - 1].append(row.plain_word)
        content = rows[0].content
        # A word without blanks is in no list of words: its halves are looked for.
        corrections = [
            Correction(content, (word,) if halves_of(word) else tuple(it), slip)
            for word, it, slip in zip(words, found, slips, strict=True)
        ]
        if content is not None:
            for word, correction in zip(words, corrections, strict=True):
                self._memory.corrections.put(word, correction)
        return corrections, position_of(rows[0])


def _oldest(consulted: Sequence[Token]) -> Token:
    """What an answer that was made of all of them shows at least. Raises Unavailable."""
    oldest = min(consulted, key=attrgetter("position"))
    if any(it.epoch != oldest.epoch for it in consulted if it is not oldest):
        raise Unavailable("the views of the products are being replaced", reason="STORE_UNAVAILABLE")
    return oldest


def _may_be_misspelled(wanted: SearchKey) -> bool:
    """On later pages the page token says what the first was corrected by."""
    return bool(wanted.words) and wanted.after is None


def _text_key(wanted: SearchKey, alternatives: Alternatives) -> TextKey:
    return TextKey(
        wanted.words,
        alternatives if any(alternatives) else (),
        wanted.spans,
        wanted.include_discontinued,
        wanted.looks_at_attributes,
    )


def _candidates_of_row(row: Any, shape: Shape) -> Candidates | None:
    """What the text found, if it may be remembered."""
    scores: Sequence[int] = row.found_scores or ()
    if row.content is None or len(scores) > MOST_REMEMBERED:
        return None
    return Candidates(
        row.content,
        row.found_keys or b"",
        scores,
        row.found_added or (),
        row.found_categories or (),
        facets=(row.found_facets or ()) if shape.attributes else (),
    )


def _positions(row: Any) -> _Positions:
    """Of CARDS or a `page_statement`."""
    return _Positions(
        products=position_of(row),
        cards=Token(row.card_epoch, row.card_position),
        words=Token(row.word_epoch, row.word_position),
        content=row.content,
        word_content=row.word_content,
        parked=parked_of(row),
    )


def _hold(corrections: Sequence[Correction | None], at: _Positions) -> bool:
    """Whether it is known of all words what they are taken for at these positions."""
    return all(it is not None and it.content == at.word_content for it in corrections)


def _did_you_mean(words: Sequence[str], corrections: Sequence[Correction | None]) -> str:
    """The query with one word for another, the longest that may be a slip: of those a slip is likeliest."""
    slips = [(len(word), -number) for number, word in enumerate(words) if (it := corrections[number]) and it.slip_for]
    if not slips:
        return ""
    slip = -max(slips)[1]
    meant = corrections[slip]
    assert meant is not None
    return " ".join([*words[:slip], meant.slip_for, *words[slip + 1 :]])


def _alternatives_of(corrections: Sequence[Correction | None]) -> Alternatives:
    return tuple([it.alternatives if it is not None else () for it in corrections])
