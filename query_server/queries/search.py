"""SearchProducts: full-text search over product_search, filtered and sorted by product_card, in one statement a page.

A word of the query is found where a word of the product begins with it, or has the same stem. When that finds too
little, each word that no word begins with is also taken for the words of the catalogue that are spelled most like it,
and the page tokens keep what it was taken for: all pages of a search look for the same.
"""

import uuid
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from sqlalchemy import TextClause, text

from commerce.query.v1.query_service_pb2 import (
    CategoryCount,
    PriceRange,
    ProductFacets,
    ProductHit,
    ProductSort,
    SearchProductsRequest,
    SearchProductsResponse,
)
from commerce.query.v1.views_pb2 import ProductCard
from commerce.type.v1.money_pb2 import Money
from query_server.database import ReadDatabase
from query_server.encoding import EncodedField
from query_server.page_token import SearchCursor, encode_search_token
from query_server.queries.highlight import highlight, plain, snippet
from query_server.validation import Checker
from query_server.views import as_of_text
from tandem.feed.token import Token
from tandem.read_store.tables import SCHEMA, product_card, product_search, projection, search_word
from tandem.read_store.words import words_of
from tandem.runtime.errors import Unavailable

MAX_QUERY = 200
MAX_WORDS = 10
MAX_CATEGORIES = 50
# With fewer the query may be misspelled: then what it may mean is looked for too.
_TOO_FEW = 3
_MAX_ALTERNATIVES = 3
# Letters of a word that is at the beginning of few others. Half of every catalogue has a word that begins with "s".
# Where one word of a query is rare, so are the products that have all of them.
_RARE = 4
# What is ranked and counted at most: some tens of milliseconds.
_MAX_CANDIDATES = 10_000
_MAX_FACETS = 100
_FIRST_ID = uuid.UUID(int=0)
# Protobuf looks a value of an enum up by its name, slowly, each time.
_SORTS = frozenset(ProductSort.values())
_BY_RELEVANCE, _NEWEST = ProductSort.PRODUCT_SORT_RELEVANCE, ProductSort.PRODUCT_SORT_NEWEST

_HITS = EncodedField(SearchProductsResponse, "hits")
_AS_OF = EncodedField(SearchProductsResponse, "as_of")
_PRODUCT = EncodedField(ProductHit, "product")
_NAME = EncodedField(ProductHit, "highlighted_name")
_DESCRIPTION = EncodedField(ProductHit, "highlighted_description")

SESSION = (
    # Where the extensions are: in our schema, unless they were there before.
    f"SET search_path = {SCHEMA}, public",
    # A misspelled word shares fewer trigrams with the right one than the default of 0.3 asks for; its distance decides.
    "SET pg_trgm.similarity_threshold = 0.1",
    # What takes longer than most searches.
    "SET jit = off",
    # What is searched often is in memory: to PostgreSQL, which reckons with disks, the index looks dear.
    "SET random_page_cost = 1.1",
)
"""What a connection needs that searches."""

SEARCHED = (product_card.name, search_word.name, product_search.name)
"""Three views answer together: what is found, what it costs, and what a misspelled word may mean."""


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


class Found(NamedTuple):
    """What a search found: the response but for its as_of, serialised, and the position that it includes."""

    rest: bytes
    as_of: Token

    def response(self) -> bytes:
        """Serialised."""
        return self.rest + _AS_OF(as_of_text(self.as_of))


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


