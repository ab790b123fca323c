"""ExplainSearch: how a query is read, and why what it finds stands where it does."""

import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from commerce.query.v1.query_service_pb2 import (
    ExplainSearchResponse,
    HitExplanation,
    ProductSort,
    QuerySynonym,
    QueryWord,
    ScorePart,
    SearchBoost,
    SearchProductsRequest,
)
from commerce.query.v1.views_pb2 import ProductCard
from query_server.search.page import Found
from query_server.search.query import SearchQuery
from query_server.search.request import SearchKey
from shop.views import product_card
from shop.words import halves_of
from tandem.queries.checker import QueryChecker
from tandem.queries.damage import RowCheck
from tandem.queries.encoding import as_of_text
from tandem.queries.parked import parked_fields
from tandem.queries.statements import Answer, StatementQuery, answer_each
from tandem.runtime.errors import TandemError

# In the order in which a `page_statement` adds them up; the name's is the last.
_OF_WORDS = (
    SearchBoost.SEARCH_BOOST_AS_WRITTEN,
    SearchBoost.SEARCH_BOOST_WORDS,
    SearchBoost.SEARCH_BOOST_WHOLE_WORDS,
    SearchBoost.SEARCH_BOOST_NAME,
)
_CHECK = RowCheck(product_card.name, ProductCard)


class ExplainQuery(StatementQuery[SearchKey]):
    name = "ExplainSearch"
    kind = "explanation"

    def __init__(self, searches: SearchQuery) -> None:
        self._searches = searches

    @property
    def views(self) -> tuple[str, ...]:  # type: ignore[override]
        return self._searches.views

    def wanted(self, request: Any, check: QueryChecker) -> SearchKey:
        search = SearchProductsRequest(
            query=request.query, filter=request.filter, sort=request.sort, page_size=request.page_size
        )
        return self._searches.wanted(search, check)

    def read(self, wanted: Sequence[SearchKey]) -> Iterator[Answer | TandemError]:
        return answer_each(self._explain, wanted)

    def _explain(self, wanted: SearchKey) -> Answer:
        found = self._searches.find(wanted, explained=True)
        response = ExplainSearchResponse(
            words=[
                QueryWord(word=word, taken_for=halves_of(word) if others == (word,) else others)
                for word, others in zip(wanted.words, found.alternatives, strict=True)
            ],
            synonyms=[
                QuerySynonym(
                    words=" ".join(wanted.words[span.first : span.first + span.length]),
                    synonyms=[" ".join(it) for it in span.synonyms],
                )
                for span in wanted.spans
            ],
            hits=_hits(wanted, found),
            as_of=as_of_text(found.parked.shown_at(found.as_of)).decode(),
        ).SerializeToString()
        return Answer(response + parked_fields(ExplainSearchResponse, found.parked), found.as_of, found.parked)


def _hits(wanted: SearchKey, found: Found) -> Iterator[HitExplanation]:
    """Raises Unavailable for a card that is damaged."""
    page = found.page
    for (key, card), (of_words, score, in_stock, rank) in zip(page.hits[: wanted.size], page.explained, strict=False):
        if (damage := _CHECK.failure(card, key.hex())) is not None:
            raise damage
        # As a rank by relevance has it: what is in stock decides where all else is equal.
        doubled = [2 * it for it in (*of_words, score - sum(of_words))] if wanted.words else []
        parts = [
            ScorePart(boost=boost, score=it)
            for boost, it in (
                *zip(_OF_WORDS, doubled, strict=False),
                (SearchBoost.SEARCH_BOOST_IN_STOCK, int(in_stock)),
            )
        ]
        yield HitExplanation(
            product_id=str(uuid.UUID(bytes=key)),
            name=ProductCard.FromString(card).name,
            score=sum(it.score for it in parts),
            parts=parts,
            sorted_by=0 if wanted.sort == ProductSort.PRODUCT_SORT_RELEVANCE else rank,
        )
