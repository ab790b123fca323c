"""A product's attributes as searches count them and filter by them: in the column `facets` of product_search.

Two that look alike are one: both are in Unicode's NFC. Text and not an array, since the projector writes a column's
values as one array.
"""

from collections.abc import Iterable

from commerce.type.v1.product_attribute_pb2 import ProductAttribute
from shop.words import normalized

SEPARATOR = "\x1e"
"""Between two attributes."""
_BEHIND_NAME = "\x1f"
MAX_VALUE = 200
"""Characters of a value that searches count and filter by: as many as a filter may hold."""
_NEITHER = str.maketrans("", "", SEPARATOR + _BEHIND_NAME)


def facet(name: str, value: str) -> str:
    """An attribute with its value, as one text."""
    return beginning(name) + _written(value)


def beginning(name: str) -> str:
    """How the facets of an attribute begin.

    >>> facet("Colour", "Red").startswith(beginning("Colour"))
    True
    """
    return _written(name) + _BEHIND_NAME


def _written(text: str) -> str:
    written = normalized("NFC", text)
    # What separates is not printable; to take it out takes 1 µs, whether it is there or not.
    return written if written.isprintable() else written.translate(_NEITHER)


def name_and_value(text: str) -> tuple[str, str]:
    """The inverse of `facet`."""
    name, _, value = text.partition(_BEHIND_NAME)
    return name, value


def facets_of(attributes: Iterable[ProductAttribute]) -> str:
    """All of a product. A value that is longer than one that searches filter by is a text, and nobody chooses by it."""
    chosen = [it for it in attributes if len(it.value) <= MAX_VALUE]
    return SEPARATOR.join(dict.fromkeys(facet(it.name, it.value) for it in chosen))
