"""Words that stand for others, from a file that operators write, one rule a line:

    # Each finds the others too
    st, saint
    mobile phone, cellphone
    # What is on the left finds what is on the right too, and not the other way round
    trainers => sneakers, running shoes

Words are compared as searches compare them. A search takes the longest words that a rule has first, from the left, and
each word once. And whoever writes a word of one letter apart from the next, as in "t shirt", finds them written as one.
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from prometheus_client import Counter, Gauge

from shop.words import is_unspaced, words_of
from tandem.runtime.watched_file import WatchedFile

READS = Counter("tandem_synonyms_reads_total", "Times that the synonyms' file had changed, by outcome", ["outcome"])
OUTDATED = Gauge(
    "tandem_synonyms_outdated", "1 while the synonyms' file cannot be used, and an earlier one is in force"
)

MAX_FILE = 2**20
"""Characters."""
MAX_WORDS = 5
MAX_SYNONYMS = 20
"""Of the same words, by all rules: each makes a search longer."""
_MAX_PROBLEMS = 20

Phrase = tuple[str, ...]
"""Words, as searches compare them."""


class Span(NamedTuple):
    """Words of a query, from `first` on, and what finds as much."""

    first: int
    length: int
    synonyms: tuple[Phrase, ...]


class Synonyms:
    def __init__(self, rules: Mapping[Phrase, tuple[Phrase, ...]]) -> None:
        self._rules = rules
        self._lengths = sorted({len(it) for it in rules}, reverse=True)

    def of(self, words: Sequence[str]) -> tuple[Span, ...]:
        """What other words stand for some of a query's, in their order; no word is in two."""
        if not self._rules and all(len(it) > 1 for it in words):
            return ()
        found = []
        at = 0
        while at < len(words):
            span = self._at(words, at)
            if span is not None:
                found.append(span)
            at += span.length if span is not None else 1
        return tuple(found)

    def _at(self, words: Sequence[str], at: int) -> Span | None:
        by_rule = self._by_rule(words, at)
        if by_rule is not None or not _are_written_as_one(words[at : at + 2]) or self._by_rule(words, at + 1):
            return by_rule
        return Span(at, 2, ((words[at] + words[at + 1],),))

    def _by_rule(self, words: Sequence[str], at: int) -> Span | None:
        for length in self._lengths:
            phrase = tuple(words[at : at + length])
            if len(phrase) == length and (synonyms := self._rules.get(phrase)):
                return Span(at, length, synonyms)
        return None


def _are_written_as_one(words: Sequence[str]) -> bool:
    """As `shop.words` has it for names."""
    return len(words) == 2 and len(words[0]) == 1 and words[0].isalpha() and not any(map(is_unspaced, words))


NO_SYNONYMS = Synonyms({})


class SynonymsFile(WatchedFile[Synonyms]):
    def __init__(self, file: Path) -> None:
        super().__init__(
            "synonyms",
            file,
            parse,
            setting="search.synonyms_file",
            changed="other synonyms are in force",
            reads=READS,
            outdated=OUTDATED,
        )


class SynonymsInForce:
    """Those of the file, if there is one. `start` and `stop` make it a Component."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._read: SynonymsFile | None = None

    async def start(self) -> None:
        """Raises SettingsError for a file that cannot be used."""
        if self._file is not None:
            self._read = SynonymsFile(self._file)
            await asyncio.to_thread(self._read.start)

    async def stop(self) -> None:
        if self._read is not None:
            await asyncio.to_thread(self._read.stop)

    def now(self) -> Synonyms:
        return NO_SYNONYMS if self._read is None else self._read.said


def parse(content: str) -> Synonyms:
    """Raises ValueError, which names all that is wrong, by line."""
    if len(content) > MAX_FILE:
        raise ValueError(f"it has more than {MAX_FILE} characters")
    problems: list[str] = []
    rules: dict[Phrase, dict[Phrase, None]] = {}
    for number, line in enumerate(content.splitlines(), start=1):
        for phrase, synonym in _pairs(line.partition("#")[0], f"line {number}", problems):
            rules.setdefault(phrase, {})[synonym] = None
            if len(rules[phrase]) == MAX_SYNONYMS + 1:
                problems.append(f"line {number}: {' '.join(phrase)!r} has more than {MAX_SYNONYMS} synonyms")
    if problems:
        more = f"; and {len(problems) - _MAX_PROBLEMS} more" if len(problems) > _MAX_PROBLEMS else ""
        raise ValueError("; ".join(problems[:_MAX_PROBLEMS]) + more)
    return Synonyms({phrase: tuple(synonyms) for phrase, synonyms in rules.items()})


def _pairs(rule: str, where: str, problems: list[str]) -> Iterator[tuple[Phrase, Phrase]]:
    """What stands for what, by one line. Adds to `problems` what is wrong with it."""
    if not rule.strip():
        return
    left, *rights = rule.split("=>")
    if len(rights) > 1:
        problems.append(f"{where}: one => is all that there may be")
        return
    looked_for = _phrases(left, where, problems)
    found = _phrases(rights[0], where, problems) if rights else looked_for
    if not rights and len(set(looked_for)) < 2:
        problems.append(f"{where}: a word and a synonym of it are needed, with a comma between")
    yield from ((one, other) for one in looked_for for other in found if one != other)


def _phrases(side: str, where: str, problems: list[str]) -> list[Phrase]:
    found = []
    sides = side.split(",", maxsplit=MAX_SYNONYMS + 1)
    if len(sides) > MAX_SYNONYMS + 1:
        problems.append(f"{where}: more than {MAX_SYNONYMS} synonyms")
        return []
    for it in sides:
        words = tuple(words_of(it))
        if not words:
            problems.append(f"{where}: {it.strip()!r} has no word")
        elif len(words) > MAX_WORDS:
            problems.append(f"{where}: {it.strip()!r} has more than {MAX_WORDS} words")
        else:
            found.append(words)
    return found
