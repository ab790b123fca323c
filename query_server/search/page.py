"""A page of a search, made of what its text found and of the cards as they are: as `page_statement` makes it. And the
response that shows it, with marks where the query was found.
"""

import uuid
from bisect import bisect
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from commerce.query.v1.query_service_pb2 import (
    AttributeFacet,
    CategoryCount,
    PriceRange,
    PriceStep,
    ProductFacets,
    ProductHit,
    ProductSort,
    SearchProductsResponse,
)
from commerce.query.v1.views_pb2 import ProductCard
from commerce.type.v1.money_pb2 import Money
from query_server.search.highlight import highlight, snippet
from query_server.search.memory import Alternatives, Candidates, Marked, Marks, SearchMemory
from query_server.search.request import SearchCursor, SearchKey, best, encode_search_token
from query_server.search.statements import MAX_FACETS, MOST_ATTRIBUTES, MOST_RANKED, STEPS, Shape
from query_server.search.synonyms import Span
from shop.facets import SEPARATOR, name_and_value
from shop.views import product_card
from shop.words import halves_of
from tandem.feed.token import Token
from tandem.queries.damage import RowCheck
from tandem.queries.encoding import EncodedField, as_of_text
from tandem.queries.parked import Parked

_HITS = EncodedField(SearchProductsResponse, "hits")
_AS_OF = EncodedField(SearchProductsResponse, "as_of")
_PRODUCT = EncodedField(ProductHit, "product")
_NAME = EncodedField(ProductHit, "highlighted_name")
_DESCRIPTION = EncodedField(ProductHit, "highlighted_description")

_CHECK = RowCheck(product_card.name, ProductCard)

MAX_SHOWN_ATTRIBUTES = 15
MAX_SHOWN_VALUES = 20
"""Of an attribute: all that a page shows beside its products fits into a quarter of the largest answer."""
MOST_MINOR_UNITS = 2**63 - 1
# Of one query, on some pages.
_MOST_MARKED = 100

# What comes first has most of it: of the score, the position at which it was added, the price, what is in stock, and
# what was sold.
_RANKS: dict[int, Callable[[int, int, int, bool, int], int]] = {
    ProductSort.PRODUCT_SORT_RELEVANCE: lambda score, _added, _price, in_stock, _sold: 2 * score + in_stock,
    ProductSort.PRODUCT_SORT_NEWEST: lambda _score, added, _price, _in_stock, _sold: added,
    ProductSort.PRODUCT_SORT_PRICE_ASC: lambda _score, _added, price, _in_stock, _sold: -price,
    ProductSort.PRODUCT_SORT_PRICE_DESC: lambda _score, _added, price, _in_stock, _sold: price,
    ProductSort.PRODUCT_SORT_SALES: lambda _score, _added, _price, _in_stock, sold: sold,
}
_BY_TEXT = (ProductSort.PRODUCT_SORT_RELEVANCE, ProductSort.PRODUCT_SORT_NEWEST)

Card = tuple[int, str, int, int, bytes | None]
"""A row of product_card: price, currency, how many can be ordered and were sold, and the value where it was asked for.
"""

Hit = tuple[bytes, bytes]
"""A product's key, and its card."""


class SearchPage(NamedTuple):
    """hits: one more than the page holds where another page follows. last_rank: of the page's last.

    categories: (name, count). prices: (currency, lowest, highest). attributes: (facet, count). steps: (currency, number
    of the step of price, count). explained: of each hit the parts of its score but the last, the score, whether it is
    in stock, and what it is sorted by.
    """

    hits: Sequence[Hit]
    last_rank: int
    total: int
    in_stock: int
    truncated: bool
    categories: Sequence[tuple[str, int]]
    prices: Sequence[tuple[str, int, int]]
    attributes: Sequence[tuple[str, int]] = ()
    steps: Sequence[tuple[str, int, int]] = ()
    explained: Sequence[tuple[Sequence[int], int, bool, int]] = ()


