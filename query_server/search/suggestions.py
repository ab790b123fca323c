"""SuggestProducts: what somebody who types may be about to look for.

Names that begin with what was typed are read from an index in their order, so many as are asked for. What has the words
further on is found by an index of the names' words, and a bounded number of it is looked at. What a text suggests
depends on the products' texts alone: it is remembered, and holds while `projection.content` is the same, as for
searches.
"""

import re
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

from commerce.internal.v1.stored_pb2 import ProductText
from commerce.query.v1.query_service_pb2 import ProductSuggestion, SuggestProductsRequest, SuggestProductsResponse
from query_server.search.highlight import highlight
from query_server.search.memory import SearchMemory, SuggestionKey, Suggestions
from query_server.search.page import words_of_spans
from query_server.search.request import MAX_WORDS
from query_server.search.statements import beginnings
from query_server.search.synonyms import NO_SYNONYMS, Synonyms
from shop.views import MAX_BEGINNING, NAME_DOCUMENT, product_search
from shop.words import MARKS, fold, is_unspaced, pairs_of, words_of
from tandem.queries.checker import QueryChecker
from tandem.queries.damage import RowCheck
from tandem.queries.encoding import EncodedField, as_of_text
from tandem.queries.parked import LookUp, Parked, parked_fields, parked_of
from tandem.queries.statements import Answer, StatementQuery, answer_each
from tandem.queries.store import AT, Store, position_of
from tandem.read_store.tables import SCHEMA, newest
from tandem.runtime.errors import TandemError

MAX_SUGGESTIONS = 20
_DEFAULT_SUGGESTIONS = 10
MOST_LOOKED_AT = 100
"""Of what has the words further on in its name: some of it, and no more than a millisecond's work."""
# Half of a catalogue has a word that begins so. Where enough names begin so, no others are looked for.
_SHORT = 2

_COMPLETED = EncodedField(SuggestProductsResponse, "completed_queries")
_PRODUCTS = EncodedField(SuggestProductsResponse, "products")
_AS_OF = EncodedField(SuggestProductsResponse, "as_of")
_CHECK = RowCheck(product_search.name, ProductText)
_WORD = re.compile(rf"\w[\w{MARKS}]*")
_LAST_WORD = re.compile(rf"\w[\w{MARKS}]*[^\w{MARKS}]*$")


class SuggestKey(NamedTuple):
    """What is asked for. key: what the suggestions depend on. before: what stands before the last word, as typed."""

    key: SuggestionKey
    before: str
    size: int


def _content(parked: str, looked_up: str) -> str:
    return f"SELECT {AT}, p.content, {parked} FROM {_POSITION} {looked_up}"  # noqa: S608 - names of ours, here and below


def _suggested(parked: str, looked_up: str) -> str:
    begins = f'"left"(plain_name, {MAX_BEGINNING})'
    typed = f'(SELECT "left"({SCHEMA}.plain(:typed), {MAX_BEGINNING}))'
    behind = f'(SELECT "left"({SCHEMA}.plain(:typed), {MAX_BEGINNING}) || chr(1114111))'
    return f"""
    WITH begun AS MATERIALIZED (
        SELECT key, value FROM {product_search.fullname}
        WHERE {begins} ~>=~ {typed} AND {begins} ~<~ {behind} AND NOT discontinued
        ORDER BY {begins} USING ~<~, key LIMIT {MAX_SUGGESTIONS}
    ), further AS MATERIALIZED (
        SELECT key, value, plain_name FROM {product_search.fullname}
        WHERE {NAME_DOCUMENT} @@ (SELECT to_tsquery('{SCHEMA}.search', :words)) AND NOT discontinued
            AND (NOT :short OR (SELECT count(*) FROM begun) < {MAX_SUGGESTIONS})
        LIMIT {MOST_LOOKED_AT}
    )
    SELECT {AT}, p.content, {parked}, found.*
    FROM {_POSITION} {looked_up} CROSS JOIN (
        SELECT array_agg(uuid_send(key)) AS keys, array_agg(value) AS values
        FROM (
            SELECT * FROM begun
            UNION ALL
            (SELECT key, value FROM further ORDER BY similarity(plain_name, {typed}) DESC, key)
        ) AS s
    ) AS found
    """  # noqa: S608


_POSITION = f"""{newest(f"'{product_search.name}'")} AS p"""
_VIEWS = {"p": product_search.name}
CONTENT = LookUp.of(_content, _VIEWS)
"""Where the view is, and which content it has."""
SUGGESTED = LookUp.of(_suggested, _VIEWS)