class SearchReader:
    """Reads for a Batcher, in a thread."""

    def __init__(self, database: ReadDatabase) -> None:
        self._database = database

    def __call__(self, batch: Sequence[SearchKey]) -> dict[SearchKey, Found]:
        """Raises Unavailable."""
        return {wanted: self.search(wanted) for wanted in batch}

    def search(self, wanted: SearchKey) -> Found:
        """Raises Unavailable."""
        alternatives = wanted.after.alternatives if wanted.after else ()
        row = self._page(wanted, alternatives)
        consulted = []
        if not wanted.after and wanted.words and row.total < _TOO_FEW:
            alternatives, vocabulary = self._alternatives(wanted.words)
            consulted.append(vocabulary)
            if any(alternatives):
                row = self._page(wanted, alternatives)
        positions = [Token(row.feed_epoch, row.position), Token(row.card_epoch, row.card_position), *consulted]
        if len({it.epoch for it in positions}) > 1:
            raise Unavailable("the views of the products are being replaced", reason="STORE_UNAVAILABLE")
        as_of = min(positions, key=lambda it: it.position)
        return Found(_response(wanted, alternatives, row), as_of)

    def _page(self, wanted: SearchKey, alternatives: Sequence[Sequence[str]]) -> Any:
        counts = tuple(len(it) for it in alternatives) or (0,) * len(wanted.words)
        after = wanted.after
        rare = any(len(word) >= _RARE for word in wanted.words)
        arguments: dict[str, object] = {
            "query": " ".join(_best(wanted.words, alternatives)),
            "discontinued": wanted.include_discontinued,
            "any_category": not wanted.categories,
            "categories": list(wanted.categories),
            "currency": wanted.currency_code,
            "min_price": wanted.min_price,
            "max_price": wanted.max_price,
            "in_stock": wanted.in_stock,
            "sort": wanted.sort,
            "rank": after.rank if after else 2**63 - 1,
            "key": after.key if after else _FIRST_ID,
            "size": wanted.size,
        }
        for number, word in enumerate(wanted.words):
            arguments[f"w{number}"] = word
            for other, alternative in enumerate(alternatives[number] if alternatives else ()):
                arguments[f"w{number}_{other}"] = alternative
        [row] = self._database.execute(product_search.name, _page_statement(counts, rare), arguments)
        return row

    def _alternatives(self, words: Sequence[str]) -> tuple[tuple[tuple[str, ...], ...], Token]:
        """For each word that no product has, what it may mean, best first; and the position of the words' view."""
        swapped = [other for word in words for other in _swapped(plain(word))]
        rows = self._database.execute(search_word.name, _ALTERNATIVES, {"words": list(words), "swapped": swapped})
        found: list[list[str]] = [[] for _ in words]
        for row in rows:
            if row.number is not None:
                found[row.number - 1].append(row.plain_word)
        return tuple(map(tuple, found)), Token(rows[0].feed_epoch, rows[0].position)


# The longer the word, the more of it may be wrong: one letter of three, two of four to eleven, then one in four. A
# swapped pair is one mistake, which to levenshtein() is two.
_ALTERNATIVES = text(f"""
SELECT p.feed_epoch, p.position, c.number, c.plain_word FROM {projection.fullname} AS p LEFT JOIN (
    SELECT q.number, v.plain_word, v.distance, v.alike
    FROM unnest(CAST(:words AS text[])) WITH ORDINALITY AS q (word, number)
    CROSS JOIN LATERAL (SELECT left({SCHEMA}.plain(q.word), 60) AS plain) AS w
    CROSS JOIN LATERAL (
        SELECT DISTINCT n.plain_word, n.distance, n.alike
        FROM (
            SELECT s.plain_word, similarity(s.plain_word, w.plain) AS alike,
                CASE WHEN s.plain_word = ANY(CAST(:swapped AS text[])) THEN 1
                    ELSE levenshtein(s.plain_word, w.plain) END AS distance
            FROM {search_word.fullname} AS s WHERE s.plain_word % w.plain
        ) AS n
        WHERE n.distance <= CASE WHEN length(w.plain) = 3 THEN 1 ELSE greatest(2, length(w.plain) / 4) END
        ORDER BY n.distance, n.alike DESC, n.plain_word LIMIT {_MAX_ALTERNATIVES}
    ) AS v
    WHERE length(w.plain) > 2 AND NOT EXISTS (
        SELECT FROM {search_word.fullname} AS s WHERE s.plain_word LIKE w.plain || '%'
    )
) AS c ON true
WHERE p.view = '{search_word.name}'
ORDER BY c.number, c.distance, c.alike DESC, c.plain_word
""")  # noqa: S608 - only names and numbers of ours are put in


