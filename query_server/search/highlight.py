"""Marks in a text what a query found. HTML: everything but the marks is escaped."""

import html
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache

from shop.words import MARKS, MAX_WORD, fold, is_unspaced

# What words are made of: a letter's accent may come behind it.
_IN_WORD = rf"[\w{MARKS}]"
_ESCAPED = "&<>\"'"
# As much as fits into two lines of a list.
_SNIPPET = 200


def highlight(text: str, words: Sequence[str]) -> str:
    """The text with the words marked that begin with one of `words`, which are folded, or are another form of it.

    >>> highlight("Tea & teapots", ["tea"])
    '<em>Tea</em> &amp; <em>teapots</em>'
    """
    return _marker(tuple(words)).mark(text)


def snippet(text: str, words: Sequence[str]) -> str:
    """As `highlight`, of the part of the text around the first mark, cut between words; "…" where it is cut."""
    marker = _marker(tuple(words))
    if len(text) <= _SNIPPET:
        return marker.mark(text)
    found = marker.first(text)
    start = 0 if found < _SNIPPET // 2 else text.rfind(" ", 0, found - _SNIPPET // 4) + 1
    end = start + _SNIPPET
    if end < len(text):
        end = max(text.rfind(" ", start, end), start + _SNIPPET // 2)
    before, after = "… " if start else "", " …" if end < len(text) else ""
    return f"{before}{marker.mark(text[start:end])}{after}"


class _Marker:
    """Marks the words that are found by `wanted`. The texts of a page have many words in common."""

    def __init__(self, wanted: Iterable[str]) -> None:
        self._wanted = tuple(it for it in wanted if it)
        unspaced = sorted({it for it in self._wanted if is_unspaced(it)}, key=len, reverse=True)
        self._unspaced = re.compile("|".join(map(re.escape, unspaced))) if unspaced else None
        self._beginnings = _beginnings_of(self._wanted)
        self._latin_pieces = _latin_pieces(frozenset(it[0] for it in self._wanted))
        self._shown = lru_cache(maxsize=1024)(self._show)

    def mark(self, text: str) -> str:
        """HTML."""
        return self._pieces_of(text).sub(lambda piece: self._shown(piece[0]), text)

    def first(self, text: str) -> int:
        """Where the first mark begins; 0 without one."""
        return next((it.start() for it in self._pieces_of(text).finditer(text) if "<em>" in self._shown(it[0])), 0)

    def _pieces_of(self, text: str) -> re.Pattern[str]:
        return self._latin_pieces if text.isascii() or not _MAY_BE_MARKS.search(text) else _PIECES

    def _show(self, piece: str) -> str:
        if piece in _ESCAPED:
            return html.escape(piece)
        word = fold(piece)
        if is_unspaced(word):
            return self._mark_inside(piece, word)
        if word.startswith(self._beginnings.get(len(word), self._wanted)):
            return f"<em>{piece}</em>"
        return piece

    def _mark_inside(self, piece: str, word: str) -> str:
        """word: the piece as it is compared. Where that has other letters it is not known which were found: all are."""
        if self._unspaced is None or self._unspaced.search(word) is None:
            return piece
        if len(word) != len(piece):
            return f"<em>{piece}</em>"
        shown, end = [], 0
        for found in self._unspaced.finditer(word):
            shown += [piece[end : found.start()], f"<em>{piece[found.start() : found.end()]}</em>"]
            end = found.end()
        return "".join([*shown, piece[end:]])


_marker = lru_cache(maxsize=32)(_Marker)


# What may be shown in another form than it has: characters that HTML escapes, and words, which may be marked. Of what
# is longer than any word the beginning is.
_PIECES = re.compile(rf"(?<!{_IN_WORD})\w{_IN_WORD}{{0,{MAX_WORD}}}|[{_ESCAPED}]")
# Marks, and much else that is not in Latin texts: a set of few ranges is looked through in a fraction of the time.
_MAY_BE_MARKS = re.compile("[\u0300-\u1fff\u20d0-\u20ff\u2cef-\U0001efff]")


@lru_cache(maxsize=1024)
def _latin_pieces(initials: frozenset[str]) -> re.Pattern[str]:
    """As _PIECES, for texts without marks. Of words those that begin with one of `initials`, in either case, or with a
    letter that may be one of them with an accent: whatever is found does, and most words are not looked at.

    With the marks of all scripts such a pattern would take 3 ms to compile, twenty times as long.
    """
    others = "".join(it for it in map(chr, range(128)) if it.lower() not in initials and it not in _ESCAPED)
    return re.compile(rf"[^{re.escape(others)}](?:(?<=\w)(?<!\w.)\w{{0,{MAX_WORD}}}|(?<=[{_ESCAPED}]))")


def _beginnings_of(wanted: Sequence[str]) -> dict[int, tuple[str, ...]]:
    """How words of a length begin that are wanted, or are another form of what is: such as "sauce" for "sauces".

    Four fifths of the letters of both, and of four at least, are a beginning that they have in common: close enough for
    a mark; what is found at all is the database's word. So a text's word is compared once, however many are wanted.
    """
    forms: defaultdict[int, list[str]] = defaultdict(list)
    for it in wanted:
        for length in range(len(it) - 3, len(it) + 4):
            alike = 2 * (len(it) + length) // 5 + 1
            if len(it) >= 4 and alike <= min(len(it), length):
                forms[length].append(it[:alike])
    return {length: (*wanted, *beginnings) for length, beginnings in forms.items()}
