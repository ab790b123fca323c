"""What a test of a view is told when it fails."""

import re

import pytest

from commerce.event.v1.event_pb2 import Event
from commerce.query.v1.views_pb2 import ProductCard
from shop.events import EVENTS
from tandem.testing.differences import differences
from tandem.testing.views import view
from tests.support.builders import identity, usd
from tests.support.events import order_placed, price_changed, product_added
from tests.support.projecting import PROJECTIONS

CARD = view(PROJECTIONS["product_card"], EVENTS)
TEA = identity("product", 1)


def test_a_row_is_named_where_there_are_several() -> None:
    rows = CARD.after(product_added(1, stock=7), product_added(2, stock=8))
    assert rows.message(of=TEA).available == 7
    with pytest.raises(AssertionError, match="product_card has 2 rows, not one"):
        rows.message()
    rows.shows_nothing(of=identity("product", 3))
    with pytest.raises(AssertionError, match=r"was to have no row, and has ProductCard\("):
        rows.shows_nothing(of=TEA)


def test_what_differs_is_said_in_words() -> None:
    expected = CARD.after(product_added(stock=7)).message()
    expected.name, expected.available = "Tea", 6
    expected.ClearField("price")
    says = (
        "the row of product_card differs:\n"
        "  name: 'Tea' was expected, 'Product 1' came\n"
        '  price: nothing was expected, Money(minor_units: 1999 currency_code: "USD") came\n'
        "  available: 6 was expected, 7 came"
    )
    with pytest.raises(AssertionError, match=re.escape(says)):
        CARD.after(product_added(stock=7)).shows(expected)


def test_an_event_that_the_row_does_not_take_is_said_and_one_of_another_row_is_let_be() -> None:
    with pytest.raises(AssertionError, match=r"product_card parks event 1 \(price_changed\): NotThere"):
        CARD.after(price_changed(version=2)).message()
    with pytest.raises(AssertionError, match=r"product_card parks event 1 \(price_changed\): NotThere"):
        CARD.after(price_changed(version=2)).shows_nothing()
    rows = CARD.after(product_added(1, stock=7), order_placed(lines=[(1, 2), (2, 1)]))
    assert rows.message().available == 5
    assert [position for position, _ in rows.parked()] == [2]


def test_messages_of_kinds_are_events_too() -> None:
    CARD.after(product_added().product_added).shows(CARD.after(product_added()).message())
    with pytest.raises(AssertionError, match="which is no event"):
        CARD.after(Event())


def test_lists_are_compared_one_by_one() -> None:
    one, two = ProductCard(price=usd(1)), ProductCard(price=usd(1))
    one.attributes.add(name="Origin", value="Assam")
    assert differences(one, two) == ["attributes: 1 were expected, 0 came"]
    two.attributes.add(name="Origin", value="Darjeeling")
    assert differences(one, two) == ["attributes[0].value: 'Assam' was expected, 'Darjeeling' came"]
    assert differences(one, usd(1)) == ["ProductCard was expected, Money came"]
    assert differences(one, one) == []
