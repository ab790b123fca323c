"""What a word is, in what a search looks through and in what it looks for: both sides must cut texts alike.

A word has one spelling here, however it is typed: `fold`. Scripts that put no blank between words are cut into pairs of
letters, so that a word is found wherever it is in such a text. The work is bounded by the length of a text, whatever it
is made of. Unicode sorts the marks behind a letter, in a time that is the square of their number, and makes up to 18
letters of one.
"""

# ruff: noqa: RUF001, RUF002 - letters that look alike are what this is about

import re
import unicodedata
from bisect import bisect
from collections.abc import Iterable
from functools import cache, lru_cache
from itertools import accumulate, filterfalse, groupby, islice, pairwise
from typing import Literal

MAX_WORD = 100
"""Letters of a word. What is longer is found by its beginning."""
MAX_LETTERS = 20_000
"""Of a text that is cut into words: more than the longest attributes of a product have."""
MAX_INDEXED = 40_000
"""Letters and blanks of all that a text is found by: three for each letter of a script without blanks."""
_MAX_MARKS = 30
"""Behind a letter, as Unicode's stream-safe format has it (UAX #15). No language needs a third of it."""
_MAX_SIGNS = 50
_MAX_REPEATED = 5

_BEYOND = re.compile("[\U00010000-\U0010ffff]")

# Han and the syllables of Hangul: letters, all 118,000 that there are.
_HAN = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0x20000, 0x323AF))
# What else is Han and Hangul, kana, and the scripts of Thailand, Laos, Cambodia, Myanmar and their neighbours.
_UNSPACED = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1100, 0x11FF), (0x1780, 0x17FF), (0x1950, 0x19DF), (0x1A20, 0x1AAF),
    (0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3021, 0x30FF), (0x3105, 0x318F), (0x31A0, 0x31FF), (0xA9E0, 0xA9FF),
    (0xAA60, 0xAADF), (0xD7A4, 0xD7FF), (0xF900, 0xFAFF),
)  # fmt: skip

# Letters that Unicode does not decompose, and that people type for each other, since their keyboards differ. Of Arabic:
# one form of ya, kaf and ha, and no tatweel. Of Hebrew: final letters as the others.
_LETTERS = {
    "æ": "ae",
    "œ": "oe",
    "ø": "o",
    "đ": "d",
    "ð": "d",
    "ł": "l",
    "þ": "th",
    "ı": "i",
    "ħ": "h",
    "ŧ": "t",
    "ґ": "г",
    "ٱ": "ا",
    "ى": "ي",
    "ی": "ي",
    "ک": "ك",
    "ة": "ه",
    "ہ": "ه",
    "ھ": "ه",
    "ۃ": "ه",
    "ە": "ه",
    "ـ": "",
    "ך": "כ",
    "ם": "מ",
    "ן": "נ",
    "ף": "פ",
    "ץ": "צ",
    "ँ": "ं",
}
_ZERO_WIDTH_NON_JOINER = 0x200C


def _class_of(characters: Iterable[str]) -> str:
    """As a regular expression has it between brackets. In their order."""
    runs = groupby(enumerate(map(ord, characters)), lambda it: it[1] - it[0])
    ends = [(part[0][1], part[-1][1]) for part in (list(run) for _, run in runs)]
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in ends)


