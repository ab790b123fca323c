"""What a search engine is asked for a query: which products have its words, and how well.

It finds what `statements.page_statement` finds, by the same words of PostgreSQL's. Scores are sums of constants, and
depend on the query and the product alone: by a score that counts how rare a word is, each product that is added would
move others, shards and replicas would disagree, and a page would not go on where the one before ended. How alike a name
is to the query is added where the rows are read.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import text

from query_server.search.memory import Alternatives
from query_server.search.request import SearchKey, best
from query_server.search.statements import AS_WRITTEN, word_parts
from shop.product_index import PRODUCT_INDEX, WEIGHTS
from shop.words import halves_of, pairs_of
from tandem.feed.token import Token
from tandem.queries.index import FAILED, UNUSED, IndexReader
from tandem.queries.parked import Parked
from tandem.queries.store import AT, Store, position_of
from tandem.read_store.search_index import EngineAway, SearchRefused
from tandem.read_store.tables import SCHEMA, newest

Clause = dict[str, Any]
Lexemes = dict[str, tuple[Sequence[str], Sequence[str]]]
"""Of a word as the query has it: what PostgreSQL makes of it, as it is and as English stems."""

# Beside a word's beginnings: what PostgreSQL's ranking gives a whole word on top.
_WHOLE = 2.0

_STATE = text(f"""
SELECT {AT}, p.content, p.parked AS parked_rows, p.parked_since, p.index_name, (
    SELECT json_agg(json_build_array(
        word, tsvector_to_array(to_tsvector('{SCHEMA}.search', word)),
        tsvector_to_array(to_tsvector('{SCHEMA}.search_stem', word))
    )) FROM unnest(CAST(:words AS text[])) AS word
) AS lexemes
FROM {newest(f"'{PRODUCT_INDEX.view}'")} AS p
""")  # noqa: S608 - only names of ours are put in


class EngineFound(NamedTuple):
    """What the engine found, and where the index was before it was asked. keys: in hexadecimal digits."""

    keys: Sequence[str]
    scores: Sequence[float]
    at: Token
    content: object
    parked: Parked


class NoIndex(Exception):
    """The index cannot be used now, or not for this search."""


class EngineSearch:
    """For all threads that search."""

    def __init__(self, reader: IndexReader, store: Store) -> None:
        """store: as of SearchQuery."""
        self._reader = reader
        self._store = store

    @property
    def view(self) -> str:
        return self._reader.view

    @property
    def is_usable(self) -> bool:
        return self._reader.is_usable

    def find(self, wanted: SearchKey, alternatives: Alternatives) -> EngineFound:
        """Raises NoIndex and Unavailable."""
        if not self.is_usable:
            # Of searches that are answered together, the first one has found out.
            raise NoIndex("it rests, or is not announced")
        words = sorted(_all_words(wanted, alternatives))
        found = self._store.execute(_STATE, {"words": words})
        if not found or found[0].index_name is None:
            UNUSED.labels(self.view).inc()
            raise NoIndex("it is not filled")
        row = found[0]
        lexemes = {word: (plain or (), stems or ()) for word, plain, stems in row.lexemes or ()}
        body = query_of(wanted, alternatives, lexemes)
        try:
            hits = self._reader.search(row.index_name, body) if body is not None else []
        except (EngineAway, SearchRefused) as error:
            FAILED.labels(self.view).inc()
            raise NoIndex(str(error)) from error
        return EngineFound(
            [key for key, _ in hits],
            [score for _, score in hits],
            position_of(row),
            row.content,
            Parked(row.parked_rows, row.parked_since or 0) if row.parked_rows else Parked(),
        )


def _all_words(wanted: SearchKey, alternatives: Alternatives) -> set[str]:
    """All that PostgreSQL is to make words of."""
    words = {*wanted.words, *best(wanted.words, alternatives), *(it for others in alternatives for it in others)}
    words.update(it for span in wanted.spans for phrase in span.synonyms for it in phrase)
    halves = {half for word in wanted.words for half in halves_of(word)}
    return words | {pair for word in words | halves for pair in pairs_of(word)}


def query_of(wanted: SearchKey, alternatives: Alternatives, lexemes: Lexemes) -> dict[str, Any] | None:
    """The request's body; None for a query that nothing can be found by."""
    words = _Words(lexemes)
    spans = {span.first: span for span in wanted.spans}

    def part(first: int, count: int, field: str, *, as_written: bool = False, halves: bool = True) -> Clause | None:
        """One of the query's parts, a word or a span of them, in a field."""
        each = [
            words.word(wanted.words[number], () if as_written else alternatives[number], field, halves=halves)
            for number in range(first, first + count)
        ]
        choices = [_all(each)]
        if first in spans:
            synonyms = spans[first].synonyms
            choices += [_all(words.begins(it, field) for it in phrase) for phrase in synonyms]
            choices += [_all(words.stem(it, field) for it in phrase) for phrase in synonyms]
        return _any(choices)

    parts = list(word_parts(len(wanted.words), [(it.first, it.length) for it in wanted.spans]))
    found = _all(part(first, count, "words") for first, count in parts)
    if found is None:
        return None
    meant, scores = best(wanted.words, alternatives), []
    for first, count in parts:
        share = count / len(wanted.words)
        scores.append(
            _best_field(lambda it, at=(first, count): part(*at, it, halves=False), share)  # type: ignore[misc]
        )
        whole = meant[first : first + count]
        scores.append(_best_field(lambda it, them=whole: _all(words.whole(w, it) for w in them), _WHOLE * share))  # type: ignore[misc]
    if any(alternatives):
        written = _all(part(first, count, "words", as_written=True) for first, count in parts)
        scores.append(written and _scored(written, AS_WRITTEN))
    filters = [found] if wanted.include_discontinued else [found, {"term": {"discontinued": False}}]
    query = {"filter": filters, "should": [it for it in scores if it is not None], "minimum_should_match": 0}
    # The newest, where there are more: as PostgreSQL has it.
    return {"query": {"bool": query}, "sort": [{"added": "desc"}]}


