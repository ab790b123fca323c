"""What a query found is marked, and no text becomes markup."""

import html
import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from query_server.search.highlight import _MAY_BE_MARKS, highlight, snippet
from shop.words import MARKS, fold


@pytest.mark.parametrize(
    ("text", "words", "marked"),
    [
        ("Tea & teapots", ["tea"], "<em>Tea</em> &amp; <em>teapots</em>"),
        ("Green Tea", ["coffee"], "Green Tea"),
        ("Crème Brûlée", ["creme"], "<em>Crème</em> Brûlée"),
        ("Łukasz' Straße", ["lukasz", "strasse"], "<em>Łukasz</em>&#x27; <em>Straße</em>"),
        ("Two Sauces", ["sauce"], "Two <em>Sauces</em>"),
        ("Two Teapot stands", ["teapots", "standing"], "Two <em>Teapot</em> stands"),
        ("Knives", ["knife"], "Knives"),
        ("<b>Pan</b>", ["b"], "&lt;<em>b</em>&gt;Pan&lt;/<em>b</em>&gt;"),
        ('say "pan"', ["pan"], "say &quot;<em>pan</em>&quot;"),
    ],
)
def test_words_that_were_found_are_marked_and_the_rest_is_escaped(text: str, words: list[str], marked: str) -> None:
    assert highlight(text, words) == marked


def test_an_accent_behind_its_letter_stays_inside_the_mark() -> None:
    text = unicodedata.normalize("NFD", "Crème Brûlée")
    assert highlight(text, ["creme", "brul"]) == " ".join(f"<em>{word}</em>" for word in text.split())


def test_a_snippet_is_the_part_around_the_first_mark() -> None:
    text = "before " * 100 + "a copper kettle " + "after " * 100
    found = snippet(text, ["kettle"])
    assert "a copper <em>kettle</em> after" in found
    assert (found[:2], found[-2:]) == ("… ", " …")
    assert len(found) < 250


def test_a_short_text_is_shown_whole_and_one_without_a_mark_from_its_beginning() -> None:
    assert snippet("A copper kettle", ["kettle"]) == "A copper <em>kettle</em>"
    assert snippet("word " * 100, ["kettle"]).startswith("word word")
    assert snippet("", ["kettle"]) == ""


@given(text=st.text(max_size=600), words=st.lists(st.text(min_size=1, max_size=5).map(fold).filter(bool), max_size=4))
def test_nothing_but_the_marks_is_markup_and_nothing_is_lost(text: str, words: list[str]) -> None:
    shown = highlight(text, words)
    without = re.sub(r"</?em>", "", shown)
    assert not set("<>") & set(without)
    assert html.unescape(without) == text or "&" in text
    assert shown.count("<em>") == shown.count("</em>")
    cut = re.sub(r"</?em>", "", snippet(text, words))
    assert not set("<>") & set(cut)


@given(
    text=st.text(st.characters(max_codepoint=0x2FF) | st.sampled_from("eé—“ \u200d"), max_size=200),
    words=st.lists(st.text("eéaz1", min_size=1, max_size=3).map(fold), max_size=3),
)
def test_a_word_of_another_script_beside_a_text_changes_no_mark_in_it(text: str, words: list[str]) -> None:
    assert highlight(f"{text} \u0436", words) == f"{highlight(text, words)} \u0436"


def test_no_mark_is_taken_for_what_is_none() -> None:
    marks = re.compile(f"[{MARKS}]")
    assert not [it for it in map(chr, range(0x110000)) if marks.match(it) and not _MAY_BE_MARKS.match(it)]
    assert not [it for it in "é™★→…—😀" if _MAY_BE_MARKS.match(it)]
