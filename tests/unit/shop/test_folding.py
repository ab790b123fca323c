"""One spelling for what is one word, and what a text is found by."""

# ruff: noqa: RUF001 - letters that look alike are what this is about

import unicodedata
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shop.words import MAX_INDEXED, fold, halves_of, indexed_words, pairs_of, query_words, words_of

SYLLABLES = (
    *(
        "a",
        "Z",
        "é",
        "e\u0301",
        "ß",
        "ø",
        "ı",
        "İ",
        "ł",
        "Σ",
        "ς",
        "ά",
        "Й",
        "ё",
        "ґ",
        "ǅ",
        "0",
        "٥",
        "字",
        "か",
        "ガ",
        "ﾊ",
    ),
    *(
        "한",
        "ก่",
        "ำ",
        "ล",
        "ຂົ",
        "ខ្ម",
        "រ",
        "က်",
        "ှု",
        "א",
        "שָׁ",
        "םָ",
        "قَ",
        "أ",
        "ى",
        "ک",
        "हिं",
        "क़",
        "ক্ষ",
        "თ",
        "Თ",
        "Հ",
        "և",
    ),
)
FORMS: tuple[Literal["NFC", "NFD", "NFKC", "NFKD"], ...] = ("NFC", "NFD", "NFKC", "NFKD")
JOINTS = tuple(" -/.'&+\u200c")


def finds(query: str, text: str) -> bool:
    """As the search does: each word of the query, its last pair by its beginning."""
    indexed = indexed_words(text)
    return all(
        set(pairs[:-1]) <= set(indexed) and any(it.startswith(pairs[-1]) for it in indexed)
        for pairs in map(pairs_of, query_words(query))
    )


@pytest.mark.parametrize(
    "spellings",
    [
        ("ΚΑΦΕΣ", "καφές", "καφεσ", "Καφες"),
        ("липо\u0301вый", "липовый", "ЛИПОВЫИ"),
        ("قَهْوَة", "قهوة", "قهوه", "قـــهوة"),
        ("أحمد", "احمد", "إحمد"),
        ("\u0639\u0644\u0649", "\u0639\u0644\u064a", "\u0639\u0644\u06cc"),
        ("٥٠٠", "500", "५००", "５００", "๕๐๐"),
        ("ﬁlets", "filets"),
        ("ｶﾞ", "ガ", "が"),
        ("Straße", "STRASSE", "straſſe"),
        ("So\u00adfa", "so\u200bfa", "sofa"),
    ],
)
def test_one_word_has_one_spelling(spellings: tuple[str, ...]) -> None:
    assert len(set(map(fold, spellings))) == 1


@pytest.mark.parametrize("others", [("か", "が"), ("ไม่", "ไม"), ("की", "का"), ("한", "하")])
def test_marks_that_make_another_word_stay(others: tuple[str, str]) -> None:
    assert fold(others[0]) != fold(others[1])


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("QX.0815-42/B", "qx081542b"),
        ("QX.0815-42/B", "0815"),
        ("AC/DC", "acdc"),
        ("O’Neill", "oneill"),
        ("Salt & Pepper", "salt and pepper"),
        ("C++ Mug", "++"),
        ("有机绿茶礼盒", "绿茶"),
        ("手机壳15Pro", "15pro"),
    ],
)
def test_a_text_is_found_by_what_people_type(text: str, query: str) -> None:
    assert finds(query, text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Oak bowl", "oak bowl"),
        ("A t-shirt, size M wide.", "a t shirt size m wide tshirt at mwide u00002d u00002c u00002e"),
        ("QX.0815-42 & a.b c", "qx 0815 42 a b c qx081542 081542 ab bc u00002e u00002d u000026 and"),
        ("+++ C++ ++", "c u00002bu00002bu00002b u00002bu00002b"),
        ("Crème-brûlée: 手机壳15Pro/x", "creme brulee 手机 机壳 壳 15pro x cremebrulee u00002d u00003a u00002f"),
        ("snake_case x²", "snake_case x2"),
    ],
)
def test_all_that_a_text_is_found_by_in_its_order(text: str, words: str) -> None:
    assert indexed_words(text) == words.split()


@given(text=st.lists(st.sampled_from(SYLLABLES + JOINTS), min_size=1, max_size=20).map("".join), data=st.data())
def test_what_begins_a_word_finds_it_in_any_form_and_case(text: str, data: st.DataObject) -> None:
    words = [it for it in text.split() if words_of(it)]
    if not words:
        return
    word = data.draw(st.sampled_from(words))
    query = word[: data.draw(st.integers(1, len(word)))]
    form = data.draw(st.sampled_from(FORMS))
    case = data.draw(st.sampled_from([str.lower, str.upper, str.title, str.casefold, str.swapcase]))
    assert finds(case(unicodedata.normalize(form, query)), text) or not words_of(query)


@pytest.mark.parametrize("piece", ["字", "a/", "!?", "ก่", "\ufdfa", "\u3300", "a'b-c/d "])
def test_what_a_text_is_found_by_is_bounded(piece: str) -> None:
    words = indexed_words(piece * 15_000)
    assert sum(map(len, words)) <= MAX_INDEXED
    assert len(halves_of(piece * 200)) == 0
