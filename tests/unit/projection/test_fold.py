"""Folding: in batches of any size as one at a time, and never half an event."""

import itertools
import random
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from commerce.event.v1.event_pb2 import Event
from commerce.query.v1.views_pb2 import ProductCard
from shop.events import EVENTS
from tandem.feed.events import FeedEvent
from tandem.projection.changes import ParkedKeys, Room, StoredRow, ViewChanges, ViewRow
from tandem.projection.fold import fold_steps
from tandem.projection.projection import Projection
from tandem.projection.rows import RecentRows
from tests.support import events
from tests.support.builders import identity
from tests.support.events import Shop, feed_events
from tests.support.projecting import PROJECTIONS, fold, steps

Rows = dict[bytes, ViewRow]

CARDS = replace(PROJECTIONS["product_card"], logged=True)
"""As if they could be watched."""


def touched(projection: Projection, events: Sequence[FeedEvent]) -> set[bytes]:
    """The rows of the view that the events change, up to the first event that `fold` will stop at, at least."""
    return {key for step in steps(projection, events).steps for key in step.parts}


def product(number: int) -> bytes:
    """The key of a product's row."""
    return uuid.UUID(identity("product", number)).bytes


def stored(rows: Rows) -> dict[bytes, StoredRow]:
    """What the next batch finds of the rows."""
    return {key: row.stored for key, row in rows.items()}


def project(view: str, batches: Iterator[list[FeedEvent]]) -> tuple[Rows, list[tuple[int, bytes]]]:
    """What a view's rows and its part of the change log are after the batches."""
    rows: Rows = {}
    log: list[tuple[int, bytes]] = []
    for batch in batches:
        wanted = touched(PROJECTIONS[view], batch)
        changes = fold(PROJECTIONS[view], batch, stored({key: row for key, row in rows.items() if key in wanted}))
        assert changes.stopped_by is None
        rows.update({key: row for key, row in changes.rows.items() if row is not None})
        log += changes.log
    return rows, log


@given(rng=st.randoms(use_true_random=False), count=st.integers(1, 60), data=st.data())
def test_batches_of_any_size_give_what_one_event_at_a_time_gives(
    rng: random.Random, count: int, data: st.DataObject
) -> None:
    history = feed_events(Shop(rng).events(count))
    cuts = sorted(data.draw(st.sets(st.integers(1, count), max_size=5), label="cuts") | {0, count})
    for view in PROJECTIONS:
        in_batches = (history[start:end] for start, end in itertools.pairwise(cuts))
        assert project(view, in_batches) == project(view, ([event] for event in history))


@given(rng=st.randoms(use_true_random=False), count=st.integers(1, 60))
def test_what_is_available_is_stock_less_what_orders_hold(rng: random.Random, count: int) -> None:
    history = list(Shop(rng).events(count))
    expected: dict[str, int] = {}
    for event in history:
        for product, units in _stock_moves(event):
            expected[product] = expected.get(product, 0) + units
    changes = fold(PROJECTIONS["product_card"], feed_events(history), {})
    available = {key: ProductCard.FromString(row.value).available for key, row in changes.rows.items() if row}
    assert available == {uuid.UUID(product).bytes: units for product, units in expected.items()}


def _stock_moves(event: Event) -> list[tuple[str, int]]:
    match event.WhichOneof("kind"):
        case "product_added":
            return [(event.product_added.product_id, event.product_added.stock)]
        case "stock_adjusted":
            return [(event.stock_adjusted.product_id, event.stock_adjusted.delta)]
        case "order_placed":
            return [(line.product_id, -line.quantity) for line in event.order_placed.lines]
        case "order_cancelled":
            return [(it.product_id, it.quantity) for it in event.order_cancelled.released]
    return []


def test_the_log_names_each_key_at_each_position_that_changed_it() -> None:
    history = [
        events.product_added(1),
        events.product_added(2),
        events.customer_registered(),
        events.order_placed(lines=[(2, 1), (1, 1), (2, 1)]),
    ]
    changes = fold(CARDS, feed_events(history, first=11), {})
    one, two = product(1), product(2)
    assert changes.log == [(11, one), (12, two), (14, two), (14, one)]
    assert {key: row.position for key, row in changes.rows.items() if row} == {one: 14, two: 14}


def stopped(history: list[FeedEvent], projection: Projection = CARDS) -> ViewChanges:
    changes = fold(projection, history, {})
    assert changes.stopped_by is not None
    return changes


def parked(changes: ViewChanges) -> list[tuple[bytes, int, bool]]:
    """Key and position of each event that is parked, and whether it is the first of its key."""
    assert changes.stopped_by is None
    return [(it.key, it.position, it.error is not None) for it in changes.parked]


def test_a_row_that_cannot_take_an_event_in_is_parked_with_what_follows_and_the_others_go_on() -> None:
    history = [
        events.product_added(1, stock=9),
        events.price_changed(2),
        events.price_changed(1),
        events.stock_adjusted(2),
        events.order_placed(lines=[(1, 4), (2, 1)]),
    ]
    changes = fold(CARDS, feed_events(history, first=5), {})
    two = product(2)
    assert parked(changes) == [(two, 6, True), (two, 8, False), (two, 9, False)]
    assert changes.parked[0].error == "NotThere: it is about something that is not in the view"
    assert (changes.parked_keys, changes.values[two]) == (1, None), "the cache has no entry that would seem fresh"
    row = changes.rows[product(1)]
    assert row is not None
    assert ProductCard.FromString(row.value).available == 5, "the row that can take the order in does"
    assert (9, two) in changes.log, "who watches a row that is parked learns of it"


