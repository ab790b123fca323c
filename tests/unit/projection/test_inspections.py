"""Inspections that wait for a session, and who takes them."""

import uuid
from typing import Any

import pytest

from tandem.projection.inspection import Inspection, Inspections, NotNow


def inspection() -> Inspection:
    replay: Any = None
    return Inspection("order_details", [uuid.uuid4().bytes], replay, 1, repair=True, whole=False)


def test_those_that_a_session_has_not_come_to_when_it_ends_are_given_back() -> None:
    """Whoever asked for one waits for its answer for as long as the program runs."""
    inspections = Inspections()
    first, second = inspection(), inspection()
    for it in (first, second):
        inspections.ask(it)
    taken = []
    for it in inspections.take():
        taken.append(it)
        # The connection broke during this one.
        break
    inspections.give_back("the session is over")
    assert taken == [first]
    assert second.answer.done()
    with pytest.raises(NotNow, match="the session is over"):
        second.answer.result()


def test_one_that_is_asked_for_while_others_are_answered_is_left_to_the_next_round() -> None:
    inspections = Inspections()
    first, second = inspection(), inspection()
    inspections.ask(first)
    for it in inspections.take():
        assert it is first
        inspections.ask(second)
    assert list(inspections.take()) == [second]
