"""What a search asks for, and the token of its next page."""

import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from commerce.internal.v1.stored_pb2 import Alternatives as StoredAlternatives
from commerce.internal.v1.stored_pb2 import SearchPageToken
from commerce.query.v1.query_service_pb2 import ProductFilter, ProductSort, SearchProductsRequest
from commerce.type.v1.money_pb2 import Money
from query_server.search.memory import Alternatives
from query_server.search.synonyms import NO_SYNONYMS, Span, Synonyms
from shop.facets import beginning, facet
from shop.views import product_card, product_search, search_word
from shop.words import normalized, query_words
from tandem.queries.checker import QueryChecker
from tandem.queries.page_token import MalformedPageToken, decode_stored, encode_stored, fingerprint

MAX_WORDS = 10
# Ten words with three alternatives each, words of a catalogue that were corrected to.
_MAX_TOKEN = 10_000
_MAX_ALTERNATIVE = 60
_MAX_ALTERNATIVES = 3
_CURRENCY = re.compile("[A-Z]{3}")
_BY_RELEVANCE, _NEWEST = ProductSort.PRODUCT_SORT_RELEVANCE, ProductSort.PRODUCT_SORT_NEWEST

SEARCHED = (product_search.name, product_card.name, search_word.name)
"""Three views answer together: what is found, what it costs, and what a misspelled word may mean."""


@dataclass(frozen=True)
class SearchCursor:
    """Where a page of a search ended: the sort key and the id of its last product.

    alternatives: for each word of the query what it was taken for too; empty where nothing was. by_engine: whether a
    search engine gave the score: PostgreSQL's is another.
    """

    rank: int
    key: uuid.UUID
    alternatives: Alternatives
    by_engine: bool = False


def encode_search_token(cursor: SearchCursor, *query: str) -> str:
    """`query`: as for encode_page_token."""
    return encode_stored(_stored(cursor, query))


def _stored(cursor: SearchCursor, query: tuple[str, ...]) -> SearchPageToken:
    return SearchPageToken(
        query=fingerprint(query),
        rank=cursor.rank,
        product_id=cursor.key.bytes,
        alternatives=[StoredAlternatives(words=words) for words in cursor.alternatives],
        by_engine=cursor.by_engine,
    )


def decode_search_token(text: str, words: int, *query: str) -> SearchCursor:
    """The inverse of encode_search_token, for a query of so many words. Raises MalformedPageToken for anything else."""
    stored, is_made_of = decode_stored(SearchPageToken, text, _MAX_TOKEN)
    alternatives = tuple(tuple(it.words) for it in stored.alternatives)
    try:
        cursor = SearchCursor(stored.rank, uuid.UUID(bytes=stored.product_id), alternatives, stored.by_engine)
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
    """A search. words: of the query, as many as count. spans: of them, those that others stand for. They are those of
    now on each page: servers may have read the file at different times. prices: inclusive, None without a bound.

    attributes: how the facets of each begin, and those of which a product has one (`shop.facets`). detailed: whether
    attributes are counted, and steps of price. after: where the page before ended. query: what the page tokens of this
    search are bound to.
    """

    words: tuple[str, ...]
    spans: tuple[Span, ...]
    categories: tuple[str, ...]
    currency_code: str
    min_price: int | None
    max_price: int | None
    in_stock: bool
    include_discontinued: bool
    attributes: tuple[tuple[str, frozenset[str]], ...]
    detailed: bool
    sort: int
    after: SearchCursor | None
    size: int
    query: tuple[str, ...]

    @property
    def looks_at_attributes(self) -> bool:
        return self.detailed or bool(self.attributes)

    @property
    def alternatives(self) -> Alternatives:
        """What the page before was corrected by."""
        return (self.after and self.after.alternatives) or ((),) * len(self.words)


def search_key(request: SearchProductsRequest, check: QueryChecker, synonyms: Synonyms = NO_SYNONYMS) -> SearchKey:
    """What the request asks for; `check` collects what is wrong with it."""
    wanted = request.filter
    # What is wrong, too long above all, is not looked at any further.
    text = "" if check.found_any else request.query
    named = set() if check.found_any else {normalized("NFC", category) for category in wanted.categories}
    currency_code, min_price, max_price = _prices(request, check)
    attributes = () if check.found_any else _attributes(wanted, check)
    words = tuple(query_words(text)[:MAX_WORDS])
    default = _BY_RELEVANCE if words else _NEWEST
    browsing = request.sort == _BY_RELEVANCE and not words
    sort = default if browsing or not request.sort else request.sort
    categories = tuple(sorted(named))
    query = ("SearchProducts", *words, "", *categories, "", currency_code, str(min_price), str(max_price),
             str(wanted.in_stock), str(wanted.include_discontinued), str(sort),
             *(it for _, values in attributes for it in sorted(values)))  # fmt: skip
    return SearchKey(
        words=words,
        spans=synonyms.of(words),
        categories=categories,
        currency_code=currency_code,
        min_price=min_price,
        max_price=max_price,
        in_stock=wanted.in_stock,
        include_discontinued=wanted.include_discontinued,
        attributes=attributes,
        detailed=request.detailed_facets,
        sort=sort,
        after=check.page_token(request.page_token, decode_search_token, len(words), *query),
        size=check.page_size(request.page_size),
        query=query,
    )


def _attributes(wanted: ProductFilter, check: QueryChecker) -> tuple[tuple[str, frozenset[str]], ...]:
    if not wanted.attributes:
        return ()
    found: dict[str, frozenset[str]] = {}
    for number, attribute in enumerate(wanted.attributes):
        values = frozenset(facet(attribute.name, it) for it in attribute.values)
        if found.setdefault(beginning(attribute.name), values) is not values:
            check.wrong(f"filter.attributes[{number}].name", "DUPLICATE", "is the name of an attribute before")
    return tuple(sorted(found.items(), key=lambda it: it[0]))


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
        elif not _CURRENCY.fullmatch(money.currency_code):
            check.wrong(f"filter.{name}.currency_code", "MALFORMED", "must be an ISO 4217 code such as USD")
        else:
            codes[name] = money.currency_code
    if len(bounds) == 2:
        if wanted.min_price.currency_code != wanted.max_price.currency_code:
            check.wrong("filter.max_price.currency_code", "INVALID", "must be the one of filter.min_price")
        elif wanted.min_price.minor_units > wanted.max_price.minor_units:
            check.wrong("filter.max_price.minor_units", "OUT_OF_RANGE", "must not be less than filter.min_price")
    low, high = bounds.get("min_price"), bounds.get("max_price")
    currency_code = next(iter(codes.values()), "")
    return currency_code, low.minor_units if low else None, high.minor_units if high else None


def best(words: Sequence[str], alternatives: Alternatives) -> list[str]:
    """The query as it was probably meant."""
    return [other[0] if other else word for word, other in zip(words, alternatives, strict=True)]
