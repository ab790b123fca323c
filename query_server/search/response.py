"""The response: what a search found, with marks where it was found."""

import uuid
from collections.abc import Sequence
from typing import NamedTuple

from commerce.query.v1.query_service_pb2 import (
    CategoryCount,
    PriceRange,
    ProductFacets,
    ProductHit,
    SearchProductsResponse,
)
from commerce.query.v1.views_pb2 import ProductCard
from commerce.type.v1.money_pb2 import Money
from query_server.encoding import EncodedField
from query_server.page_token import SearchCursor, encode_search_token
from query_server.queries.highlight import highlight, plain, snippet
from query_server.queries.search.memory import Marks, SearchMemory
from query_server.queries.search.page import Hit, Page
from query_server.queries.search.request import Alternatives, SearchKey
from query_server.views import as_of_text
from tandem.feed.token import Token

_HITS = EncodedField(SearchProductsResponse, "hits")
_AS_OF = EncodedField(SearchProductsResponse, "as_of")
_PRODUCT = EncodedField(ProductHit, "product")
_NAME = EncodedField(ProductHit, "highlighted_name")
_DESCRIPTION = EncodedField(ProductHit, "highlighted_description")

# Of one query, on some pages.
_MOST_MARKED = 100
_NO_MARKS = b"", b""


class Found(NamedTuple):
    """What a search found: the response but for its as_of, serialised, and the position that it includes."""

    rest: bytes
    as_of: Token

    def response(self) -> bytes:
        """Serialised."""
        return self.rest + _AS_OF(as_of_text(self.as_of))


def response(wanted: SearchKey, alternatives: Alternatives, page: Page, memory: SearchMemory) -> bytes:
    """Serialised, but for its as_of."""
    rest = SearchProductsResponse(
        facets=ProductFacets(
            total_count=page.total,
            truncated=page.truncated,
            categories=[CategoryCount(category=category, count=count) for category, count in page.categories],
            in_stock_count=page.in_stock,
            prices=[
                PriceRange(
                    lowest=Money(minor_units=low, currency_code=currency),
                    highest=Money(minor_units=high, currency_code=currency),
                )
                for currency, low, high in page.prices
            ],
        ),
    )
    shown = page.hits[: wanted.size]
    if len(page.hits) > wanted.size:
        cursor = SearchCursor(page.last_rank, uuid.UUID(bytes=shown[-1][0]), alternatives)
        rest.next_page_token = encode_search_token(cursor, *wanted.query)
    if any(alternatives):
        rest.corrected_query = " ".join(best(wanted.words, alternatives))
    marked = tuple([plain(it) for number, word in enumerate(wanted.words) for it in (word, *_at(alternatives, number))])
    marks = _marks(shown, marked, memory)
    hits = [_HITS(_PRODUCT(card) + fields) for (_, card), fields in zip(shown, marks, strict=True)]
    return b"".join([*hits, rest.SerializeToString(deterministic=True)])


def best(words: Sequence[str], alternatives: Alternatives) -> list[str]:
    """The query as it was probably meant."""
    return [other[0] if other else word for word, other in zip(words, alternatives or ((),) * len(words), strict=True)]


def _at(alternatives: Alternatives, number: int) -> Sequence[str]:
    return alternatives[number] if alternatives else ()


def _marks(hits: Sequence[Hit], words: tuple[str, ...], memory: SearchMemory) -> list[bytes]:
    """Each hit's fields with marks. To make them takes ten times as long as all else of a hit."""
    kept = memory.marks.get(words) or {}
    found = []
    made: Marks = {}
    for key, card in hits:
        texts, fields = kept.get(key) or _NO_MARKS
        if not texts or not card.startswith(texts):
            texts, fields = made[key] = _mark(card, words)
        found.append(fields)
    if made:
        # Of this page and those before it, if there is room for as many. What others look at stays as it is.
        memory.marks.put(words, {**kept, **made} if len(kept) < _MOST_MARKED else made)
    return found


def _mark(card: bytes, words: tuple[str, ...]) -> tuple[bytes, bytes]:
    """What the card begins with as long as its texts are the same, b"" where that is not known; and the fields."""
    parsed = ProductCard.FromString(card)
    name, description = highlight(parsed.name, words), snippet(parsed.description, words)
    texts = ProductCard(product_id=parsed.product_id, name=parsed.name, description=parsed.description).ByteSize()
    # Fields are in the order of their numbers, and each text is behind its length. One that is empty is left out: the
    # tag of what follows says that it still is.
    beginning = card[: texts + 1] if len(card) > texts else b""
    return beginning, _NAME(name.encode()) + _DESCRIPTION(description.encode())
