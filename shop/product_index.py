"""What a search engine has of the products, where there is one: the words by which PostgreSQL finds them too.

Both sides cut texts alike (`shop.words`), and PostgreSQL makes them the words of its index, as they are and as English
stems. The engine is given these, and no text: it has no language of its own, and finds what PostgreSQL would.
"""

from shop.views import product_search
from tandem.read_store.search_index import SearchIndex

WEIGHTS = {"name": ("a", 1.0), "category": ("b", 0.4), "attributes": ("c", 0.2)}
"""By field of a document: PostgreSQL's letter for words that are there, and what they count there. A word of the
description alone counts nothing: it is found, behind all others.
"""

PRODUCT_INDEX = SearchIndex(
    table=product_search,
    fields={
        "words": "tsvector_to_array(document)",
        **{name: f"tsvector_to_array(ts_filter(document, '{{{letter}}}'))" for name, (letter, _) in WEIGHTS.items()},
        "discontinued": "discontinued",
        "added": "added_position",
    },
    mappings={
        **{name: {"type": "keyword", "doc_values": False} for name in ("words", *WEIGHTS)},
        "discontinued": {"type": "boolean"},
        "added": {"type": "long"},
    },
)
