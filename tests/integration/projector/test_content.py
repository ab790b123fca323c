"""`projection.content`: another one whenever what a search can see of a text view is another, whoever changed it."""

import uuid

import pytest

from commerce.event.v1.event_pb2 import Event
from tests.integration.projector.conftest import Project, Stores
from tests.support import events

TEXT_VIEWS = ("product_search", "search_word")


def contents(stores: Stores) -> tuple[uuid.UUID | None, ...]:
    """Of the text views."""
    return tuple(stores.run(f"SELECT content FROM tandem_read.projection WHERE view = '{view}'") for view in TEXT_VIEWS)


@pytest.mark.parametrize(
    ("event", "changed"),
    [
        (events.product_added(2), (True, False)),
        (events.product_revised(1, name="Kettle"), (True, True)),
        (events.product_revised(1, name="1 Product"), (True, True)),
        (events.product_discontinued(1), (True, False)),
        (events.price_changed(1), (False, False)),
        (events.stock_adjusted(1), (False, False)),
        (events.order_placed(lines=[(1, 2)]), (False, False)),
        (events.customer_registered(2), (False, False)),
    ],
)
async def test_events_change_the_content_of_the_views_whose_text_they_change(
    stores: Stores, project: Project, event: Event, changed: tuple[bool, ...]
) -> None:
    await project()
    stores.append([events.customer_registered(), events.product_added(1)])
    await stores.caught_up()
    before = contents(stores)
    assert None not in before
    stores.append([event])
    await stores.caught_up()
    assert tuple(one != other for one, other in zip(before, contents(stores), strict=True)) == changed


async def test_writing_what_is_there_already_changes_no_content(stores: Stores, project: Project) -> None:
    await project()
    stores.append([events.product_added(1), events.product_revised(1)])
    await stores.caught_up()
    before = contents(stores)
    stores.append([events.product_revised(1, version=3)])
    await stores.caught_up()
    assert contents(stores) == before


@pytest.mark.parametrize("view", TEXT_VIEWS)
@pytest.mark.parametrize("statement", ["DELETE FROM {}", "TRUNCATE {}", "UPDATE {} SET {} = '' "])
async def test_repairs_by_hand_change_the_content_too(
    stores: Stores, project: Project, view: str, statement: str
) -> None:
    await project()
    stores.append([events.product_added(1)])
    await stores.caught_up()
    before = contents(stores)
    column = {"product_search": "description_words", "search_word": "word"}[view]
    stores.run(statement.format(f"tandem_read.{view}", column))
    changed = [one != other for one, other in zip(before, contents(stores), strict=True)]
    assert changed == [view == it for it in TEXT_VIEWS]
    after = contents(stores)
    stores.run(f"DELETE FROM tandem_read.{view} WHERE false")
    assert contents(stores) == after, "no row was changed"


async def test_no_content_comes_twice(stores: Stores, project: Project) -> None:
    await project()
    seen = set()
    for number in range(1, 11):
        stores.append([events.product_added(1, description=str(number))] if number == 1 else [_described(number)])
        await stores.caught_up()
        seen.add(contents(stores)[0])
    # There and back again: the rows are those of before, and nobody need know.
    assert len(seen) == 10


def _described(number: int) -> Event:
    event = events.product_revised(1, version=number)
    event.product_revised.description = str(number % 2)
    return event
