"""What a word is, in what a search looks through and in what it looks for: both sides must cut texts alike."""

import re
import unicodedata

_WORD = re.compile(r"\w+")


def words_of(text: str) -> list[str]:
    """The words, as they are written, in their order.

    Texts come with accents as part of their letter or behind it, depending on the system that they were typed on. A
    word with a ligature or letters of full width is the same as the word without.

    >>> words_of("Cre\u0300me-bru\u0302le\u0301e, 2 ﬁlets")
    ['Crème', 'brûlée', '2', 'filets']
    """
    return _WORD.findall(unicodedata.normalize("NFKC", text))