class _Words:
    """Clauses for words, each None where PostgreSQL makes no word of it."""

    def __init__(self, lexemes: Lexemes) -> None:
        self._lexemes = lexemes

    def word(self, word: str, others: Sequence[str], field: str, *, halves: bool) -> Clause | None:
        """A word of the query: a word that begins with it, one with its stem, or what it is taken for too."""
        choices = [self.begins(word, field), self.stem(word, field)]
        if others == (word,):
            choices += [self.begins(it, field) for it in halves_of(word)] if halves else []
        else:
            choices += [self._exact(it, field) for it in others]
        return _any(choices)

    def begins(self, word: str, field: str) -> Clause | None:
        *pairs, last = pairs_of(word)
        clauses = [self._exact(it, field) for it in pairs]
        clauses += [{"prefix": {field: it}} for it in self._lexemes[last][0]]
        return _all(clauses)

    def whole(self, word: str, field: str) -> Clause | None:
        return _all(self._exact(it, field) for it in pairs_of(word))

    def stem(self, word: str, field: str) -> Clause | None:
        return _all({"term": {field: it}} for it in self._lexemes[word][1])

    def _exact(self, word: str, field: str) -> Clause | None:
        return _all({"term": {field: it}} for it in self._lexemes[word][0])


def _all(clauses: Iterable[Clause | None]) -> Clause | None:
    """As PostgreSQL has it: what is no word is no condition."""
    them = [it for it in clauses if it is not None]
    return {"bool": {"filter": them}} if len(them) > 1 else them[0] if them else None


def _any(clauses: Iterable[Clause | None]) -> Clause | None:
    them = [it for it in clauses if it is not None]
    return {"bool": {"should": them, "minimum_should_match": 1}} if len(them) > 1 else them[0] if them else None


def _scored(clause: Clause, score: float) -> Clause:
    return {"constant_score": {"filter": clause, "boost": score}}


def _best_field(clause_in: Callable[[str], Clause | None], score: float) -> Clause | None:
    """The field that counts most of those that have it."""
    clauses = [(clause_in(field), weight) for field, (_, weight) in WEIGHTS.items()]
    them = [_scored(clause, weight * score) for clause, weight in clauses if clause is not None]
    return {"dis_max": {"queries": them}} if them else None