class Found(NamedTuple):
    """What a search found. alternatives: for each word what it was taken for too. as_of: the views were there, or
    later. did_you_mean: a query that was not searched for, or "". by_engine: whether a search engine gave the scores.
    """

    alternatives: Alternatives
    page: SearchPage
    as_of: Token
    parked: Parked
    did_you_mean: str
    by_engine: bool = False


def page_of_row(row: Any, shape: Shape) -> SearchPage:
    """Of a `page_statement`."""
    return SearchPage(
        hits=list(zip(row.keys or (), row.values or (), strict=True)),
        last_rank=row.last_rank,
        total=row.total,
        in_stock=row.in_stock,
        truncated=row.candidates == MOST_RANKED,
        categories=row.categories or (),
        prices=row.prices or (),
        attributes=(row.attributes or ()) if shape.detailed else (),
        steps=(row.steps or ()) if shape.detailed else (),
        explained=(row.explained or ()) if shape.explained else (),
    )


def page_of_cards(wanted: SearchKey, candidates: Candidates, cards: Mapping[bytes, Card]) -> SearchPage | None:
    """The page; None where it shows a card whose value was not asked for. A product without a card is not there yet."""
    hits: list[tuple[int, bytes, bytes | None]] = []
    in_stock = 0
    categories: list[str] = []
    prices: defaultdict[str, list[int]] = defaultdict(list)
    only, currency_wanted, after = wanted.categories, wanted.currency_code, _after(wanted)
    rank_of = _RANKS[wanted.sort]
    attributes: list[str] = []
    looks_at_attributes = wanted.looks_at_attributes
    for key, score, added, category, its_attributes in candidates:
        card = cards.get(key)
        if card is None:
            continue
        price, currency, available, sold, value = card
        has_stock = available > 0
        stock_fits = has_stock or not wanted.in_stock
        category_fits = not only or category in only
        price_fits = not currency_wanted or (currency == currency_wanted and _is_between(price, wanted))
        if looks_at_attributes:
            facets = its_attributes.split(SEPARATOR) if its_attributes else []
            missing = [it for it, values in wanted.attributes if values.isdisjoint(facets)]
            if wanted.detailed and category_fits and price_fits and stock_fits and len(missing) < 2:
                attributes += [it for it in facets if it.startswith(missing[0])] if missing else facets
            if missing:
                continue
        if price_fits and stock_fits:
            categories.append(category)
        if category_fits and stock_fits:
            prices[currency].append(price)
        if category_fits and price_fits:
            in_stock += has_stock
            if stock_fits:
                hits.append((-rank_of(score, added, price, has_stock, sold), key, value))
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
        categories=_most_frequent(categories)[:MAX_FACETS],
        prices=sorted((currency, min(them), max(them)) for currency, them in prices.items())[:MAX_FACETS],
        attributes=_most_frequent(attributes)[:MOST_ATTRIBUTES] if wanted.detailed else (),
        steps=_steps(prices) if wanted.detailed else (),
    )


def _most_frequent(them: Iterable[str]) -> list[tuple[str, int]]:
    return sorted(sorted(Counter(them).items()), key=itemgetter(1), reverse=True)


def _steps(prices: Mapping[str, Iterable[int]]) -> list[tuple[str, int, int]]:
    counts = Counter((currency, bisect(STEPS, it)) for currency, them in prices.items() for it in them)
    return sorted((currency, step, count) for (currency, step), count in counts.items())


def likely_shown(wanted: SearchKey, candidates: Candidates) -> Iterable[bytes]:
    """The keys of the products that the page may show: all, where that depends on the cards."""
    is_filtered = wanted.categories or wanted.currency_code or wanted.in_stock or wanted.attributes
    if len(candidates) <= wanted.size + 1 or is_filtered or wanted.sort not in _BY_TEXT:
        return candidates.keys()
    after, rank_of = _after(wanted), _RANKS[wanted.sort]
    # Sold out, each is where it may come last. Those that are equally good as the last of the page may be before it.
    places = sorted((-rank_of(score, added, 0, False, 0), key) for key, score, added, *_ in candidates)
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