class SuggestQuery(StatementQuery[SuggestKey]):
    name = "SuggestProducts"
    kind = "suggestion"
    views = (product_search.name,)

    def __init__(
        self, store: Store, memory: SearchMemory, synonyms: Callable[[], Synonyms] = lambda: NO_SYNONYMS
    ) -> None:
        """store: its connections are set up by SESSION and ONE_PLAN. memory: of all threads. synonyms: those of now."""
        self._store = store
        self._memory = memory.suggestions
        self._synonyms = synonyms

    def wanted(self, request: Any, check: QueryChecker) -> SuggestKey:
        return suggest_key(request, check, self._synonyms())

    def read(self, wanted: Sequence[SuggestKey]) -> Iterator[Answer | TandemError]:
        known: Mapping[SuggestKey, Suggestions | None] = {it: self._recall(it) for it in wanted}
        at = self._read(CONTENT, {}) if any(it is not None for it in known.values()) else None

        def answer(key: SuggestKey) -> Answer:
            found = known[key]
            if at is None or found is None or (found.content != at.content and key.key.words):
                return self._in_full(key)
            return _answer(key, found, at)

        return answer_each(answer, wanted)

    def _recall(self, wanted: SuggestKey) -> Suggestions | None:
        return self._memory.get(wanted.key) if wanted.key.words else _NOTHING

    def _in_full(self, wanted: SuggestKey) -> Answer:
        words, spans = wanted.key
        arguments: dict[str, object] = {
            "typed": " ".join(pair for word in words for pair in pairs_of(word)),
            "words": beginnings(words, spans),
            "short": len(words) == 1 and len(words[0]) <= _SHORT,
        }
        row = self._read(SUGGESTED, arguments)
        found = _suggestions(wanted.key, row.content, zip(row.keys or (), row.values or (), strict=True))
        if row.content is not None:
            self._memory.put(wanted.key, found)
        return _answer(wanted, found, row)

    def _read(self, statement: LookUp, arguments: dict[str, object]) -> Any:
        [row] = statement.read(partial(self._store.execute_on, product_search.name, arguments=arguments))
        return row


_NOTHING = Suggestions(None, (), ())


def suggest_key(request: SuggestProductsRequest, check: QueryChecker, synonyms: Synonyms = NO_SYNONYMS) -> SuggestKey:
    """What the request asks for; `check` collects what is wrong with it."""
    # What is wrong, too long above all, is not looked at any further.
    text = "" if check.found_any else request.query
    words = tuple(words_of(text)[:MAX_WORDS])
    last = _LAST_WORD.search(text)
    before = text[: last.start()] if last else ""
    blank = " " if before[-1:].isspace() else ""
    size = request.max_suggestions or _DEFAULT_SUGGESTIONS
    return SuggestKey(SuggestionKey(words, synonyms.of(words)), " ".join(before.split()) + blank, size)


def _suggestions(key: SuggestionKey, content: uuid.UUID | None, rows: Iterable[tuple[bytes, bytes]]) -> Suggestions:
    """rows: their keys and values; one may come twice. Raises Unavailable for one that is damaged."""
    found: dict[bytes, ProductText] = {}
    for row, value in rows:
        if (damage := _CHECK.failure(value, row.hex())) is not None:
            raise damage
        found[row] = ProductText.FromString(value)
    marked = (*key.words, *words_of_spans(key.spans))
    products = [
        ProductSuggestion(
            product_id=str(uuid.UUID(bytes=row)),
            name=it.name,
            highlighted_name=highlight(it.name, marked),
            category=it.category,
        ).SerializeToString(deterministic=True)
        for row, it in islice(found.items(), MAX_SUGGESTIONS)
    ]
    return Suggestions(content, tuple(_completions(key.words[-1], (it.name for it in found.values()))), tuple(products))


def _completions(last: str, names: Iterable[str]) -> list[str]:
    """The words that `last` may become, those that most names have first, as the first of these has them."""
    if is_unspaced(last):
        return []
    shown: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for name in names:
        words = {fold(it): it for it in _WORD.findall(name)}
        for word, it in words.items():
            if word != last and word.startswith(last) and not is_unspaced(word):
                shown.setdefault(word, it.lower())
                counts[word] += 1
    best = sorted(counts.items(), key=lambda it: (-it[1], it[0]))[:MAX_SUGGESTIONS]
    return [shown[word] for word, _ in best]


def _answer(wanted: SuggestKey, found: Suggestions, at: Any) -> Answer:
    """at: a row of a LookUp of this file."""
    as_of, parked = position_of(at), parked_of(at)
    return Answer(_response(wanted, found, as_of_text(parked.shown_at(as_of)), parked), as_of, parked)


def _response(wanted: SuggestKey, found: Suggestions, as_of: bytes, parked: Parked) -> bytes:
    completed = [f"{wanted.before}{it}".encode() for it in found.completed[: wanted.size]]
    return b"".join(
        [
            _COMPLETED.each(completed),
            _PRODUCTS.each(found.products[: wanted.size]),
            _AS_OF(as_of),
            parked_fields(SuggestProductsResponse, parked),
        ]
    )
