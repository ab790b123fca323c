"""ProductText: what can be found of a product, and SearchWord: the words to correct misspelled ones by.

The text is a view apart from the product's stock, which every order changes: so orders do not touch the text's index.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import islice

import uuid_utils

from commerce.event.v1 import event_pb2 as events
from commerce.internal.v1.stored_pb2 import ProductText, SearchWord
from shop import views
from shop.facets import facets_of
from shop.words import correctable_words, indexed_words, normalized
from tandem.projection.projection import Columns, Projection

Described = events.ProductAdded | events.ProductRevised

# Words of one letter and numbers are not what is misspelled; longer ones than this are no words.
_CORRECTABLE = re.compile(r"[^\W\d]\w{1,49}")
# Of one product: each is a row. The first ones are those of its name and category.
MAX_CORRECTABLE = 500
_NAMESPACE = uuid_utils.UUID("f4a1b3c6-2f0c-5a0e-8a55-6f2f6e0d7c11")


def added(_view: ProductText | None, event: events.ProductAdded) -> ProductText:
    return _text(event)


def revised(view: ProductText, event: events.ProductRevised) -> ProductText:
    changed = _text(event)
    changed.discontinued = view.discontinued
    return changed


def discontinued(view: ProductText, _event: events.ProductDiscontinued) -> ProductText:
    view.discontinued = True
    return view


def _text(event: Described) -> ProductText:
    return ProductText(
        name=event.name,
        category=event.category,
        attributes=" ".join(f"{it.name} {it.value}" for it in event.attributes),
        description=event.description,
        facets=facets_of(event.attributes),
    )


def _words(text: str) -> str:
    """All that it is found by, with blanks between: PostgreSQL is to see no host names and no numbers with signs."""
    return " ".join(indexed_words(text))


def columns(view: ProductText, began: int) -> Columns:
    """category, discontinued, added_position, what all four texts are found by, and facets.

    category: in Unicode's NFC, so that two that look alike are one. added_position: where it came into the
    catalogue, for ever.
    """
    texts = (view.name, view.category, view.attributes, view.description)
    return normalized("NFC", view.category), view.discontinued, began, *map(_words, texts), view.facets


PRODUCT_SEARCH = Projection(
    table=views.product_search,
    message=ProductText,
    key_field="product_id",
    rules={"product_added": added, "product_revised": revised, "product_discontinued": discontinued},
    columns=columns,
    began="added_position",
    begins=frozenset({"product_added"}),
)


def occurs(view: SearchWord | None, word: str) -> SearchWord:
    """A word that came once stays: that a product is called otherwise now makes it no worse a guess."""
    return view or SearchWord(word=word)


def _words_of(event: Described) -> dict[str, str]:
    words = [*_correctable(event.name), *_correctable(event.category)]
    for it in event.attributes:
        words += _correctable(it.name)
        words += _correctable(it.value)
    return {word: word for word in islice(dict.fromkeys(words), MAX_CORRECTABLE)}


def _correctable(text: str) -> Sequence[str]:
    return _known_words(text) if len(text) <= _MAX_KNOWN else _find_words(text)


def _find_words(text: str) -> Sequence[str]:
    return tuple([it for it in correctable_words(text) if _CORRECTABLE.fullmatch(it)])


# Few categories and attributes make up most of a catalogue.
_known_words = lru_cache(maxsize=1_000)(_find_words)
_MAX_KNOWN = 50


def word_columns(view: SearchWord, _began: int) -> Columns:
    return (view.word,)


@lru_cache(maxsize=10_000)
def _key_of(word: str) -> bytes:
    """Few words make up most of a catalogue."""
    return uuid_utils.uuid5(_NAMESPACE, word).bytes


_KINDS = frozenset({"product_added", "product_revised"})

SEARCH_WORD = Projection(
    table=views.search_word,
    message=SearchWord,
    rules=dict.fromkeys(_KINDS, occurs),
    parts=dict.fromkeys(_KINDS, _words_of),
    columns=word_columns,
    key_of=_key_of,
    may_begin=_KINDS,
)