def encode_response(wanted: SearchKey, found: Found, memory: SearchMemory) -> bytes:
    """Raises Unavailable for a card that is damaged."""
    page, alternatives, as_of = found.page, found.alternatives, found.parked.shown_at(found.as_of)
    steps = steps_of(page) if page.steps else {}
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
                    steps=steps.get(currency, ()),
                )
                for currency, low, high in page.prices
            ],
            attributes=attributes_of(page) if page.attributes else (),
        ),
        did_you_mean=found.did_you_mean,
    )
    shown = page.hits[: wanted.size]
    if len(page.hits) > wanted.size:
        cursor = SearchCursor(page.last_rank, uuid.UUID(bytes=shown[-1][0]), alternatives, found.by_engine)
        rest.next_page_token = encode_search_token(cursor, *wanted.query)
    if (meant := best(wanted.words, alternatives)) != list(wanted.words):
        rest.corrected_query = " ".join(meant)
    pairs = zip(wanted.words, alternatives, strict=True)
    marked = (
        *(it for word, others in pairs for it in (word, *(others if others != (word,) else halves_of(word)))),
        *words_of_spans(wanted.spans),
    )
    marks = _marks(shown, marked, memory)
    hits = [_HITS(_PRODUCT(card) + fields) for (_, card), fields in zip(shown, marks, strict=True)]
    return b"".join([*hits, rest.SerializeToString(deterministic=True), _AS_OF(as_of_text(as_of))])


def steps_of(page: SearchPage) -> dict[str, list[PriceStep]]:
    """By currency."""
    steps: defaultdict[str, list[PriceStep]] = defaultdict(list)
    for currency, step, count in page.steps:
        highest = STEPS[step] - 1 if step < len(STEPS) else MOST_MINOR_UNITS
        steps[currency].append(
            PriceStep(
                lowest=Money(minor_units=STEPS[step - 1], currency_code=currency),
                highest=Money(minor_units=highest, currency_code=currency),
                count=count,
            )
        )
    return steps


def attributes_of(page: SearchPage) -> list[AttributeFacet]:
    facets: dict[str, AttributeFacet] = {}
    for facet, count in page.attributes:
        name, value = name_and_value(facet)
        if name not in facets and len(facets) == MAX_SHOWN_ATTRIBUTES:
            continue
        found = facets.setdefault(name, AttributeFacet(name=name))
        if len(found.values) < MAX_SHOWN_VALUES:
            found.values.add(value=value, count=count)
    return list(facets.values())


def words_of_spans(spans: Sequence[Span]) -> tuple[str, ...]:
    """What a query marks too."""
    return tuple([word for span in spans for phrase in span.synonyms for word in phrase])


def _marks(hits: Sequence[Hit], words: tuple[str, ...], memory: SearchMemory) -> list[bytes]:
    """Each hit's fields with marks. To make them takes ten times as long as all else of a hit.

    Raises Unavailable for a card that is damaged. One that is as it was is not looked at again.
    """
    kept = memory.marks.get(words) or {}
    found = []
    made: Marks = {}
    for key, card in hits:
        known = kept.get(key)
        if known is None or known.card != card:
            if (damage := _CHECK.failure(card, key.hex())) is not None:
                raise damage
            known = made[key] = (
                known._replace(card=card) if known is not None and known.holds_for(card) else _marked(card, words)
            )
        found.append(known.fields)
    if made:
        # Of this page and those before it, if there is room for as many. What others look at stays as it is.
        has_room = len(kept) < _MOST_MARKED or made.keys() <= kept.keys()
        memory.marks.put(words, {**kept, **made} if has_room else made)
    return found


def _marked(card: bytes, words: tuple[str, ...]) -> Marked:
    parsed = ProductCard.FromString(card)
    name, description = highlight(parsed.name, words), snippet(parsed.description, words)
    texts = ProductCard(product_id=parsed.product_id, name=parsed.name, description=parsed.description).ByteSize()
    return Marked(card, texts, _NAME(name.encode()) + _DESCRIPTION(description.encode()))
