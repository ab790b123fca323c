"""The statements of a search. Each says which content of the text views it saw: `projection.content`."""

from collections.abc import Iterator, Sequence
from functools import lru_cache

from sqlalchemy import TextClause, text

from commerce.query.v1.query_service_pb2 import ProductSort
from shop.views import product_card, product_search, search_word
from shop.words import halves_of, pairs_of
from tandem.queries.parked import PARKED, LookUp, parked_of_views
from tandem.queries.store import AT
from tandem.read_store.tables import SCHEMA, newest

MOST_RANKED = 10_000
"""What is ranked and counted at most: some tens of milliseconds."""
MOST_REMEMBERED = 1_000
"""Products that a text search found and that are remembered. To put a page of as many together takes Python a
millisecond, in which it does nothing else. Where more were found, PostgreSQL makes each page."""
MAX_FACETS = 100
_MAX_ALTERNATIVES = 3

SESSION = (
    # Where the extensions are: in our schema, unless they were there before.
    f"SET search_path = {SCHEMA}, public",
    # A misspelled word shares fewer trigrams with the right one than the default of 0.3 asks for; its distance decides.
    "SET pg_trgm.similarity_threshold = 0.1",
    # To compile a statement takes longer than most searches.
    "SET jit = off",
    # The index is in memory, since it is used often. By its default PostgreSQL would take it to be on a disk.
    "SET random_page_cost = 1.1",
)
"""What a connection needs that searches."""

_WORDS = newest(f"'{search_word.name}'")
_POSITIONS = f"""{newest(f"'{product_search.name}'")} AS p
CROSS JOIN {newest(f"'{product_card.name}'")} AS c CROSS JOIN {_WORDS} AS w"""
_VIEWS = {"p": product_search.name, "c": product_card.name, "w": search_word.name}
_AT = f"""{AT}, p.content, c.feed_epoch AS card_epoch, c.position AS card_position,
    w.feed_epoch AS word_epoch, w.position AS word_position, w.content AS word_content"""

# The longer the word, the more of it may be wrong: one letter of three, two of four to eleven, then one in four. A
# swapped pair is one mistake, which to levenshtein() is two.
ALTERNATIVES = text(f"""
SELECT {AT}, p.content, c.number, c.plain_word FROM {_WORDS} AS p LEFT JOIN (
    SELECT q.number, v.plain_word, v.distance, v.alike
    FROM unnest(CAST(:words AS text[])) WITH ORDINALITY AS q (word, number)
    CROSS JOIN LATERAL (SELECT left({SCHEMA}.plain(q.word), 60) AS plain) AS w
    CROSS JOIN LATERAL (
        SELECT DISTINCT n.plain_word, n.distance, n.alike
        FROM (
            SELECT s.plain_word, similarity(s.plain_word, w.plain) AS alike,
                CASE WHEN q.number || ' ' || s.plain_word = ANY(CAST(:swapped AS text[])) THEN 1
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
ORDER BY c.number, c.distance, c.alike DESC, c.plain_word
""")  # noqa: S608 - only names and numbers of ours are put in, here and below
"""What each word that no product has may mean. swapped: words with two neighbours exchanged, behind their numbers."""


def _cards(parked: str, looked_up: str) -> str:
    # As arrays, which are read much faster than as many rows.
    return f"""
SELECT {_AT}, {parked}, cards.*
FROM {_POSITIONS} {looked_up}
CROSS JOIN (
    SELECT string_agg(uuid_send(key), '') AS keys, array_agg(price) AS prices, array_agg(currency_code) AS currencies,
        array_agg(available) AS available, array_agg(value) AS values
    FROM (
        SELECT key, price, currency_code, available, value FROM {product_card.fullname} WHERE key = ANY(:shown)
        UNION ALL
        SELECT key, price, currency_code, available, NULL FROM {product_card.fullname} WHERE key = ANY(:counted)
    ) AS c
) AS cards
"""  # noqa: S608


CARDS = LookUp.of(_cards, _VIEWS)
"""The cards with some keys, the values of those that are shown, and what all three views are at."""


