"""A page of a search, made of what its text found and of the cards as they are: as `page_statement` makes it."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from commerce.query.v1.query_service_pb2 import ProductSort
from query_server.queries.search.memory import Candidates
from query_server.queries.search.request import SearchKey
from query_server.queries.search.statements import MAX_FACETS, MOST_RANKED

# What comes first has most of it: of the score, the position at which it was added, and the price.
_BY_TEXT: dict[int, Callable[[int, int, int], int]] = {
    ProductSort.PRODUCT_SORT_RELEVANCE: lambda score, _added, _price: score,
    ProductSort.PRODUCT_SORT_NEWEST: lambda _score, added, _price: added,
}
_RANKS: dict[int, Callable[[int, int, int], int]] = {
    **_BY_TEXT,
    ProductSort.PRODUCT_SORT_PRICE_ASC: lambda _score, _added, price: -price,
    ProductSort.PRODUCT_SORT_PRICE_DESC: lambda _score, _added, price: price,
}


Card = tuple[int, str, int, bytes | None]
"""A row of product_card: price, currency, how many can be ordered, and the value where it was asked for."""

Hit = tuple[bytes, bytes]
"""A product's key, and its card."""


class Page(NamedTuple):
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


def page_of_row(row: Any) -> Page:
    """Of a `page_statement`."""
    return Page(
        hits=list(zip(row.keys or (), row.values or (), strict=True)),
        last_rank=row.last_rank,
        total=row.total,
        in_stock=row.in_stock,
        truncated=row.candidates == MOST_RANKED,
        categories=row.categories or (),
        prices=row.prices or (),
    )


def page_of_cards(wanted: SearchKey, candidates: Candidates, cards: Mapping[bytes, Card]) -> Page | None:
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
                hits.append((-rank_of(score, added, price), key, value))
    # No two are at one place.
    hits.sort()
    following = hits if after is None else [it for it in hits if it[:2] > after]
    page = following[: wanted.size + 1]
    shown = [(key, value) for _, key, value in page if value is not None]
    if len(shown) < len(page):
        return None
    return Page(
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
    if len(candidates) <= wanted.size + 1 or not _is_decided_by_text(wanted):
        return candidates.keys()
    after, rank_of = _after(wanted), _RANKS[wanted.sort]
    places = sorted((-rank_of(score, added, 0), key) for key, score, added, _ in candidates)
    return [key for rank, key in places if after is None or (rank, key) > after][: wanted.size + 1]


def _is_decided_by_text(wanted: SearchKey) -> bool:
    filtered = wanted.categories or wanted.currency_code or wanted.in_stock
    return not filtered and wanted.sort in _BY_TEXT


def _after(wanted: SearchKey) -> tuple[int, bytes] | None:
    """Where the page before ended, as places are compared."""
    return None if wanted.after is None else (-wanted.after.rank, wanted.after.key.bytes)


def _is_between(price: int, wanted: SearchKey) -> bool:
    lowest, highest = wanted.min_price, wanted.max_price
    return (lowest is None or price >= lowest) and (highest is None or price <= highest)
