"""The statements of a search. Each says which content of the text views it saw: `projection.content`."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from sqlalchemy import TextClause, text

from commerce.query.v1.query_service_pb2 import ProductSort
from query_server.search.synonyms import Span
from shop.facets import SEPARATOR
from shop.product_index import PRODUCT_INDEX
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
MOST_ATTRIBUTES = 2_000
"""Attributes with their values that are counted: of those that most products have."""
STEPS = [0, *(factor * 10**exponent for exponent in range(13) for factor in (1, 2, 5))]
"""Where steps of price begin, in minor units. The last one has no end."""
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


def _positions(products: str) -> str:
    """Of the three views that answer. products: the one that finds products, or its index."""
    return f"""{newest(f"'{products}'")} AS p
CROSS JOIN {newest(f"'{product_card.name}'")} AS c CROSS JOIN {_WORDS} AS w"""


_POSITIONS, _WITH_INDEX = _positions(product_search.name), _positions(PRODUCT_INDEX.view)
_VIEWS = {"p": product_search.name, "c": product_card.name, "w": search_word.name}
_OTHERS = {name: view for name, view in _VIEWS.items() if name != "p"}
# Of the products, what is parked where the index is: its row says it.
_PARKED_OF_INDEX = "k.keys + p.parked AS parked_rows, least(k.since, p.parked_since) AS parked_since"
AS_WRITTEN = 10
"""What is added to the score of what has the words as they are written, before what has others for them."""
_AT = f"""{AT}, p.content, c.feed_epoch AS card_epoch, c.position AS card_position,
    w.feed_epoch AS word_epoch, w.position AS word_position, w.content AS word_content"""

# The longer the word, the more of it may be wrong: one letter of three, two of four to eleven, then one in four. A
# swapped pair is one mistake, which to levenshtein() is two. A word that the catalogue knows may be a slip for another
# one: a letter of four or more, two of eight. Not for another form of it.
ALTERNATIVES = text(f"""
SELECT {AT}, p.content, c.number, c.known, c.plain_word FROM {_WORDS} AS p LEFT JOIN (
    SELECT q.number, k.known, v.plain_word, v.distance, v.alike
    FROM unnest(CAST(:words AS text[])) WITH ORDINALITY AS q (word, number)
    CROSS JOIN LATERAL (SELECT left({SCHEMA}.plain(q.word), 60) AS plain) AS w
    CROSS JOIN LATERAL (
        SELECT EXISTS (SELECT FROM {search_word.fullname} AS s WHERE s.plain_word LIKE w.plain || '%') AS known
    ) AS k
    CROSS JOIN LATERAL (
        SELECT DISTINCT n.plain_word, n.distance, n.alike
        FROM (
            SELECT s.plain_word, similarity(s.plain_word, w.plain) AS alike,
                CASE WHEN q.number || ' ' || s.plain_word = ANY(CAST(:swapped AS text[])) THEN 1
                    ELSE levenshtein(s.plain_word, w.plain) END AS distance
            FROM {search_word.fullname} AS s WHERE s.plain_word % w.plain
        ) AS n
        WHERE CASE
            WHEN k.known THEN n.distance <= 1 + length(w.plain) / 8
                AND NOT starts_with(n.plain_word, w.plain) AND NOT starts_with(w.plain, n.plain_word)
            ELSE n.distance <= CASE WHEN length(w.plain) = 3 THEN 1 ELSE greatest(2, length(w.plain) / 4) END
        END
        ORDER BY n.distance, n.alike DESC, n.plain_word
        LIMIT CASE WHEN k.known THEN 1 ELSE {_MAX_ALTERNATIVES} END
    ) AS v
    WHERE length(w.plain) > CASE WHEN k.known THEN 3 ELSE 2 END
) AS c ON true
ORDER BY c.number, c.distance, c.alike DESC, c.plain_word
""")  # noqa: S608 - only names and numbers of ours are put in, here and below
"""What each word that no product has may mean, and what each that some product has may be a slip for.

swapped: words with two neighbours exchanged, behind their numbers.
"""


def _cards(parked: str, looked_up: str, positions: str = _POSITIONS) -> str:
    # As arrays, which are read much faster than as many rows.
    return f"""