def test_what_a_row_took_in_before_an_event_that_it_cannot_take_stays_in_it() -> None:
    placed = [events.order_placed(number) for number in (1, 2, 3)]
    paid = events.order_paid(1)
    # The year 10000, which no column takes; the rule itself copies it.
    placed[1].order_placed.placed_at.seconds = 253_402_300_800
    changes = fold(PROJECTIONS["order_summary"], feed_events([*placed, paid]), {})
    assert parked(changes) == [(uuid.UUID(identity("order", 2)).bytes, 2, True)]
    assert changes.parked[0].error == "OverflowError: date value out of range"
    assert changes.parked[0].scope == placed[1].order_placed.customer_id, "whose list lacks it"
    assert changes.rows.keys() == {uuid.UUID(identity("order", number)).bytes for number in (1, 3)}
    one = changes.rows[uuid.UUID(identity("order", 1)).bytes]
    later = fold(PROJECTIONS["order_summary"], feed_events([events.order_paid(1)]), {})
    assert one is not None
    assert later.parked[0].scope is None, "of a row that is not there nobody knows whose it is"


def test_a_row_that_is_parked_takes_nothing_in_until_it_is_redriven() -> None:
    one = product(1)
    row = fold(CARDS, feed_events([events.product_added(1)]), {}).rows[one]
    assert row is not None
    before = ParkedKeys({one}, 1, Room(10, 10))
    step = steps(CARDS, feed_events([events.price_changed(1)], first=7))
    changes = fold_steps(CARDS, step, {one: row.stored}, before)
    assert parked(changes) == [(one, 7, False)]
    assert (changes.rows, changes.parked_keys) == ({}, 1)


def test_past_as_many_parked_keys_or_events_as_there_may_be_the_view_stops() -> None:
    history = feed_events([events.product_added(1), *(events.price_changed(number) for number in (2, 2, 3, 1))])
    for room, position in ((Room(1, 10), 4), (Room(10, 1), 3), (Room(0, 10), 2)):
        changes = fold_steps(CARDS, steps(CARDS, history), {}, ParkedKeys(frozenset(), 0, room))
        assert changes.stopped_by is not None
        assert changes.stopped_by.position == position
        assert len(changes.parked) == position - 2
        assert changes.rows.keys() == {product(1)}
        assert max(it for it, _ in changes.log) == position - 1


def test_an_event_of_a_kind_that_this_program_does_not_know_stops_every_view() -> None:
    newer = FeedEvent(EVENTS, 3, "order_returned", b"")
    for view in PROJECTIONS:
        reason = stopped([newer], PROJECTIONS[view]).stopped_by
        assert "event 3 (order_returned): this program does not know" in str(reason)
        assert touched(PROJECTIONS[view], [newer]) == set()


def test_bytes_that_are_no_event_stop_the_views_that_want_it_alone() -> None:
    broken = FeedEvent(EVENTS, 3, "price_changed", b"\xff")
    assert "event 3 (price_changed): DecodeError" in str(stopped([broken]).stopped_by)
    assert fold(PROJECTIONS["customer_profile"], [broken], {}) == ViewChanges()


def test_an_id_that_is_no_uuid_stops_the_view() -> None:
    event = events.price_changed(1)
    event.price_changed.product_id = "nothing"
    assert "event 1 (price_changed): ValueError" in str(stopped(feed_events([event])).stopped_by)


def test_the_same_view_is_the_same_bytes() -> None:
    history = feed_events(events.a_history(200))
    again = feed_events(events.a_history(200))
    for view in PROJECTIONS:
        assert project(view, iter([history])) == project(view, iter([again]))


@given(rng=st.randoms(use_true_random=False), count=st.integers(1, 60), data=st.data())
def test_rows_that_are_remembered_or_not_looked_up_give_what_loaded_rows_give(
    rng: random.Random, count: int, data: st.DataObject
) -> None:
    history = feed_events(Shop(rng).events(count))
    cuts = sorted(data.draw(st.sets(st.integers(1, count), max_size=5), label="cuts") | {0, count})
    batches = [history[start:end] for start, end in itertools.pairwise(cuts)]
    most_bytes = data.draw(st.sampled_from([0, 3_000, 1_000_000]), label="most_bytes")
    for view, projection in PROJECTIONS.items():
        rows: Rows = {}
        recent = RecentRows(most_bytes)
        for batch in batches:
            concerned = steps(projection, batch)
            needed = concerned.needed(projection)
            remembered = recent.get(needed)
            loaded = stored({key: rows[key] for key in needed - remembered.keys() if key in rows})
            changes = fold_steps(projection, concerned, remembered | loaded)
            recent.keep(changes.rows)
            rows.update({key: row for key, row in changes.rows.items() if row is not None})
        assert rows == project(view, iter(batches))[0]


def test_a_row_that_an_event_makes_is_not_looked_up_and_one_that_it_changes_is() -> None:
    history = feed_events([events.product_added(1), events.price_changed(1), events.price_changed(2)])
    projection = PROJECTIONS["product_card"]
    assert steps(projection, history).needed(projection) == {product(2)}
    assert steps(projection, history[1:]).needed(projection) == touched(projection, history)
