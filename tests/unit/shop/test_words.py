"""Texts and queries are cut into the same words."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shop.words import words_of


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        (" - & !? ", []),
        ("Sirop d'érable", ["sirop", "d", "erable"]),
        ("Vegie-spread, 12 x 500 g", ["vegie", "spread", "12", "x", "500", "g"]),
        ("\ufb01lets \uff23hai", ["filets", "chai"]),
        ("don\u0303a", ["dona"]),
    ],
)
def test_words_are_letters_and_digits_in_one_form(text: str, words: list[str]) -> None:
    assert words_of(text) == words


@given(st.text())
def test_how_accents_are_typed_makes_no_difference(text: str) -> None:
    assert words_of(unicodedata.normalize("NFD", text)) == words_of(text)


@given(st.text())
def test_words_are_made_of_themselves(text: str) -> None:
    assert words_of(" ".join(words_of(text))) == words_of(text)