@lru_cache(maxsize=256)
def _page_statement(alternatives: tuple[int, ...], rare: bool) -> TextClause:
    """For a query of so many words, each with so many alternatives.

    rare: few products have a word that begins so; the plan for that is made once. Otherwise each search has its own.
    """

    def once(expression: str) -> str:
        # A shared plan knows no values: what depends on them alone would be computed anew for every row. A plan of
        # one's own has them as constants, and reckons with how many rows have them.
        return f"(SELECT {expression})" if rare else f"({expression})"

    document = once(" && ".join(_word_query(number, count) for number, count in enumerate(alternatives)))
    as_written = once(" && ".join(_word_query(number, 0) for number in range(len(alternatives))))
    as_written_first = f"CASE WHEN s.document @@ {as_written} THEN 10 ELSE 0 END +" if any(alternatives) else ""
    found = f"WHERE s.document @@ {document}" if alternatives else "WHERE true"
    # What has the words as they are written, before what has others for them; whole words before beginnings of words;
    # then the names that are most like the query.
    score = (
        f"""CAST(1000000 * (
            {as_written_first} ts_rank('{{0.05, 0.2, 0.4, 1.0}}', s.document, {document})
            + 2 * ts_rank('{{0.05, 0.2, 0.4, 1.0}}', s.document, {once(f"plainto_tsquery('{SCHEMA}.search', :query)")})
            + 2 * similarity(s.plain_name, {once(f"{SCHEMA}.plain(:query)")})
        ) AS bigint)"""
        if alternatives
        else "0"
    )
    return text(f"""
    WITH candidates AS MATERIALIZED (
        SELECT s.key, s.category, c.price, c.currency_code, c.available > 0 AS in_stock,
            (:any_category OR s.category = ANY(CAST(:categories AS text[]))) AS category_fits,
            (:currency = '' OR c.currency_code = :currency AND c.price BETWEEN
                coalesce(CAST(:min_price AS bigint), c.price) AND coalesce(CAST(:max_price AS bigint), c.price)
            ) AS price_fits,
            (c.available > 0 OR NOT :in_stock) AS stock_fits,
            CASE CAST(:sort AS int)
                WHEN {ProductSort.PRODUCT_SORT_RELEVANCE:d} THEN s.score
                WHEN {ProductSort.PRODUCT_SORT_PRICE_ASC:d} THEN -c.price
                WHEN {ProductSort.PRODUCT_SORT_PRICE_DESC:d} THEN c.price
                ELSE s.added_position
            END AS rank
        FROM (
            SELECT s.key, s.added_position, s.category, {score} AS score FROM {product_search.fullname} AS s
            {found} AND (:discontinued OR NOT s.discontinued)
            ORDER BY s.added_position DESC LIMIT {_MAX_CANDIDATES}
        ) AS s CROSS JOIN LATERAL (
            -- LIMIT: found one by one. Of many the planner would read the whole table instead, whatever its size.
            SELECT c.price, c.currency_code, c.available FROM {product_card.fullname} AS c WHERE c.key = s.key LIMIT 1
        ) AS c
    )
    SELECT p.feed_epoch, p.position, k.feed_epoch AS card_epoch, k.position AS card_position,
        counts.*, page.*,
        -- JSON and arrays are in the order of the rows that they are made of, and NULL where there are none.
        (
            SELECT json_agg(json_build_array(category, number)) FROM (
                SELECT category, count(*) AS number FROM candidates WHERE price_fits AND stock_fits
                GROUP BY category ORDER BY number DESC, category LIMIT {_MAX_FACETS}
            ) AS c
        ) AS categories,
        (
            SELECT json_agg(json_build_array(currency_code, lowest, highest)) FROM (
                SELECT currency_code, min(price) AS lowest, max(price) AS highest FROM candidates
                WHERE category_fits AND stock_fits GROUP BY currency_code ORDER BY currency_code LIMIT {_MAX_FACETS}
            ) AS c
        ) AS prices
    FROM {projection.fullname} AS p JOIN {projection.fullname} AS k ON k.view = '{product_card.name}'
    CROSS JOIN (
        SELECT count(*) AS candidates,
            count(*) FILTER (WHERE category_fits AND price_fits AND stock_fits) AS total,
            count(*) FILTER (WHERE category_fits AND price_fits AND in_stock) AS in_stock
        FROM candidates
    ) AS counts
    CROSS JOIN (
        SELECT array_agg(value) AS values, (array_agg(rank))[:size] AS last_rank, (array_agg(key))[:size] AS last_key
        FROM (
            SELECT f.key, f.rank, c.value FROM (
                SELECT key, rank FROM candidates
                WHERE category_fits AND price_fits AND stock_fits AND (rank < :rank OR rank = :rank AND key > :key)
                -- One more than the page holds tells whether another page follows.
                ORDER BY rank DESC, key LIMIT CAST(:size AS int) + 1
            ) AS f JOIN {product_card.fullname} AS c USING (key) ORDER BY f.rank DESC, f.key
        ) AS hit
    ) AS page
    WHERE p.view = '{product_search.name}'
    """).execution_options(prepare=rare)  # noqa: S608 - only names and numbers of ours are put in


