"""SearchProducts: several searches together. Those whose text was searched for before need one statement for all."""

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

from commerce.query.v1.query_service_pb2 import SearchProductsResponse
from query_server.search.engine import EngineFound, EngineSearch, NoIndex
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
    encode_response,
    likely_shown,
    page_of_cards,
    page_of_row,
)
from query_server.search.request import SEARCHED, SearchKey, best, search_key
from query_server.search.statements import (
    ALTERNATIVES,
    CARDS,
    CARDS_OF_INDEX,
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


_ENGINE_RETRY_SECONDS = 1.0


class _Positions(NamedTuple):
    """What the three views were at, which content the text's had, and what of all three is parked.

    products: where their index was, for what a search engine found; and content is the one that is in the index.
    """

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

    def __init__(  # noqa: PLR0917 - what a search is made of
        self,
        search_store: Store,
        card_store: Store,
        memory: SearchMemory,
        room: int,
        synonyms: Callable[[], Synonyms] = lambda: NO_SYNONYMS,
        engine: EngineSearch | None = None,
    ) -> None:
        """search_store: its connections are set up by SESSION. card_store: reads rows by their keys.

        memory: of all threads. room: bytes that the cards of a page may take; with more the page ends early.
        synonyms: those of now. engine: finds products by their words, as long as it can.
        """
        self._synonyms = synonyms
        self._engine = engine
        self._search_store = search_store
        self._card_store = card_store
        self._memory = memory
        self._room = room

    @property
    def views(self) -> tuple[str, ...]:  # type: ignore[override]
        """With the index of the products as long as that is used: it is behind them."""
        return (self._engine.view, *SEARCHED) if self._engine is not None and self._engine.is_usable else SEARCHED

    def wanted(self, request: Any, check: QueryChecker) -> SearchKey:
        return search_key(request, check, self._synonyms())

    def read(self, wanted: Sequence[SearchKey]) -> Iterator[Answer | TandemError]:
        by_engine = {key: self._is_for_engine(key) for key in wanted}
        known = {key: it for key in wanted if (it := self._recall(key, by_engine[key])) is not None}
        read = {
            engine: self._read_cards(some, engine)
            for engine in (False, True)
            if (some := {key: it for key, it in known.items() if by_engine[key] is engine})
        }

        def answer(key: SearchKey) -> Answer:
            engine = by_engine[key]
            found = self._remembered(key, known[key], *read[engine], engine) if key in known else None
            return found or self._in_full(key, engine)

        return answer_each(answer, wanted)

    def _is_for_engine(self, wanted: SearchKey) -> bool:
        """Whether the search engine is to find the products: on later pages whoever found those of the first."""
        if wanted.after is not None:
            return wanted.after.by_engine
        return bool(wanted.words) and self._engine is not None and self._engine.is_usable

    def _recall(self, wanted: SearchKey, by_engine: bool) -> _Known | None:
        found = self._memory.candidates.get(_text_key(wanted, wanted.alternatives, by_engine))
        if found is None:
            return None
        corrections = self._corrections(wanted.words) if _may_be_misspelled(wanted) else []
        alternatives = _alternatives_of(corrections)
        corrected = (
            self._memory.candidates.get(_text_key(wanted, alternatives, by_engine)) if any(alternatives) else None
        )
        return _Known(found, corrections, corrected)

    def _corrections(self, words: Sequence[str]) -> list[Correction | None]:
        return [self._memory.corrections.get(word) for word in words]

    def _read_cards(
        self, known: Mapping[SearchKey, _Known], by_engine: bool
    ) -> tuple[Mapping[bytes, Card], _Positions]:
        """The cards that the searches need, as they are at one moment."""
        shown: set[bytes] = set()
        counted: set[bytes] = set()
        for wanted, it in known.items():
            for candidates in filter(None, (it.plain, it.corrected)):
                shown.update(likely_shown(wanted, candidates))
                counted.update(candidates.keys())
        arguments: dict[str, object] = {"shown": array("UUID", shown), "counted": array("UUID", counted - shown)}
        execute = partial(self._card_store.execute_on, product_search.name, arguments=arguments)
        [row] = execute(CARDS_OF_INDEX) if by_engine else CARDS.read(execute)
        columns = [it or () for it in (row.prices, row.currencies, row.available, row.units_sold, row.values)]
        cards = dict(zip(split_keys(row.keys or b""), zip(*columns, strict=True), strict=True))
        return cards, _positions(row)

    def _remembered(
        self, wanted: SearchKey, known: _Known, cards: Mapping[bytes, Card], at: _Positions, by_engine: bool
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
        return self._answer(wanted, Found(alternatives, page, _oldest(consulted), at.parked, did_you_mean, by_engine))

    def _in_full(self, wanted: SearchKey, by_engine: bool) -> Answer:
        return self._answer(wanted, self.find(wanted, by_engine=by_engine))

    def find(self, wanted: SearchKey, *, by_engine: bool | None = None, explained: bool = False) -> Found:
        """Searches in full. by_engine: None where nobody has decided it yet. Raises Unavailable."""
        if self._is_for_engine(wanted) if by_engine is None else by_engine:
            try:
                return self._find(wanted, True, explained)
            except NoIndex as error:
                if wanted.after is not None:
                    raise Unavailable(
                        "the search engine that found the page before cannot be asked now; a search that begins anew"
                        " is answered without it",
                        reason="STORE_UNAVAILABLE",
                        retry_after=_ENGINE_RETRY_SECONDS,
                    ) from error
        return self._find(wanted, False, explained)

    def _find(self, wanted: SearchKey, by_engine: bool, explained: bool) -> Found:
        """Raises NoIndex, where it is by the engine."""
        alternatives, did_you_mean = wanted.alternatives, ""
        page, at = self._page(wanted, alternatives, explained, by_engine)
        consulted = [at.products, at.cards]
        if _may_be_misspelled(wanted) and page.total < _TOO_FEW:
            corrections: Sequence[Correction | None] = self._corrections(wanted.words)
            words = at.words
            if not _hold(corrections, at):
                corrections, words = self._correct(wanted.words)
            alternatives = _alternatives_of(corrections)
            if any(alternatives):
                corrected, then = self._page(wanted, alternatives, explained, by_engine)
                # What finds nothing more is no correction.
                if corrected.total == page.total:
                    alternatives = wanted.alternatives
                else:
                    page, at = corrected, then
            else:
                did_you_mean = _did_you_mean(wanted.words, corrections)
            consulted = [at.products, at.cards, words]
        return Found(alternatives, page, _oldest(consulted), at.parked, did_you_mean, by_engine)

    def _answer(self, wanted: SearchKey, found: Found) -> Answer:
        shown = found.page.hits[: wanted.size]
        fits = fitting([len(card) for _, card in shown], self._room)
        if fits < len(shown):
            return self._in_full(wanted._replace(size=fits), found.by_engine)
        response = encode_response(wanted, found, self._memory)
        return Answer(response + parked_fields(SearchProductsResponse, found.parked), found.as_of, found.parked)

    def _page(
        self, wanted: SearchKey, alternatives: Alternatives, explained: bool, by_engine: bool
    ) -> tuple[SearchPage, _Positions]:
        """Searches for the words and their alternatives, and remembers what was found. Raises NoIndex."""
        after, by_index = wanted.after, self._ask_engine(wanted, alternatives) if by_engine else None
        shape = Shape(
            # The engine has looked for all of them.
            alternatives=() if by_engine else tuple(map(len, alternatives)),
            spans=() if by_engine else tuple([(it.first, it.length) for it in wanted.spans]),
            rare=by_engine or any(len(word) >= _RARE for word in wanted.words),
            attributes=wanted.looks_at_attributes,
            detailed=wanted.detailed,
            explained=explained,
            by_engine=by_engine,
        )
        arguments: dict[str, object] = {
            **(
                {"found_keys": array("UUID", by_index.keys), "found_scores": list(by_index.scores)}
                if by_index is not None
                else word_arguments(wanted.words, alternatives, wanted.spans)
            ),
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
        found, at = _candidates_of_row(row, shape), _positions(row)
        if by_index is not None and by_index.content != row.content:
            # The index has moved on meanwhile. What was found is of before, or in part of what is there now.
            found = None
            parked = [it for it in (at.parked, by_index.parked) if it.rows]
            at = at._replace(products=by_index.at, parked=min(parked, key=attrgetter("since"), default=at.parked))
        if found is not None:
            self._memory.candidates.put(_text_key(wanted, alternatives, by_engine), found)
        return page_of_row(row, shape), at

    def _ask_engine(self, wanted: SearchKey, alternatives: Alternatives) -> EngineFound:
        """Raises NoIndex."""
        if self._engine is None:
            raise NoIndex("there is none")
        return self._engine.find(wanted, alternatives)

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


def _text_key(wanted: SearchKey, alternatives: Alternatives, by_engine: bool) -> TextKey:
    return TextKey(
        wanted.words,
        alternatives if any(alternatives) else (),
        wanted.spans,
        wanted.include_discontinued,
        wanted.looks_at_attributes,
        by_engine,
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