@lru_cache(maxsize=256)
def page_statement(alternatives: tuple[int, ...], rare: bool) -> TextClause:
    """A page in full, and what of it may be remembered; for a query of so many words, each with so many alternatives.

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
        else "CAST(0 AS bigint)"
    )
    return text(f"""
    WITH found AS MATERIALIZED (
        SELECT s.key, s.added_position, s.category, {score} AS score FROM {product_search.fullname} AS s
        {found} AND (:discontinued OR NOT s.discontinued)
        ORDER BY s.added_position DESC LIMIT {MOST_RANKED}
    ), candidates AS MATERIALIZED (
        SELECT s.key, s.category, c.price, c.currency_code, c.available > 0 AS in_stock,
            (:any_category OR s.category = ANY(CAST(:categories AS text[]))) AS category_fits,
            (:currency = '' OR c.currency_code = :currency AND c.price BETWEEN
                coalesce(CAST(:min_price AS bigint), c.price) AND coalesce(CAST(:max_price AS bigint), c.price)
            ) AS price_fits,
            (c.available > 0 OR NOT :in_stock) AS stock_fits,
            CASE CAST(:sort AS int)
                WHEN {ProductSort.PRODUCT_SORT_RELEVANCE:d} THEN 2 * s.score + CAST(c.available > 0 AS int)
                WHEN {ProductSort.PRODUCT_SORT_PRICE_ASC:d} THEN -c.price
                WHEN {ProductSort.PRODUCT_SORT_PRICE_DESC:d} THEN c.price
                ELSE s.added_position
            END AS rank
        FROM found AS s CROSS JOIN LATERAL (
            -- LIMIT: found one by one. Of many the planner would read the whole table instead, whatever its size.
            SELECT c.price, c.currency_code, c.available FROM {product_card.fullname} AS c WHERE c.key = s.key LIMIT 1
        ) AS c
    )
    SELECT {_AT}, {PARKED}, counts.*, page.*, kept.*,
        -- JSON and arrays are in the order of the rows that they are made of, and NULL where there are none.
        (
            SELECT json_agg(json_build_array(category, number)) FROM (
                SELECT category, count(*) AS number FROM candidates WHERE price_fits AND stock_fits
                GROUP BY category ORDER BY number DESC, category COLLATE "C" LIMIT {MAX_FACETS}
            ) AS c
        ) AS categories,
        (
            SELECT json_agg(json_build_array(currency_code, lowest, highest)) FROM (
                SELECT currency_code, min(price) AS lowest, max(price) AS highest FROM candidates
                WHERE category_fits AND stock_fits
                GROUP BY currency_code ORDER BY currency_code COLLATE "C" LIMIT {MAX_FACETS}
            ) AS c
        ) AS prices
    -- Looked up at once: to search twice while something is parked would cost more than the 6 µs of each search.
    FROM {_POSITIONS} {parked_of_views(_VIEWS)}
    CROSS JOIN (
        SELECT count(*) AS candidates,
            count(*) FILTER (WHERE category_fits AND price_fits AND stock_fits) AS total,
            count(*) FILTER (WHERE category_fits AND price_fits AND in_stock) AS in_stock
        FROM candidates
    ) AS counts
    CROSS JOIN (
        SELECT array_agg(uuid_send(key)) AS keys, array_agg(value) AS values, (array_agg(rank))[:size] AS last_rank
        FROM (
            SELECT f.key, f.rank, c.value FROM (
                SELECT key, rank FROM candidates
                WHERE category_fits AND price_fits AND stock_fits AND (rank < :rank OR rank = :rank AND key > :key)
                -- One more than the page holds shows whether another page follows.
                ORDER BY rank DESC, key LIMIT CAST(:size AS int) + 1
            ) AS f JOIN {product_card.fullname} AS c USING (key) ORDER BY f.rank DESC, f.key
        ) AS hit
    ) AS page
    CROSS JOIN (
        -- One more than are remembered shows that there are too many. Not of candidates: a card may come later.
        SELECT string_agg(uuid_send(key), '') AS found_keys, array_agg(score) AS found_scores,
            array_agg(added_position) AS found_added, array_agg(category) AS found_categories
        FROM (SELECT * FROM found LIMIT {MOST_REMEMBERED} + 1) AS f
    ) AS kept
    """).execution_options(prepare=rare)  # noqa: S608


def swapped(word: str) -> Iterator[str]:
    """The word with two neighbours exchanged, at every place: "baot" is "boat"."""
    for at in range(len(word) - 1):
        yield word[:at] + word[at + 1] + word[at] + word[at + 2 :]


def word_arguments(words: Sequence[str], alternatives: Sequence[Sequence[str]]) -> dict[str, object]:
    """The words' arguments for `page_statement`. An alternative that is the word itself stands for its halves."""
    arguments: dict[str, object] = {}
    for number, (word, others) in enumerate(zip(words, alternatives, strict=True)):
        arguments[f"w{number}"] = word
        arguments[f"w{number}_begins"] = _begins(word)
        for other, alternative in enumerate(others):
            is_halves = alternative == word
            arguments[f"w{number}_{other}"] = (
                " | ".join(map(_begins, halves_of(word))) if is_halves else f"'{alternative}'"
            )
    return arguments


def _begins(word: str) -> str:
    """As to_tsquery() reads it. Words have no quotes and no backslashes."""
    return "(" + " & ".join(f"'{it}'" for it in pairs_of(word)) + ":*)"


def _word_query(number: int, alternatives: int) -> str:
    parts = [
        f"to_tsquery('{SCHEMA}.search', :w{number}_begins)",
        f"plainto_tsquery('{SCHEMA}.search_stem', :w{number})",
        *(f"to_tsquery('{SCHEMA}.search', :w{number}_{other})" for other in range(alternatives)),
    ]
    return f"({' || '.join(parts)})"