def _swapped(word: str) -> Iterator[str]:
    """The word with two neighbours exchanged, at every place: "baot" is "boat"."""
    for at in range(len(word) - 1):
        yield word[:at] + word[at + 1] + word[at] + word[at + 2 :]


def _word_query(number: int, alternatives: int) -> str:
    word = f":w{number}"
    parts = [
        f"to_tsquery('{SCHEMA}.search', {word} || ':*')",
        f"plainto_tsquery('{SCHEMA}.search_stem', {word})",
        *(f"plainto_tsquery('{SCHEMA}.search', :w{number}_{other})" for other in range(alternatives)),
    ]
    return f"({' || '.join(parts)})"


def _best(words: Sequence[str], alternatives: Sequence[Sequence[str]]) -> list[str]:
    """The query as it was probably meant."""
    return [other[0] if other else word for word, other in zip(words, alternatives or ((),) * len(words), strict=True)]


def _response(wanted: SearchKey, alternatives: Sequence[Sequence[str]], row: Any) -> bytes:
    marked = [plain(it) for number, word in enumerate(wanted.words) for it in (word, *_at(alternatives, number))]
    rest = SearchProductsResponse(
        facets=ProductFacets(
            total_count=row.total,
            truncated=row.candidates == _MAX_CANDIDATES,
            categories=[CategoryCount(category=category, count=count) for category, count in row.categories or ()],
            in_stock_count=row.in_stock,
            prices=[
                PriceRange(
                    lowest=Money(minor_units=low, currency_code=currency),
                    highest=Money(minor_units=high, currency_code=currency),
                )
                for currency, low, high in row.prices or ()
            ],
        ),
    )
    values: Sequence[bytes] = row.values or ()
    if len(values) > wanted.size:
        cursor = SearchCursor(row.last_rank, row.last_key, tuple(map(tuple, alternatives)))
        rest.next_page_token = encode_search_token(cursor, *wanted.query)
    if any(alternatives):
        rest.corrected_query = " ".join(_best(wanted.words, alternatives))
    hits = [_HITS(_hit(value, marked)) for value in values[: wanted.size]]
    return b"".join([*hits, rest.SerializeToString(deterministic=True)])


def _at(alternatives: Sequence[Sequence[str]], number: int) -> Sequence[str]:
    return alternatives[number] if alternatives else ()


def _hit(value: bytes, marked: Sequence[str]) -> bytes:
    card = ProductCard.FromString(value)
    name, description = highlight(card.name, marked), snippet(card.description, marked)
    return _PRODUCT(value) + _NAME(name.encode()) + _DESCRIPTION(description.encode())
