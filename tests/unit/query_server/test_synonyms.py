"""Synonyms: what a rule means, which words of a query it takes, what is refused, and a file that changes."""

from pathlib import Path

import pytest

from query_server.search.synonyms import MAX_SYNONYMS, Span, SynonymsFile, parse
from tandem.runtime.settings import SettingsError
from tests.support.metrics import sample

RULES = """
# Each finds the others
st, Saint          # and this is a comment
mobile phone, cellphone, Händy
trainers => sneakers, running shoes
"""


@pytest.mark.parametrize(
    ("words", "spans"),
    [
        ("st bernard", [Span(0, 1, (("saint",),))]),
        ("saint", [Span(0, 1, (("st",),))]),
        ("a mobile phone", [Span(1, 2, (("cellphone",), ("handy",)))]),
        ("mobile", []),
        ("handy", [Span(0, 1, (("mobile", "phone"), ("cellphone",)))]),
        ("trainers", [Span(0, 1, (("sneakers",), ("running", "shoes")))]),
        ("sneakers", []),
        ("t shirt", [Span(0, 2, (("tshirt",),))]),
        ("st t shirt", [Span(0, 1, (("saint",),)), Span(1, 2, (("tshirt",),))]),
        ("5 kg", []),
        ("t", []),
    ],
)
def test_words_stand_for_others(words: str, spans: list[Span]) -> None:
    assert list(parse(RULES).of(words.split())) == spans


def test_the_longest_words_that_a_rule_has_go_first() -> None:
    synonyms = parse("tea, chai\ntea pot, kettle\n")
    assert synonyms.of(["tea", "pot"]) == (Span(0, 2, (("kettle",),)),)
    assert synonyms.of(["tea", "tea", "pot"]) == (Span(0, 1, (("chai",),)), Span(1, 2, (("kettle",),)))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("tea", "line 1: a word and a synonym of it are needed"),
        ("tea, TEA", "line 1: a word and a synonym"),
        ("\ntea, ", "line 2: '' has no word"),
        ("tea => chai => mate", "line 1: one => is all"),
        ("tea, one two three four five six", "has more than 5 words"),
        (", ".join(f"w{it}" for it in range(MAX_SYNONYMS + 2)), f"more than {MAX_SYNONYMS} synonyms"),
        ("\n".join(f"tea => w{it}" for it in range(MAX_SYNONYMS + 1)), f"line 21: 'tea' has more than {MAX_SYNONYMS}"),
        ("x" * (2**20 + 1), "more than 1048576 characters"),
        ("a\n" * 30, "; and 10 more"),
    ],
)
def test_what_is_wrong_is_named_by_its_line(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse(text)


def test_a_file_is_read_when_it_changes_and_one_that_is_wrong_changes_nothing(tmp_path: Path) -> None:
    def count(outcome: str) -> float:
        return sample("tandem_synonyms_reads_total", outcome=outcome) or 0

    file = tmp_path / "synonyms.txt"
    with pytest.raises(SettingsError, match=r"synonyms_file: .*No such file"):
        SynonymsFile(file).read()
    file.write_text("tea")
    with pytest.raises(SettingsError, match="line 1"):
        SynonymsFile(file).read()
    file.write_text("st, saint")
    synonyms, failed, read = SynonymsFile(file), count("failed"), count("read")
    synonyms.read()
    file.write_text("st")
    for _ in range(3):
        synonyms._look()
        assert synonyms.said.of(["st"]) == (Span(0, 1, (("saint",),)),)
    assert (count("failed"), sample("tandem_synonyms_outdated")) == (failed + 1, 1)
    file.write_text("st, street")
    synonyms._look()
    synonyms._look()
    assert synonyms.said.of(["st"]) == (Span(0, 1, (("street",),)),)
    assert (count("read"), sample("tandem_synonyms_outdated")) == (read + 1, 0)