SELECT {_AT}, {parked}, cards.*
FROM {positions} {looked_up}
CROSS JOIN (
    SELECT string_agg(uuid_send(key), '') AS keys, array_agg(price) AS prices, array_agg(currency_code) AS currencies,
        array_agg(available) AS available, array_agg(units_sold) AS units_sold, array_agg(value) AS values
    FROM (
        SELECT key, price, currency_code, available, units_sold, value FROM {product_card.fullname}
        WHERE key = ANY(:shown)
        UNION ALL
        SELECT key, price, currency_code, available, units_sold, NULL FROM {product_card.fullname}
        WHERE key = ANY(:counted)
    ) AS c
) AS cards
"""  # noqa: S608


CARDS = LookUp.of(_cards, _VIEWS)
"""The cards with some keys, the values of those that are shown, and what all three views are at."""
CARDS_OF_INDEX = text(_cards(_PARKED_OF_INDEX, parked_of_views(_OTHERS), _WITH_INDEX))
"""The same, with where the index of the products is."""


class Shape(NamedTuple):
    """What a `page_statement` is made for.

    alternatives: how many each word has. spans: of words for which others stand, where each begins and how many words
    it has. rare: few products have a word that begins so; the plan for that is made once. Otherwise each search has its
    own. attributes: whether it filters by attributes, or counts them. detailed: whether it counts them, and steps of
    price. explained: whether it says what scores are made of. by_engine: whether a search engine has found the
    products, and says what their words score.
    """

    alternatives: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    rare: bool
    attributes: bool = False
    detailed: bool = False
    explained: bool = False
    by_engine: bool = False


@lru_cache(maxsize=256)
def page_statement(shape: Shape) -> TextClause:
    """A page in full, and what of it may be remembered."""
    alternatives, spans, rare = shape[:3]

    def once(expression: str) -> str:
        # A shared plan knows no values: what depends on them alone would be computed anew for every row. A plan of
        # one's own has them as constants, and reckons with how many rows have them.
        return f"(SELECT {expression})" if rare else f"({expression})"

    if shape.by_engine:
        found_by, order = _FOUND_BY_ENGINE, ""
    else:
        found_by, order = f"{product_search.fullname} AS s", f"ORDER BY s.added_position DESC LIMIT {MOST_RANKED}"
    document = once(_query(alternatives, spans))
    as_written = once(_query((0,) * len(alternatives), spans))
    found = f"WHERE s.document @@ {document}" if alternatives and not shape.by_engine else "WHERE true"
    alike = f"2 * similarity(s.plain_name, {once(f'{SCHEMA}.plain(:query)')})"
    # What has the words as they are written, before what has others for them; whole words before beginnings of words;
    # then the names that are most like the query.
    parts = (
        [
            f"CASE WHEN s.document @@ {as_written} THEN {AS_WRITTEN} ELSE 0 END" if any(alternatives) else "0",
            f"ts_rank('{{0.05, 0.2, 0.4, 1.0}}', s.document, {document})",
            "2 * ts_rank('{0.05, 0.2, 0.4, 1.0}', s.document, "
            + once(f"plainto_tsquery('{SCHEMA}.search', :query)")
            + ")",
            alike,
        ]
        if alternatives
        else []
    )
    if shape.by_engine:
        # Whole words are in it.
        written = f"CASE WHEN f.score >= {AS_WRITTEN} THEN {AS_WRITTEN} ELSE 0 END"
        parts = [written, f"(f.score - {written})", "0", alike]
    score = (
        f"CAST(1000000 * ({' + '.join(it for it in parts if it != '0')}) AS bigint)" if parts else "CAST(0 AS bigint)"
    )
    # Each rounded; the last one is what is left of the score.
    explained = ", ".join(f"CAST(1000000 * ({it}) AS bigint)" for it in parts[:-1])
    more_found = (", s.facets" if shape.attributes else "") + (
        f", CAST(ARRAY[{explained}] AS bigint[]) AS parts" if shape.explained else ""
    )
    more = (", s.facets, a.missing" if shape.attributes else "") + (", s.parts, s.score" if shape.explained else "")
    fits = "AND cardinality(missing) = 0" if shape.attributes else ""
    return text(f"""
    WITH found AS MATERIALIZED (
        SELECT s.key, s.added_position, s.category, {score} AS score{more_found} FROM {found_by}
        {found} AND (:discontinued OR NOT s.discontinued)
        {order}
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
                WHEN {ProductSort.PRODUCT_SORT_SALES:d} THEN c.units_sold
                ELSE s.added_position
            END AS rank{more}
        FROM found AS s CROSS JOIN LATERAL (
            -- LIMIT: found one by one. Of many the planner would read the whole table instead, whatever its size.
            SELECT c.price, c.currency_code, c.available, c.units_sold FROM {product_card.fullname} AS c
            WHERE c.key = s.key LIMIT 1
        ) AS c {_MISSING if shape.attributes else ""}
    )
    SELECT {_AT}, {_PARKED_OF_INDEX if shape.by_engine else PARKED}, counts.*, page.*, kept.*,
        {_DETAILS.format(fits=fits) if shape.detailed else ""}
        -- JSON and arrays are in the order of the rows that they are made of, and NULL where there are none.
        (
            SELECT json_agg(json_build_array(category, number)) FROM (
                SELECT category, count(*) AS number FROM candidates WHERE price_fits AND stock_fits {fits}
                GROUP BY category ORDER BY number DESC, category COLLATE "C" LIMIT {MAX_FACETS}
            ) AS c
        ) AS categories,
        (
            SELECT json_agg(json_build_array(currency_code, lowest, highest)) FROM (
                SELECT currency_code, min(price) AS lowest, max(price) AS highest FROM candidates
                WHERE category_fits AND stock_fits {fits}
                GROUP BY currency_code ORDER BY currency_code COLLATE "C" LIMIT {MAX_FACETS}
            ) AS c
        ) AS prices
    -- Looked up at once: to search twice while something is parked would cost more than the 6 µs of each search.
    FROM {_WITH_INDEX if shape.by_engine else _POSITIONS} {parked_of_views(_OTHERS if shape.by_engine else _VIEWS)}
    CROSS JOIN (
        SELECT count(*) AS candidates,
            count(*) FILTER (WHERE category_fits AND price_fits AND stock_fits {fits}) AS total,
            count(*) FILTER (WHERE category_fits AND price_fits AND in_stock {fits}) AS in_stock
        FROM candidates
    ) AS counts
    CROSS JOIN (
        SELECT array_agg(uuid_send(key)) AS keys, array_agg(value) AS values, (array_agg(rank))[:size] AS last_rank
            {", json_agg(json_build_array(parts, score, in_stock, rank)) AS explained" if shape.explained else ""}
        FROM (
            SELECT f.*, c.value FROM (
                SELECT key, rank {", parts, score, in_stock" if shape.explained else ""} FROM candidates
                WHERE category_fits AND price_fits AND stock_fits {fits}
                    AND (rank < :rank OR rank = :rank AND key > :key)
                -- One more than the page holds shows whether another page follows.
                ORDER BY rank DESC, key LIMIT CAST(:size AS int) + 1
            ) AS f JOIN {product_card.fullname} AS c USING (key) ORDER BY f.rank DESC, f.key
        ) AS hit
    ) AS page
    CROSS JOIN (
        -- One more than are remembered shows that there are too many. Not of candidates: a card may come later.
        SELECT string_agg(uuid_send(key), '') AS found_keys, array_agg(score) AS found_scores,
            array_agg(added_position) AS found_added, array_agg(category) AS found_categories
            {", array_agg(facets) AS found_facets" if shape.attributes else ""}
        FROM (SELECT * FROM found LIMIT {MOST_REMEMBERED} + 1) AS f
    ) AS kept
    """).execution_options(prepare=rare)  # noqa: S608


# Each row by its key. One that is gone is not found.
_FOUND_BY_ENGINE = f"""unnest(CAST(:found_keys AS uuid[]), CAST(:found_scores AS float8[])) AS f (key, score)
        CROSS JOIN LATERAL (SELECT * FROM {product_search.fullname} WHERE key = f.key LIMIT 1) AS s"""  # noqa: S608

# The attributes that a product has none of the wanted values of, each as its facets begin.
_MISSING = f"""CROSS JOIN LATERAL (
    SELECT CASE WHEN cardinality(CAST(:attributes AS text[])) = 0 THEN CAST('{{}}' AS text[]) ELSE ARRAY(
        SELECT name FROM unnest(CAST(:attribute_names AS text[])) AS name WHERE NOT EXISTS (
            SELECT FROM unnest(string_to_array(s.facets, chr({ord(SEPARATOR)}))) AS facet
            WHERE facet = ANY(CAST(:attributes AS text[])) AND starts_with(facet, name)
        )
    ) END AS missing
) AS a"""  # noqa: S608
_DETAILS = f"""
        (
            SELECT json_agg(json_build_array(facet, number)) FROM (
                SELECT facet, count(*) AS number
                FROM candidates CROSS JOIN LATERAL unnest(string_to_array(facets, chr({ord(SEPARATOR)}))) AS facet
                WHERE category_fits AND price_fits AND stock_fits AND (
                    cardinality(missing) = 0 OR cardinality(missing) = 1 AND starts_with(facet, missing[1])
                )
                GROUP BY facet ORDER BY number DESC, facet COLLATE "C" LIMIT {MOST_ATTRIBUTES}
            ) AS a
        ) AS attributes,
        (
            SELECT json_agg(json_build_array(currency_code, step, number)) FROM (
                SELECT currency_code, width_bucket(price, CAST(:steps AS bigint[])) AS step, count(*) AS number
                FROM candidates WHERE category_fits AND stock_fits {{fits}}
                GROUP BY currency_code, step ORDER BY currency_code COLLATE "C", step
            ) AS p
        ) AS steps,
