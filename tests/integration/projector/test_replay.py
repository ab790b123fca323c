"""Rows of views made again from the feed, beside the views."""

import uuid
from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy import Connection

from projector.app import VIEWS
from shop.events import EVENTS
from tandem.feed import table as feed
from tandem.feed.head import read_head
from tandem.feed.lookup import TableLookup
from tandem.feed.reader import EventsMissing, HistoryChanged, OtherEpoch
from tandem.projection.changes import ViewRow
from tandem.projection.replay import KeyRange, Replay, Wanted
from tests.integration.projector.conftest import Project, Stores
from tests.support.builders import identity
from tests.support.events import (
    a_history,
    customer_erased,
    customer_registered,
    order_paid,
    order_placed,
    orders_anonymized,
    product_added,
)

ALL = KeyRange()


def key_of(kind: str, number: int) -> bytes:
    return uuid.UUID(identity(kind, number)).bytes


def replay(stores: Stores, view: str, wanted: Wanted = ALL, until: int | None = None, **options: Any) -> Replay:
    """Up to the head, unless it is said otherwise."""
    with stores.write.connect() as connection:
        head = read_head(connection)
        it = Replay(EVENTS, VIEWS.projections[view], wanted, epoch=head.epoch, **options)
        advance(it, connection, head.position if until is None else until)
    return it


def advance(it: Replay, connection: Connection, until: int) -> None:
    while it.position < until:
        it.advance(TableLookup(connection, EVENTS), until)


def rows_of(it: Replay) -> list[tuple[Any, ...]]:
    """As Stores.rows has them."""
    return [_row(key, (row.position, *row.columns, row.value)) for key, row in sorted(it.rows.items())]


def _row(key: bytes, values: Sequence[Any]) -> tuple[Any, ...]:
    return uuid.UUID(bytes=key), *values


async def test_all_rows_of_every_view_are_as_the_projector_made_them(stores: Stores, project: Project) -> None:
    stores.append(a_history(1500))
    await project()
    await stores.caught_up()

    for view, stored in stores.rows().items():
        replayed = rows_of(replay(stores, view, batch_events=100))
        as_text = [tuple(str(it) if isinstance(it, uuid.UUID) else it for it in row) for row in stored]
        assert [tuple(str(it) if isinstance(it, uuid.UUID) else it for it in row) for row in replayed] == as_text, view


@pytest.mark.parametrize("count", [1, 40])
async def test_chosen_rows_are_those_that_all_would_have(stores: Stores, count: int) -> None:
    """A few are looked for by the database, many here."""
    stores.append(a_history(600))
    for view in VIEWS.projections:
        everything = replay(stores, view).rows
        keys = frozenset(sorted(everything)[::7][:count])
        found = replay(stores, view, keys, batch_events=50).rows
        assert found == {key: everything[key] for key in keys}, view
        assert found or view == "customer_profile"


async def test_a_replay_ends_at_a_position_and_goes_on_from_there(stores: Stores) -> None:
    stores.append([customer_registered(1), product_added(1), order_placed(1), order_paid(1)])
    order = key_of("order", 1)
    it = replay(stores, "order_details", frozenset({order}), until=3)
    assert it.rows[order].position == 3
    with stores.write.connect() as connection:
        advance(it, connection, 4)
    assert it.rows[order].position == 4
    assert it.rows == replay(stores, "order_details").rows


async def test_a_range_that_takes_too_much_memory_is_cut_and_the_rest_follows(stores: Stores) -> None:
    stores.append(order_placed(number) for number in range(1, 101))
    everything = replay(stores, "order_details").rows
    wanted: KeyRange | None = ALL
    found: dict[bytes, ViewRow] = {}
    cuts = 0
    while wanted is not None:
        it = replay(stores, "order_details", wanted, batch_events=10, max_bytes=30_000)
        assert len(it.rows) < 30
        assert isinstance(it.wanted, KeyRange)
        found |= it.rows
        wanted = None if it.wanted.end is None else KeyRange(it.wanted.end)
        cuts += 1
    assert found == everything
    assert cuts > 4


async def test_a_row_that_cannot_take_an_event_in_fails_alone(stores: Stores) -> None:
    stores.append([order_placed(1), order_paid(2), order_paid(1), order_placed(3)])
    it = replay(stores, "order_details")
    assert set(it.rows) == {key_of("order", 1), key_of("order", 3)}
    assert it.rows[key_of("order", 1)].position == 3
    assert {key: error.position for key, error in it.failed.items()} == {key_of("order", 2): 2}


async def test_rows_that_had_an_erased_persons_data_are_named(stores: Stores) -> None:
    stores.append([customer_registered(1), customer_registered(2), order_placed(1, customer=1)])
    stores.append([order_placed(2, customer=2), customer_erased(1), orders_anonymized(1, orders=[1])])
    stores.run(
        f"UPDATE {feed.subject_key.fullname} SET key = NULL WHERE subject_id = '{identity('customer', 1)}'", "write"
    )
    it = replay(stores, "order_details")
    assert it.unopened == {key_of("order", 1)}
    assert set(it.rows) == {key_of("order", 1), key_of("order", 2)}


async def test_a_feed_that_is_not_the_views_is_not_replayed(stores: Stores) -> None:
    stores.append(order_placed(number) for number in range(1, 4))
    with stores.write.connect() as connection:
        other = Replay(EVENTS, VIEWS.projections["order_details"], ALL, epoch=uuid.uuid4())
        with pytest.raises(OtherEpoch):
            other.advance(TableLookup(connection, EVENTS), 1)
    with pytest.raises(HistoryChanged):
        replay(stores, "order_details", until=4)
    stores.run(f"DELETE FROM {feed.event.fullname} WHERE position = 1", "write")
    with pytest.raises(EventsMissing):
        replay(stores, "order_details")