# In the first two planes, and the last has variants alone. Of 130,000 characters, 10,000 are no letters and are there.
_SIGNS_AND_MARKS = filter(str.isprintable, filterfalse(str.isalnum, map(chr, range(0x300, 0x20000))))
MARKS = _class_of(it for it in _SIGNS_AND_MARKS if unicodedata.category(it) in ("Mn", "Mc"))
"""What stands behind letters and is part of their word, for a regular expression."""
_LETTERS_UNSPACED = _class_of(
    it for first, last in _UNSPACED for it in map(chr, range(first, last + 1)) if it.isalpha()
)
_LETTERS_UNSPACED += "".join(f"{chr(first)}-{chr(last)}" for first, last in _HAN)
_UNSPACED_WORD = rf"[{_LETTERS_UNSPACED}][{_LETTERS_UNSPACED}{MARKS}]*"
_SPACED_WORD = rf"[^\W{_LETTERS_UNSPACED}](?:[^\W{_LETTERS_UNSPACED}]+|[{MARKS}]+)*"
# For str.translate: all but letters, digits and "_" as blanks. With it a sentence is cut in 2.7 µs; \w+ takes 4.
_ASCII_BLANKED = {it: " " for it in range(128) if not re.match(r"\w", chr(it))}
_WORD = re.compile(rf"{_UNSPACED_WORD}|{_SPACED_WORD}")
_CLUSTER = re.compile(rf".[{MARKS}]*", re.DOTALL)
# Up to eight words with signs alone between them. Nothing is looked at twice: no word ends before its last letter.
_CODE = re.compile(rf"(?<![\w{MARKS}])[\w{MARKS}]++(?:[^\w\s{MARKS}]++[\w{MARKS}]++){{1,7}}")
_ASCII_CODE = re.compile(r"(?<!\w)\w++(?:[^\w\s]++\w++){1,7}")
# A letter that stands alone, with the word behind the blanks.
_APART = re.compile(rf"(?<![\w{MARKS}])([^\W\d_])\s+([^\W{_LETTERS_UNSPACED}][\w{MARKS}]*+)")
_ASCII_APART = re.compile(r"(?<!\w)([a-z])\s+(\w++)")
_SIGNS = re.compile(rf"([^\w\s{MARKS}\u200c])\1*")
_ASCII_SIGNS = re.compile(r"([^\w\s])\1*")
_HAS_UNSPACED = re.compile(rf"[{_LETTERS_UNSPACED}]")


class _Folding(dict[int, str]):
    """By code point, for str.translate: what a character becomes, found out when it comes first."""

    def __missing__(self, code: int) -> str:
        folded = self[code] = _folded(chr(code), code)
        return folded


def _folded(character: str, code: int) -> str:
    category = unicodedata.category(character)
    if category == "Nd":
        return str(unicodedata.decimal(character))
    if category in ("Mn", "Me"):
        return "" if _is_left_out(code, unicodedata.combining(character)) else _LETTERS.get(character, character)
    if category == "Cf" and code != _ZERO_WIDTH_NON_JOINER:
        return ""
    # Katakana as hiragana.
    return chr(code - 0x60) if 0x30A1 <= code <= 0x30F6 else _LETTERS.get(character, character)


def _is_left_out(code: int, combining: int) -> bool:
    """Accents, stress, vowel points, nukta, and what chooses a form. Not the vowels of Thai or Indic scripts, which are
    letters to who reads them, and not what makes another letter of a kana.
    """
    return combining in (1, 7) or 10 <= combining <= 36 or combining >= 200 or code in (0x34F, *range(0xFE00, 0xFE10))


_FOLDING = _Folding()


def fold(text: str) -> str:
    """The one spelling: without case, accents, stress and vowel points; compatible forms of letters as the usual ones,
    digits of all scripts as ours.

    >>> fold("ΚΑΦΕΣ καφές Липо́вый ٥٠٠ Crème"), fold("ﬁlets"), fold("ﾜｲﾔﾚｽ")
    ('καφεσ καφεσ липовыи 500 creme', 'filets', 'わいやれす')
    """
    if text.isascii():
        return text.lower()
    decomposed = normalized("NFKD", text).casefold()
    return unicodedata.normalize("NFC", decomposed.translate(_FOLDING))


def words_of(text: str) -> list[str]:
    """The words, folded, in their order. What is written without blanks is one.

    >>> words_of("Cre\u0300me-bru\u0302le\u0301e, 2 ﬁlets 有机绿茶")
    ['creme', 'brulee', '2', 'filets', '有机绿茶']
    """
    return [it[:MAX_WORD] for it in _cut(fold(text)[:MAX_LETTERS])]


def _cut(folded: str) -> list[str]:
    """The words, each whole."""
    return folded.translate(_ASCII_BLANKED).split() if folded.isascii() else _WORD.findall(folded)


def query_words(text: str) -> list[str]:
    """What a query looks for: its words, or where it has none its signs. Empty for one that shows nothing."""
    return words_of(text) or _signs(_signed(fold(text)[:MAX_LETTERS]))