"""  # noqa: S608


def swapped(word: str) -> Iterator[str]:
    """The word with two neighbours exchanged, at every place: "baot" is "boat"."""
    for at in range(len(word) - 1):
        yield word[:at] + word[at + 1] + word[at] + word[at + 2 :]


def word_arguments(
    words: Sequence[str], alternatives: Sequence[Sequence[str]], spans: Sequence[Span]
) -> dict[str, object]:
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
    for number, span in enumerate(spans):
        arguments[f"s{number}_begins"] = _synonyms(span, _begins)
        arguments[f"s{number}"] = _synonyms(span, "'{}'".format)
    return arguments


def beginnings(words: Sequence[str], spans: Sequence[Span]) -> str:
    """All words of a query by their beginnings, as to_tsquery() reads it."""
    synonyms = {span.first: f" | {_synonyms(span, _begins)}" for span in spans}
    return " & ".join(
        f"(({' & '.join(map(_begins, words[first : first + count]))}){synonyms.get(first, '')})"
        for first, count in word_parts(len(words), [(it.first, it.length) for it in spans])
    )


def _begins(word: str) -> str:
    """As to_tsquery() reads it. Words have no quotes and no backslashes."""
    return "(" + " & ".join(f"'{it}'" for it in pairs_of(word)) + ":*)"


def _synonyms(span: Span, of_word: Callable[[str], str]) -> str:
    return " | ".join(f"({' & '.join(map(of_word, phrase))})" for phrase in span.synonyms)


def word_parts(words: int, spans: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Spans, and the words that are in none: where each begins, and how many words it has."""
    counts = dict(spans)
    first = 0
    while first < words:
        count = counts.get(first, 1)
        yield first, count
        first += count


def _query(alternatives: Sequence[int], spans: tuple[tuple[int, int], ...]) -> str:
    """SQL of all that a query's words are found by."""
    numbers = {first: number for number, (first, _) in enumerate(spans)}
    parts = []
    for first, count in word_parts(len(alternatives), spans):
        words = " && ".join(_word_query(number, alternatives[number]) for number in range(first, first + count))
        if first in numbers:
            name = f"s{numbers[first]}"
            synonyms = f"to_tsquery('{SCHEMA}.search', :{name}_begins) || to_tsquery('{SCHEMA}.search_stem', :{name})"
            words = f"(({words}) || {synonyms})"
        parts.append(words)
    return " && ".join(parts)


def _word_query(number: int, alternatives: int) -> str:
    parts = [
        f"to_tsquery('{SCHEMA}.search', :w{number}_begins)",
        f"plainto_tsquery('{SCHEMA}.search_stem', :w{number})",
        *(f"to_tsquery('{SCHEMA}.search', :w{number}_{other})" for other in range(alternatives)),
    ]
    return f"({' || '.join(parts)})"
