"""What a search asks for."""

from typing import NamedTuple

from commerce.query.v1.query_service_pb2 import ProductSort, SearchProductsRequest
from commerce.type.v1.money_pb2 import Money
from query_server.page_token import SearchCursor
from query_server.validation import Checker
from shop.views import product_card, product_search, search_word
from shop.words import words_of

MAX_QUERY = 200
MAX_WORDS = 10
MAX_CATEGORIES = 50
# Protobuf looks a value of an enum up by its name, slowly, each time.
_SORTS = frozenset(ProductSort.values())
_BY_RELEVANCE, _NEWEST = ProductSort.PRODUCT_SORT_RELEVANCE, ProductSort.PRODUCT_SORT_NEWEST

SEARCHED = (product_card.name, search_word.name, product_search.name)
"""Three views answer together: what is found, what it costs, and what a misspelled word may mean."""


Alternatives = tuple[tuple[str, ...], ...]
"""For each word of a query what it is taken for too, best first; empty where nothing is."""


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
        return self.after.alternatives if self.after else ()


def search_key(request: SearchProductsRequest, check: Checker) -> SearchKey:
    """What the request asks for; tells `check` what is wrong with it."""
    check.text("query", request.query, MAX_QUERY)
    wanted = request.filter
    if len(wanted.categories) > MAX_CATEGORIES:
        check.wrong("filter.categories", "OUT_OF_RANGE", f"holds {len(wanted.categories)}; at most {MAX_CATEGORIES}")
    for number, category in enumerate(wanted.categories[:MAX_CATEGORIES]):
        check.text(f"filter.categories[{number}]", category, 100)
    currency_code, min_price, max_price = _prices(request, check)
    if request.sort not in _SORTS:
        check.wrong("sort", "MALFORMED", f"{request.sort} is no ProductSort")
    words = tuple(words_of(request.query)[:MAX_WORDS])
    default = _BY_RELEVANCE if words else _NEWEST
    browsing = request.sort == _BY_RELEVANCE and not words
    sort = default if browsing or not request.sort else request.sort
    categories = tuple(sorted(set(wanted.categories)))
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
        after=check.search_token(request.page_token, len(words), *query),
        size=check.page_size(request.page_size),
        query=query,
    )


def _prices(request: SearchProductsRequest, check: Checker) -> tuple[str, int | None, int | None]:
    wanted = request.filter
    bounds: dict[str, Money] = {
        name: getattr(wanted, name) for name in ("min_price", "max_price") if wanted.HasField(name)
    }
    for name, money in bounds.items():
        if money.minor_units < 0:
            check.wrong(f"filter.{name}.minor_units", "OUT_OF_RANGE", "must not be negative")
        if not money.currency_code:
            check.wrong(f"filter.{name}.currency_code", "REQUIRED", "is required")
        else:
            check.currency_code(f"filter.{name}.currency_code", money.currency_code)
    if len(bounds) == 2:
        if wanted.min_price.currency_code != wanted.max_price.currency_code:
            check.wrong("filter.max_price.currency_code", "INVALID", "must be the one of filter.min_price")
        elif wanted.min_price.minor_units > wanted.max_price.minor_units:
            check.wrong("filter.max_price.minor_units", "OUT_OF_RANGE", "must not be less than filter.min_price")
    low, high = bounds.get("min_price"), bounds.get("max_price")
    currency_code = (low or high or Money()).currency_code
    return currency_code, low.minor_units if low else None, high.minor_units if high else None
