"""What a word is, in what a search looks through and in what it looks for: both sides must cut texts alike.

The work is bounded by the length of a text, whatever it is made of. Unicode sorts the marks behind a letter, in a time
that is the square of their number, and makes up to 18 letters of one.
"""

import re
import unicodedata
from functools import cache
from typing import Literal

MAX_WORD = 100
"""Letters of a word. What is longer is found by its beginning."""
MAX_LETTERS = 20_000
"""Of a text that is cut into words: more than the longest attributes of a product have."""
_MAX_MARKS = 30
"""Behind a letter, as Unicode's stream-safe format has it (UAX #15). No language needs a third of it."""

_BEYOND = re.compile("[\U00010000-\U0010ffff]")
_WORD = re.compile(rf"(\w{{1,{MAX_WORD}}})\w*")


def words_of(text: str) -> list[str]:
    """The words, as they are written, in their order.

    Texts come with accents as part of their letter or behind it, depending on the system that they were typed on. A
    word with a ligature or letters of full width is the same as the word without.

    >>> words_of("Cre\u0300me-bru\u0302le\u0301e, 2 ﬁlets")
    ['Crème', 'brûlée', '2', 'filets']
    """
    return _WORD.findall(normalized("NFKC", text)[:MAX_LETTERS])


def normalized(form: Literal["NFKC", "NFKD"], text: str) -> str:
    """As unicodedata.normalize, but for the marks behind a letter that are too many: they are left out.

    >>> len(normalized("NFKD", "a" + 4000 * "\u0300"))
    31
    """
    if text.isascii():
        return text
    marks = _too_many_marks("\U0001ffff" if _BEYOND.search(text) else "\uffff")
    return unicodedata.normalize(form, marks.sub(r"\1", text))


@cache
def _too_many_marks(last: str) -> re.Pattern[str]:
    """For texts without a character behind `last`. Those of the second plane make each look take several times longer.

    All marks are in the first two planes.
    """
    marks = "".join(it for it in map(chr, range(0x300, ord(last) + 1)) if is_mark(it))
    return re.compile(rf"([{marks}]{{{_MAX_MARKS}}})[{marks}]+")


def is_mark(character: str) -> bool:
    """Whether it is sorted among those behind a letter, or what it is decomposed into is."""
    return bool(unicodedata.combining(unicodedata.normalize("NFKD", character)[0]))
