"""A refusal names what is wrong, and stops looking when that is a lot."""

import pytest

from tandem.runtime.checker import MAX_VIOLATIONS, Checker
from tandem.runtime.errors import InvalidArgument, to_status


def test_a_refusal_stops_at_its_first_twenty_and_says_that_there_are_more() -> None:
    check = Checker()
    for number in range(MAX_VIOLATIONS):
        check.number(f"n[{number}]", 0, 1, 2)
    with pytest.raises(InvalidArgument) as refused:
        check.number(f"n[{MAX_VIOLATIONS}]", 0, 1, 2)
    *first, more = refused.value.violations
    assert [it.subject for it in first] == [f"n[{number}]" for number in range(MAX_VIOLATIONS)]
    assert (more.subject, more.kind) == ("", "MORE_VIOLATIONS")
    assert "MORE_VIOLATIONS" in str(to_status(refused.value))


def test_twenty_are_all_that_is_wrong_where_nothing_else_is() -> None:
    check = Checker()
    for number in range(MAX_VIOLATIONS):
        check.number(f"n[{number}]", 0, 1, 2)
    with pytest.raises(InvalidArgument) as refused:
        check.finish()
    assert len(refused.value.violations) == MAX_VIOLATIONS


def test_nobody_looks_past_the_limit_of_a_repeated_field() -> None:
    check = Checker()
    values = list(range(5))
    assert check.count("few", values, 5) is values
    check.finish()
    assert check.count("many", values, 3) == [0, 1, 2]
    assert check.count("none", [], 3, least=1) == []
    with pytest.raises(InvalidArgument) as refused:
        check.finish()
    assert [(it.subject, it.kind) for it in refused.value.violations] == [
        ("many", "OUT_OF_RANGE"),
        ("none", "OUT_OF_RANGE"),
    ]
