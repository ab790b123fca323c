"""A text can be read as it is written: it shows something, and in the order of its letters."""

import pytest

from tandem.runtime.checker import Checker
from tandem.runtime.errors import InvalidArgument


def refused(value: str, **options: bool) -> str:
    """What is wrong with it; "" where nothing is."""
    check = Checker()
    check.text("name", value, 200, **options)
    try:
        check.finish()
    except InvalidArgument as error:
        return error.violations[0].kind
    return ""


SHOWS_NOTHING = ["\u200b", "\u200d\u200c", "\ufeff", "\u0301", "\u0301 \u0323", "\u3164", "\u2800", "\u2060\u00ad"]


@pytest.mark.parametrize("value", SHOWS_NOTHING)
def test_what_shows_nothing_is_no_text(value: str) -> None:
    assert refused(value, required=True) == refused(value) == "MALFORMED"


@pytest.mark.parametrize("value", ["", " ", "\u3000"])
def test_blanks_alone_are_none(value: str) -> None:
    assert refused(value, required=True) == "REQUIRED"


@pytest.mark.parametrize("value", ["A\u202eB", "\u202aA\u202c", "A\u2066B\u2069", "A\u2028B", "A\x7f", "A\x85", "A\n"])
def test_controls_and_what_changes_the_direction_are_refused(value: str) -> None:
    assert refused(value) == "MALFORMED"


@pytest.mark.parametrize(
    "value",
    [
        "Ada",
        "e\u0301",
        "\u06a9\u062a\u200c\u06cc",
        "👩\u200d🚀",
        "⭐️",
        "שלום\u200f",
        "ก็",
        "\ufeffAda",
        "\u00a0x",
        "🏴\U000e0067\U000e007f",
    ],
)
def test_what_people_write_is_taken(value: str) -> None:
    assert refused(value, required=True) == ""


def test_lines_are_taken_where_a_text_has_some() -> None:
    assert refused("one\r\n\ttwo", lines=True) == ""
    assert refused("one\u2029two", lines=True) == "MALFORMED"


@pytest.mark.parametrize("value", [*SHOWS_NOTHING, "A\u202eB"])
def test_what_is_searched_for_may_be_pasted_from_anywhere(value: str) -> None:
    assert refused(value, unseen=True) == ""
    assert refused("A\0", unseen=True) == "MALFORMED"
