"""What a domain says of its views is checked when it is wired."""

from dataclasses import replace

import pytest

from shop.events import EVENTS
from tandem.projection.views import Views
from tests.support.projecting import PROJECTIONS

CARDS = PROJECTIONS["product_card"]


def test_rules_for_events_that_there_are_not_are_refused() -> None:
    wrong = replace(CARDS, rules={**CARDS.rules, "product_adedd": CARDS.rules["product_added"]})
    with pytest.raises(ValueError, match="product_card has rules for what is no kind of event: product_adedd"):
        Views(EVENTS, [wrong], cached=())


def test_a_cached_view_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match="cached, and no view: product_cart"):
        Views(EVENTS, [CARDS], cached=["product_card", "product_cart"])


def test_a_view_has_the_name_of_its_table() -> None:
    assert [view for view, it in PROJECTIONS.items() if view != it.table.name] == []
