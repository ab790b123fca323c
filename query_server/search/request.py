"""What a search asks for, and the token of its next page."""

import uuid
from dataclasses import dataclass
from typing import NamedTuple

from commerce.internal.v1.stored_pb2 import Alternatives as StoredAlternatives
from commerce.internal.v1.stored_pb2 import SearchPageToken
from commerce.query.v1.query_service_pb2 import ProductSort, SearchProductsRequest
from commerce.type.v1.money_pb2 import Money
from query_server.money import check_currency
from query_server.search.memory import Alternatives
from shop.views import product_card, product_search, search_word
from shop.words import normalized, query_words
from tandem.queries.checker import QueryChecker
from tandem.queries.page_token import MalformedPageToken, decode_stored, encode_stored, fingerprint

MAX_QUERY = 200
MAX_WORDS = 10
MAX_CATEGORIES = 50
# Ten words with three alternatives each, words of a catalogue that were corrected to.
_MAX_TOKEN = 10_000
_MAX_ALTERNATIVE = 60
_MAX_ALTERNATIVES = 3
# Once, and not for each search: Protobuf looks values of an enum up by their names.
_SORTS = frozenset(ProductSort.values())
_BY_RELEVANCE, _NEWEST = ProductSort.PRODUCT_SORT_RELEVANCE, ProductSort.PRODUCT_SORT_NEWEST

SEARCHED = (product_search.name, product_card.name, search_word.name)
"""Three views answer together: what is found, what it costs, and what a misspelled word may mean."""


@dataclass(frozen=True)
class SearchCursor:
    """Where a page of a search ended: the sort key and the id of its last product.

    alternatives: for each word of the query what it was taken for too; empty where nothing was.
    """

    rank: int
    key: uuid.UUID
    alternatives: Alternatives


def encode_search_token(cursor: SearchCursor, *query: str) -> str:
    """`query`: as for encode_page_token."""
    return encode_stored(_stored(cursor, query))


def _stored(cursor: SearchCursor, query: tuple[str, ...]) -> SearchPageToken:
    return SearchPageToken(
        query=fingerprint(query),
        rank=cursor.rank,
        product_id=cursor.key.bytes,
        alternatives=[StoredAlternatives(words=words) for words in cursor.alternatives],
    )


def decode_search_token(text: str, words: int, *query: str) -> SearchCursor:
    """The inverse of encode_search_token, for a query of so many words. Raises MalformedPageToken for anything else."""
    stored, is_made_of = decode_stored(SearchPageToken, text, _MAX_TOKEN)
    alternatives = tuple(tuple(it.words) for it in stored.alternatives)
    try:
        cursor = SearchCursor(stored.rank, uuid.UUID(bytes=stored.product_id), alternatives)
    except ValueError:
        raise MalformedPageToken from None
    # What is put into a statement: as many as this program makes, and no control characters.
    well_made = len(alternatives) in (0, words) and all(
        len(it) <= _MAX_ALTERNATIVES and all(len(word) <= _MAX_ALTERNATIVE and word.isprintable() for word in it)
        for it in alternatives
    )
    if not well_made or not is_made_of(_stored(cursor, query)):
        raise MalformedPageToken
    return cursor


class SearchKey(NamedTuple):
    """A search. words: of the query, as many as count. prices: inclusive, None without a bound.

    after: where the page before ended. query: what the page tokens of this search are bound to.
    """

    words: tuple[str, ...]
    categories: tuple[str, ...]
    currency_code: str
    min_price: int | None
    max_price: int | None
    in_stock: bool
    include_discontinued: bool
    sort: int
    after: SearchCursor | None
    size: int
    query: tuple[str, ...]

    @property
    def alternatives(self) -> Alternatives:
        """What the page before was corrected by."""
        return (self.after and self.after.alternatives) or ((),) * len(self.words)


def search_key(request: SearchProductsRequest, check: QueryChecker) -> SearchKey:
    """What the request asks for; `check` collects what is wrong with it."""
    # What is too long is not looked at any further.
    text = request.query if check.text("query", request.query, MAX_QUERY, unseen=True) else ""
    wanted = request.filter
    counted = enumerate(check.count("filter.categories", wanted.categories, MAX_CATEGORIES))
    named = {
        normalized("NFC", category)
        for number, category in counted
        if check.text(f"filter.categories[{number}]", category, 100, unseen=True)
    }
    currency_code, min_price, max_price = _prices(request, check)
    if request.sort not in _SORTS:
        check.wrong("sort", "MALFORMED", f"{request.sort} is no ProductSort")
    words = tuple(query_words(text)[:MAX_WORDS])
    default = _BY_RELEVANCE if words else _NEWEST
    browsing = request.sort == _BY_RELEVANCE and not words
    sort = default if browsing or not request.sort else request.sort
    categories = tuple(sorted(named))
    query = ("SearchProducts", *words, "", *categories, "", currency_code, str(min_price), str(max_price),
             str(wanted.in_stock), str(wanted.include_discontinued), str(sort))  # fmt: skip
    return SearchKey(
        words=words,
        categories=categories,
        currency_code=currency_code,
        min_price=min_price,
        max_price=max_price,
        in_stock=wanted.in_stock,
        include_discontinued=wanted.include_discontinued,
        sort=sort,
        after=check.page_token(request.page_token, decode_search_token, len(words), *query),
        size=check.page_size(request.page_size),
        query=query,
    )


def _prices(request: SearchProductsRequest, check: QueryChecker) -> tuple[str, int | None, int | None]:
    wanted = request.filter
    bounds: dict[str, Money] = {
        name: getattr(wanted, name) for name in ("min_price", "max_price") if wanted.HasField(name)
    }
    codes: dict[str, str] = {}
    for name, money in bounds.items():
        if money.minor_units < 0:
            check.wrong(f"filter.{name}.minor_units", "OUT_OF_RANGE", "must not be negative")
        if not money.currency_code:
            check.wrong(f"filter.{name}.currency_code", "REQUIRED", "is required")
        else:
            codes[name] = check_currency(check, f"filter.{name}.currency_code", money.currency_code)
    if len(bounds) == 2:
        if wanted.min_price.currency_code != wanted.max_price.currency_code:
            check.wrong("filter.max_price.currency_code", "INVALID", "must be the one of filter.min_price")
        elif wanted.min_price.minor_units > wanted.max_price.minor_units:
            check.wrong("filter.max_price.minor_units", "OUT_OF_RANGE", "must not be less than filter.min_price")
    low, high = bounds.get("min_price"), bounds.get("max_price")
    currency_code = next(iter(codes.values()), "")
    return currency_code, low.minor_units if low else None, high.minor_units if high else None
