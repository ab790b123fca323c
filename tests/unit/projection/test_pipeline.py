"""Batches on their way: three at once, one after the other to whoever looks, and nothing left of what fails."""

import threading
from collections.abc import Collection, Mapping, Sequence

import psycopg
import pytest

from commerce.query.v1.views_pb2 import ProductCard
from tandem.feed.events import FeedEvent
from tandem.projection.changes import NOTHING_PARKED, FoundRows, StoredRow
from tandem.projection.pipeline import EventBatch, Pipeline
from tandem.projection.rows import RowSource
from tests.support import events
from tests.support.events import feed_events
from tests.support.projecting import KINDS, PROJECTIONS

CARDS, DETAILS = "product_card", "order_details"
PATIENCE = 10.0


class Store:
    """A feed and its views, in memory. `found`, `written`: the positions that batches begin and end at, in order."""

    def __init__(self, feed: Sequence[FeedEvent], limit: int = 2) -> None:
        self.feed = feed
        self.limit = limit
        self.rows: dict[str, dict[bytes, StoredRow]] = {CARDS: {}, DETAILS: {}}
        self.positions = {CARDS: 0, DETAILS: 0}
        self.found: list[int] = []
        self.written: list[int] = []
        self.fails_at = {"find": -1, "write": -1}
        self.source = RowSource(self.select, lambda _view: NOTHING_PARKED, self.rows, 1_000_000)
        self.pipeline = Pipeline(self.find, self.source, self.write)

    def find(self, views: Sequence[str], after: int, mark: int) -> EventBatch | None:
        self.found.append(after)
        if after == self.fails_at["find"]:
            raise psycopg.OperationalError("not found")
        assert mark == (self.feed[after - 1].mark if after else 0)
        feed = self.feed[after : after + self.limit]
        projections = [PROJECTIONS[view] for view in views]
        if not feed:
            return None
        full = len(feed) == self.limit
        return EventBatch(
            projections, after, feed, KINDS, self.source, mark_before=mark, full=full, fills=False, max_rows=1000
        )

    def select(self, wanted: Mapping[str, Collection[bytes]]) -> FoundRows:
        return {
            view: {key: self.rows[view][key] for key in keys if key in self.rows[view]} for view, keys in wanted.items()
        }

    def write(self, batch: EventBatch) -> None:
        if batch.after == self.fails_at["write"]:
            raise psycopg.IntegrityError("not written")
        for view, move in batch.moves.items():
            assert self.positions[view] == move.before
            self.positions[view] = move.after
            self.rows[view].update({key: row.stored for key, row in move.changes.rows.items() if row})
        self.written.append(batch.after)

    def step(self, *views: str) -> EventBatch | None:
        position = self.positions[views[0]]
        mark = self.feed[position - 1].mark if position else 0
        return self.pipeline.step(list(views), position, mark, goes_on=True)

    def available(self) -> int:
        [(_, value)] = self.rows[CARDS].values()
        return ProductCard.FromString(value).available


def adjusted(*deltas: int) -> list[FeedEvent]:
    """A product with a stock of 100, and changes of it."""
    return feed_events([events.product_added(stock=100), *(events.stock_adjusted(delta=it) for it in deltas)])


def test_a_row_that_every_batch_changes_is_what_all_of_them_make_of_it() -> None:
    store = Store(adjusted(*range(1, 12)))
    while store.step(CARDS):
        pass
    assert store.available() == 100 + sum(range(1, 12))
    assert store.written == [2, 4, 6, 8, 10, 12], "each once, in order"


def test_while_a_batch_is_written_the_next_but_one_is_found() -> None:
    store = Store(adjusted(*range(9)))
    looked = threading.Event()
    find, write = store.find, store.write

    def find_and_tell(views: Sequence[str], after: int, mark: int) -> EventBatch | None:
        if after == 4:
            looked.set()
        return find(views, after, mark)

    def write_once_it_was_looked(batch: EventBatch) -> None:
        assert looked.wait(PATIENCE), "nobody looks for what comes behind the next batch"
        write(batch)

    store.pipeline = Pipeline(find_and_tell, store.source, write_once_it_was_looked)
    store.step(CARDS)
    assert (store.found, store.written) == ([0, 2, 4], [2])
    store.step(CARDS)
    assert (store.found, store.written) == ([0, 2, 4, 6], [2, 4])


def test_when_a_batch_is_not_written_what_was_made_of_it_is_found_anew() -> None:
    store = Store(adjusted(*range(9)))
    store.fails_at["write"] = 4
    store.step(CARDS)
    with pytest.raises(psycopg.IntegrityError):
        store.step(CARDS)
    store.found.clear()
    store.fails_at["write"] = -1
    store.step(CARDS)
    assert (store.found, store.written) == ([2, 4, 6], [2, 4])


def test_what_cannot_be_found_ahead_says_so_in_its_turn() -> None:
    store = Store(adjusted(*range(9)))
    store.fails_at["find"] = 4
    store.step(CARDS)
    store.step(CARDS)
    assert store.written == [2, 4]
    with pytest.raises(psycopg.OperationalError):
        store.step(CARDS)


def test_behind_a_view_that_stops_nothing_is_done_ahead() -> None:
    wrong = events.order_paid(7)
    wrong.order_paid.order_id = "nothing"
    store = Store(feed_events([events.product_added(1), wrong, *map(events.product_added, (2, 3))]))
    batch = store.step(CARDS, DETAILS)
    assert batch is not None
    assert store.positions == {CARDS: 2, DETAILS: 1}
    assert (store.found, batch.leads_on) == ([0], False)


def test_what_was_done_ahead_is_of_its_own_views_alone() -> None:
    store = Store(adjusted(*range(9)))
    store.step(CARDS)
    store.found.clear()
    store.step(DETAILS)
    assert store.found[0] == 0
    assert store.positions == {CARDS: 2, DETAILS: 2}


def test_a_batch_with_nothing_behind_it_is_written_alone() -> None:
    store = Store(adjusted(1), limit=3)
    store.step(CARDS)
    assert (store.found, store.written) == ([0], [2])
    assert store.step(CARDS) is None
