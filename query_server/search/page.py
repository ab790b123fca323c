"""A page of a search, made of what its text found and of the cards as they are: as `page_statement` makes it. And the
response that shows it, with marks where the query was found.
"""

import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from commerce.query.v1.query_service_pb2 import (
    CategoryCount,
    PriceRange,
    ProductFacets,
    ProductHit,
    ProductSort,
    SearchProductsResponse,
)
from commerce.query.v1.views_pb2 import ProductCard
from commerce.type.v1.money_pb2 import Money
from query_server.search.highlight import highlight, snippet
from query_server.search.memory import Alternatives, Candidates, Marks, SearchMemory
from query_server.search.request import SearchCursor, SearchKey, encode_search_token
from query_server.search.statements import MAX_FACETS, MOST_RANKED
from shop.views import product_card
from shop.words import halves_of
from tandem.feed.token import Token
from tandem.queries.damage import RowCheck
from tandem.queries.encoding import EncodedField, as_of_text

_HITS = EncodedField(SearchProductsResponse, "hits")
_AS_OF = EncodedField(SearchProductsResponse, "as_of")
_PRODUCT = EncodedField(ProductHit, "product")
_NAME = EncodedField(ProductHit, "highlighted_name")
_DESCRIPTION = EncodedField(ProductHit, "highlighted_description")

_CHECK = RowCheck(product_card.name, ProductCard)

# Of one query, on some pages.
_MOST_MARKED = 100
_NO_MARKS = b"", b""

# What comes first has most of it: of the score, the position at which it was added, the price, and what is in stock.
_RANKS: dict[int, Callable[[int, int, int, bool], int]] = {
    ProductSort.PRODUCT_SORT_RELEVANCE: lambda score, _added, _price, in_stock: 2 * score + in_stock,
    ProductSort.PRODUCT_SORT_NEWEST: lambda _score, added, _price, _in_stock: added,
    ProductSort.PRODUCT_SORT_PRICE_ASC: lambda _score, _added, price, _in_stock: -price,
    ProductSort.PRODUCT_SORT_PRICE_DESC: lambda _score, _added, price, _in_stock: price,
}
_BY_TEXT = (ProductSort.PRODUCT_SORT_RELEVANCE, ProductSort.PRODUCT_SORT_NEWEST)

Card = tuple[int, str, int, bytes | None]
"""A row of product_card: price, currency, how many can be ordered, and the value where it was asked for."""

Hit = tuple[bytes, bytes]
"""A product's key, and its card."""


class SearchPage(NamedTuple):
    """hits: one more than the page holds where another page follows. last_rank: of the page's last.

    categories: (name, count). prices: (currency, lowest, highest).
    """

    hits: Sequence[Hit]
    last_rank: int
    total: int
    in_stock: int
    truncated: bool
    categories: Sequence[tuple[str, int]]
    prices: Sequence[tuple[str, int, int]]


def page_of_row(row: Any) -> SearchPage:
    """Of a `page_statement`."""
    return SearchPage(
        hits=list(zip(row.keys or (), row.values or (), strict=True)),
        last_rank=row.last_rank,
        total=row.total,
        in_stock=row.in_stock,
        truncated=row.candidates == MOST_RANKED,
        categories=row.categories or (),
        prices=row.prices or (),
    )


def page_of_cards(wanted: SearchKey, candidates: Candidates, cards: Mapping[bytes, Card]) -> SearchPage | None:
    """The page; None where it shows a card whose value was not asked for. A product without a card is not there yet."""
    hits: list[tuple[int, bytes, bytes | None]] = []
    in_stock = 0
    categories: list[str] = []
    prices: defaultdict[str, list[int]] = defaultdict(list)
    only, currency_wanted, after = wanted.categories, wanted.currency_code, _after(wanted)
    rank_of = _RANKS[wanted.sort]
    for key, score, added, category in candidates:
        card = cards.get(key)
        if card is None:
            continue
        price, currency, available, value = card
        has_stock = available > 0
        stock_fits = has_stock or not wanted.in_stock
        category_fits = not only or category in only
        price_fits = not currency_wanted or (currency == currency_wanted and _is_between(price, wanted))
        if price_fits and stock_fits:
            categories.append(category)
        if category_fits and stock_fits:
            prices[currency].append(price)
        if category_fits and price_fits:
            in_stock += has_stock
            if stock_fits:
                hits.append((-rank_of(score, added, price, has_stock), key, value))
    # No two are at one place.
    hits.sort()
    following = hits if after is None else [it for it in hits if it[:2] > after]
    page = following[: wanted.size + 1]
    shown = [(key, value) for _, key, value in page if value is not None]
    if len(shown) < len(page):
        return None
    return SearchPage(
        hits=shown,
        last_rank=-page[wanted.size - 1][0] if len(page) > wanted.size else 0,
        total=len(hits),
        in_stock=in_stock,
        truncated=False,
        categories=sorted(Counter(categories).items(), key=lambda it: (-it[1], it[0]))[:MAX_FACETS],
        prices=sorted((currency, min(them), max(them)) for currency, them in prices.items())[:MAX_FACETS],
    )


def likely_shown(wanted: SearchKey, candidates: Candidates) -> Iterable[bytes]:
    """The keys of the products that the page may show: all, where that depends on the cards."""
    is_filtered = wanted.categories or wanted.currency_code or wanted.in_stock
    if len(candidates) <= wanted.size + 1 or is_filtered or wanted.sort not in _BY_TEXT:
        return candidates.keys()
    after, rank_of = _after(wanted), _RANKS[wanted.sort]
    # Sold out, each is where it may come last. Those that are equally good as the last of the page may be before it.
    places = sorted((-rank_of(score, added, 0, False), key) for key, score, added, _ in candidates)
    following = [it for it in places if after is None or it > after]
    if len(following) <= wanted.size:
        return [key for _, key in following]
    last = following[wanted.size][0]
    return [key for rank, key in following if rank <= last]


def _after(wanted: SearchKey) -> tuple[int, bytes] | None:
    """Where the page before ended, as places are compared."""
    return None if wanted.after is None else (-wanted.after.rank, wanted.after.key.bytes)


def _is_between(price: int, wanted: SearchKey) -> bool:
    lowest, highest = wanted.min_price, wanted.max_price
    return (lowest is None or price >= lowest) and (highest is None or price <= highest)


def encode_response(
    wanted: SearchKey, alternatives: Alternatives, page: SearchPage, as_of: Token, memory: SearchMemory
) -> bytes:
    """Raises Unavailable for a card that is damaged."""
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
    for key, card in shown:
        if (damage := _CHECK.failure(card, key.hex())) is not None:
            raise damage
    if len(page.hits) > wanted.size:
        cursor = SearchCursor(page.last_rank, uuid.UUID(bytes=shown[-1][0]), alternatives)
        rest.next_page_token = encode_search_token(cursor, *wanted.query)
    if (meant := best(wanted.words, alternatives)) != list(wanted.words):
        rest.corrected_query = " ".join(meant)
    pairs = zip(wanted.words, alternatives, strict=True)
    marked = tuple([it for word, others in pairs for it in (word, *(others if others != (word,) else halves_of(word)))])
    marks = _marks(shown, marked, memory)
    hits = [_HITS(_PRODUCT(card) + fields) for (_, card), fields in zip(shown, marks, strict=True)]
    return b"".join([*hits, rest.SerializeToString(deterministic=True), _AS_OF(as_of_text(as_of))])


def best(words: Sequence[str], alternatives: Alternatives) -> list[str]:
    """The query as it was probably meant."""
    return [other[0] if other else word for word, other in zip(words, alternatives, strict=True)]


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
