"""Names, in each of the spellings in which a domain's files have them, derived from one."""

import keyword
import re
from collections.abc import Iterator
from importlib.util import find_spec
from typing import NamedTuple

_LONGEST = 40
"""Letters: PostgreSQL cuts names off behind 63, and indexes are called after their tables."""
_WORDS = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:[_-][A-Za-z0-9]+)*")


class CannotWrite(Exception):
    """Nothing was written. problems: each in words."""

    def __init__(self, *problems: str) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class Name(NamedTuple):
    """plant_bed, PlantBed, plant_beds, PLANT_BEDS."""

    snake: str
    camel: str
    plural: str

    @property
    def upper_plural(self) -> str:
        return self.plural.upper()


def name_of(given: str) -> Name:
    """The spellings of a name, which may be given as plant_bed, plant-bed or PlantBed."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", given.replace("-", "_"))
    words = apart.lower().split("_")
    snake = "_".join(words)
    return Name(snake, "".join(it.capitalize() for it in words), "_".join([*words[:-1], plural(words[-1])]))


def plural(word: str) -> str:
    if re.search(r"[^aeiou]y$", word):
        return f"{word[:-1]}ies"
    return f"{word}es" if re.search(r"(?:s|x|z|ch|sh)$", word) else f"{word}s"


def problems_of(what: str, given: str) -> Iterator[str]:
    """What is wrong with a name by itself. what: "the command"."""
    if not _WORDS.fullmatch(given):
        yield f"{what} {given!r} is no name: letters, digits and _, as plant_bed or PlantBed, and a letter first"
        return
    snake = name_of(given).snake
    if len(snake) > _LONGEST:
        yield f"{what} {given!r} has more than {_LONGEST} letters"
    if keyword.iskeyword(snake) or keyword.issoftkeyword(snake):
        yield f"{what} {given!r} is a word of Python"


def problems_of_package(given: str) -> Iterator[str]:
    """What is wrong with a name for a domain: it is a Python package beside all that are installed."""
    problems = list(problems_of("the domain", given))
    yield from problems
    if not problems and find_spec(name_of(given).snake) is not None:
        yield f"there is a Python module {name_of(given).snake} already: the domain {given!r} would hide it"
