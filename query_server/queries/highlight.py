"""Marks in a text what a query found. HTML: everything but the marks is escaped."""

import html
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from difflib import SequenceMatcher
from functools import lru_cache

# What words are made of: a letter's accent may come behind it.
_IN_WORD = r"[\w\u0300-\u036f]"
# As much as fits into two lines of a list.
_SNIPPET = 200
# Letters that are no accented ones to Unicode, as PostgreSQL's unaccent has them.
_LETTERS = str.maketrans({"ß": "ss", "æ": "ae", "œ": "oe", "ø": "o", "đ": "d", "ð": "d", "ł": "l", "þ": "th"})


def plain(text: str) -> str:
    """Lower case, without accents.

    >>> plain("Crème Brûlée")
    'creme brulee'
    """
    if text.isascii():
        return text.lower()
    decomposed = unicodedata.normalize("NFKD", text.lower().translate(_LETTERS))
    return "".join(c for c in decomposed if not unicodedata.combining(c))


def highlight(text: str, words: Sequence[str]) -> str:
    """The text with the words marked that begin with one of `words`, which are plain, or are another form of it.

    >>> highlight("Tea & teapots", ["tea"])
    '<em>Tea</em> &amp; <em>teapots</em>'
    """
    parts, end = [], 0
    for match in _finder(tuple(words))(text):
        parts += [html.escape(text[end : match.start()]), "<em>", match[0], "</em>"]
        end = match.end()
    return "".join([*parts, html.escape(text[end:])])


def snippet(text: str, words: Sequence[str]) -> str:
    """As `highlight`, of the part of the text around the first mark, cut between words; "…" where it is cut."""
    if len(text) <= _SNIPPET:
        return highlight(text, words)
    found = next((it.start() for it in _finder(tuple(words))(text)), 0)
    start = 0 if found < _SNIPPET // 2 else text.rfind(" ", 0, found - _SNIPPET // 4) + 1
    end = start + _SNIPPET
    if end < len(text):
        end = max(text.rfind(" ", start, end), start + _SNIPPET // 2)
    before, after = "… " if start else "", " …" if end < len(text) else ""
    return f"{before}{highlight(text[start:end], words)}{after}"


@lru_cache(maxsize=1024)
def _beginning_with(initials: frozenset[str]) -> re.Pattern[str]:
    """Words that begin with one of these letters, of either case, or with a letter that may be one with an accent."""
    others = "".join(it for it in map(chr, range(128)) if it.lower() not in initials)
    return re.compile(rf"[^{re.escape(others)}](?<=\w)(?<!{_IN_WORD}.){_IN_WORD}*")


@lru_cache(maxsize=32)
def _finder(wanted: tuple[str, ...]) -> Callable[[str], Iterator[re.Match[str]]]:
    """Finds the words of a text that begin with one of `wanted`, or are another form of it."""
    # Whatever is found begins with the same letter: most words are never looked at.
    candidates = _beginning_with(frozenset(it[0] for it in wanted if it))

    # The texts of a page have many words in common.
    @lru_cache(maxsize=1024)
    def is_found(text: str) -> bool:
        word = plain(text)
        return any(word.startswith(it) or _is_another_form(word, it) for it in wanted if it)

    return lambda text: (it for it in candidates.finditer(text) if is_found(it[0]))


def _is_another_form(word: str, wanted: str) -> bool:
    """Such as "sauce" for "sauces": close enough for a mark; what is found at all is the database's word."""
    if abs(len(word) - len(wanted)) > 3 or len(wanted) < 4 or word[0] != wanted[0]:
        return False
    # At least so many letters must be in both; to count them is much less work than to match them.
    alike = 0.4 * (len(word) + len(wanted))
    if sum(letter in word for letter in wanted) <= alike:
        return False
    return SequenceMatcher(None, word, wanted, autojunk=False).ratio() > 0.8