def correctable_words(text: str) -> list[str]:
    """The words that a misspelled one may mean, in their order: those with blanks between them, and codes joined."""
    folded = fold(text)[:MAX_LETTERS]
    words = _cut(folded)
    joined = _joined(folded, words, _signed(folded))
    return [word[:MAX_WORD] for word in (*words, *joined) if not is_unspaced(word)]


def indexed_words(text: str) -> list[str]:
    """All that a text is found by: its words, or pairs of their letters; codes joined; signs; and "and" for "&"."""
    folded = fold(text)[:MAX_LETTERS]
    words, signed = _cut(folded), _signed(folded)
    indexed: list[str] = []
    if folded.isascii():
        indexed = [it[:MAX_WORD] for it in words]
    else:
        for word in words:
            if is_unspaced(word):
                clusters = _CLUSTER.findall(word)
                indexed += [first + second for first, second in pairwise(clusters)]
                indexed.append(clusters[-1])
            else:
                indexed.append(word[:MAX_WORD])
    indexed += _joined(folded, words, signed)
    indexed += _signs(signed)
    if "&" in signed:
        indexed.append("and")
    # Mostly there are few: they are counted where they may be too many.
    most = (
        len(indexed)
        if len(folded) < MAX_INDEXED // 16
        else bisect(list(accumulate(len(it) + 1 for it in indexed)), MAX_INDEXED)
    )
    return indexed[:most]


def pairs_of(word: str) -> list[str]:
    """What a word is looked for by: pairs of its letters where it is of a script without blanks, otherwise itself.

    The last may be the beginning of what is in the index.
    """
    clusters = _CLUSTER.findall(word) if is_unspaced(word) else []
    return [first + second for first, second in pairwise(clusters)] or [word]


def halves_of(word: str) -> list[str]:
    """Of a word in a script without blanks: each half of it, wherever it begins. What is written as one may be several
    words, of which not all are next to each other in the text. Empty for what has too few letters, or too many.
    """
    clusters = _CLUSTER.findall(word) if is_unspaced(word) else []
    half = (len(clusters) + 1) // 2
    if not 3 <= len(clusters) <= 20:
        return []
    return ["".join(clusters[first : first + half]) for first in range(len(clusters) - half + 1)]


def is_unspaced(word: str) -> bool:
    return not word.isascii() and _HAS_UNSPACED.match(word) is not None


def _signed(folded: str) -> str:
    """What stands between two blanks and is not all letters and digits, with blanks between again. Mostly it is little.

    Signs, and words with signs between them, are nowhere else.
    """
    return "" if folded.isalnum() else " ".join([it for it in folded.split() if not it.isalnum()])


def _joined(folded: str, words: Iterable[str], signed: str) -> list[str]:
    """Words with signs alone between them as one, from each of them on: "ac/dc" is "acdc" too. And a letter that
    stands alone as one with the next word: "t shirt" is "tshirt" too.

    words, signed: of the text.
    """
    joined: list[str] = []
    for code in (_ASCII_CODE if signed.isascii() else _CODE).findall(signed) if signed else ():
        parts = _cut(code)
        if not any(map(is_unspaced, parts)):
            joined += ["".join(parts[first:])[:MAX_WORD] for first in range(len(parts) - 1)]
    if 1 in map(len, words):
        for letter, word in (_ASCII_APART if folded.isascii() else _APART).findall(folded):
            if not is_unspaced(letter):
                joined.append((letter + word)[:MAX_WORD])
    return joined


def _signs(signed: str) -> list[str]:
    if not signed:
        return []
    signs = (_ASCII_SIGNS if signed.isascii() else _SIGNS).finditer(signed)
    return [*map(_spelled, islice(dict.fromkeys([it[0][:_MAX_REPEATED] for it in signs]), _MAX_SIGNS))]


@lru_cache(maxsize=100)
def _spelled(sign: str) -> str:
    """As a word of letters and digits, which PostgreSQL's parser takes for one; "++" begins with "+"."""
    return "".join(f"u{ord(it):06x}" for it in sign)


def normalized(form: Literal["NFC", "NFKC", "NFKD"], text: str) -> str:
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
