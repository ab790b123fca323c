"""Attributes as searches count and choose them."""

from commerce.type.v1.product_attribute_pb2 import ProductAttribute
from shop.facets import MAX_VALUE, SEPARATOR, facets_of, name_and_value


def test_an_attribute_counts_with_each_of_its_values_and_a_long_text_is_none_to_choose_by() -> None:
    values = {"Colour": ["red", "blue"], "Care": ["x" * MAX_VALUE, "y" * (MAX_VALUE + 1)]}
    attributes = [ProductAttribute(name=name, value=value) for name, its in values.items() for value in its]
    assert [name_and_value(it) for it in facets_of(attributes).split(SEPARATOR)] == [
        ("Colour", "red"),
        ("Colour", "blue"),
        ("Care", "x" * MAX_VALUE),
    ]
