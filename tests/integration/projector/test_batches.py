"""G12: a batch is bounded, and what keeps one view from going on keeps no other."""

import asyncio
import threading
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import text

from commerce.projection.v1.projection_service_pb2 import ProjectionState
from shop.events import EVENTS
from shop.views import VIEWS
from tandem.cli.embedded import Memcached
from tandem.feed import reader
from tandem.feed.events import FeedEvent
from tandem.feed.reader import FeedPart, read_events
from tandem.feed.source import FeedSource
from tandem.projection import metrics
from tandem.runtime.settings import DatabaseSettings
from tandem.testing.stack import wait_until
from tests.integration.projector.conftest import Announcements, Project, Stores
from tests.integration.projector.test_following import essentials, expected_rows
from tests.support import events

RUNNING, FAILED = ProjectionState.PROJECTION_STATE_RUNNING, ProjectionState.PROJECTION_STATE_FAILED
OTHERS = tuple(VIEWS.keys() - {"product_card"})


def slow_down(stores: Stores, view: str, seconds: float) -> None:
    """Each row of the view takes so long to be written."""
    stores.run(
        "CREATE FUNCTION tandem_read.slow() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN PERFORM pg_sleep({seconds}); RETURN NEW; END $$;"
        f" CREATE TRIGGER slow BEFORE INSERT OR UPDATE ON tandem_read.{view}"
        " FOR EACH ROW EXECUTE FUNCTION tandem_read.slow()"
    )


def slow_feed_down(stores: Stores, seconds: float) -> None:
    """Each event takes so long to be read. Nothing can be appended any more."""
    stores.run(
        "ALTER TABLE tandem_write.event RENAME TO slow_event;"
        " CREATE VIEW tandem_write.event AS SELECT it.* FROM tandem_write.slow_event AS it,"
        f" LATERAL (SELECT pg_sleep({seconds} + 0 * it.position)) AS pause",
        "write",
    )


async def test_a_lock_on_a_views_table_keeps_that_view_alone_waiting(
    stores: Stores,
    project: Project,
    announcements: Announcements,
    memcached_nodes: Callable[[int], list[Memcached]],
) -> None:
    [node] = memcached_nodes(1)
    projector = await project([node.address])
    await announcements.reached(stores.append([events.product_added()]))
    before = announcements.epochs()
    with stores.read.connect() as other:
        # As CREATE INDEX does.
        other.execute(text("LOCK TABLE tandem_read.product_card IN SHARE MODE"))
        for version in range(2, 5):
            await announcements.reached(stores.append([events.price_changed(version=version)]), *OTHERS)
        found = await projector.until_state(FAILED, "product_card")
        assert "LockNotAvailable" in found["product_card"].error
        assert {found[view].state for view in OTHERS} == {RUNNING}
    await stores.caught_up()
    await projector.until_state(RUNNING)
    assert announcements.epochs() == before, "one session all the time, with the cache as it was"


async def test_a_view_whose_position_is_locked_is_taken_over_later_and_holds_no_other_up(
    stores: Stores,
    project: Project,
    announcements: Announcements,
    memcached_nodes: Callable[[int], list[Memcached]],
) -> None:
    [node] = memcached_nodes(1)
    first = await project([node.address])
    await announcements.reached(stores.append([events.product_added(), events.customer_registered()]))
    before = announcements.epochs("customer_profile")
    await first.stop()
    announcements.heard.clear()
    # Whoever waited for the lock would hold up all that is tested.
    patient = {"read": {"lock_timeout": 60, "statement_timeout": 60}, "follow": {"lock_seconds": 60}}
    with stores.read.connect() as other:
        other.execute(text("SELECT * FROM tandem_read.projection WHERE view = 'product_card' FOR UPDATE"))
        second = await project([node.address], **patient)
        await announcements.reached(stores.append([events.price_changed()]), *OTHERS)
        await second.stop()
        await project([node.address], **patient)
        head = stores.append([events.price_changed(version=3)])
        await announcements.reached(head, *OTHERS)
        assert announcements.epochs("customer_profile") == before, "the cache is written, and handed over"
        assert not announcements.positions("product_card")
    await announcements.reached(head)


async def test_a_table_that_is_locked_when_the_feed_is_first_seen_ends_no_session(
    stores: Stores,
    project: Project,
    announcements: Announcements,
    memcached_nodes: Callable[[int], list[Memcached]],
) -> None:
    [node] = memcached_nodes(1)
    first = await project([node.address])
    head = stores.append([events.product_added()])
    await announcements.reached(head)
    await first.stop()
    # It is taken over as soon as it is known which feed it is to be of, and not before.
    stores.run("DELETE FROM tandem_read.projection WHERE view = 'order_details'")
    announcements.heard.clear()
    with stores.refused("write"):
        await project([node.address])
        await announcements.reached(head, *(VIEWS.keys() - {"order_details"}))
        before = announcements.epochs()
        metrics.HEAD.set(0)
        other = stores.read.connect()
        other.execute(text("LOCK TABLE tandem_read.projection"))
    with other:
        await asyncio.to_thread(wait_until, lambda: metrics.HEAD._value.get() == head, "the feed's head is seen")
    await announcements.reached(stores.append([events.price_changed()]))
    assert announcements.epochs() == before


async def test_a_batch_that_takes_too_long_is_halved_until_it_does_not(
    stores: Stores, project: Project, announcements: Announcements
) -> None:
    slow_down(stores, "product_card", 0.005)
    head = stores.append([events.product_added(number) for number in range(100)])
    await project(read={"statement_timeout": 0.2})
    await stores.reached(head, *OTHERS)
    await stores.caught_up()
    assert len(stores.rows("product_card")["product_card"]) == 100
    positions = announcements.positions("product_card")
    assert positions == sorted(positions)


async def test_a_batch_that_takes_long_keeps_no_view_from_being_announced(
    stores: Stores, project: Project, announcements: Announcements
) -> None:
    """Readers trust the cache for 3 s after an announcement."""
    projector = await project(
        follow={"heartbeat_seconds": 0.05, "statement_seconds": 60}, read={"statement_timeout": 60}
    )
    head = stores.append([events.product_added()])
    await announcements.reached(head)
    # The next row of the view is written when the test says so.
    stores.run(
        "CREATE TABLE tandem_read.held (); INSERT INTO tandem_read.held DEFAULT VALUES;"
        "CREATE FUNCTION tandem_read.hold() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " WHILE EXISTS (SELECT FROM tandem_read.held) LOOP PERFORM pg_sleep(0.02); END LOOP; RETURN NEW; END $$;"
        " CREATE TRIGGER hold BEFORE UPDATE ON tandem_read.product_card"
        " FOR EACH ROW EXECUTE FUNCTION tandem_read.hold()"
    )
    later = stores.append([events.price_changed()])
    sleeping = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = 'tandem-projector' AND wait_event = 'PgSleep'"
    )
    await asyncio.to_thread(wait_until, lambda: stores.run(sleeping), "the batch is being stored")
    for _ in range(3):
        assert (await announcements.one_more()).positions == dict.fromkeys(VIEWS, head)
    assert {it.state for it in (await projector.list()).values()} == {RUNNING}
    stores.run("DELETE FROM tandem_read.held")
    await announcements.reached(later)


@pytest.mark.parametrize("products", [1, 2])
async def test_a_single_event_may_take_as_long_as_any_statement_of_the_database(
    stores: Stores, project: Project, products: int
) -> None:
    slow_down(stores, "product_card", 0.3)
    stores.append([events.product_added(it) for it in range(products)])
    await project(follow={"statement_seconds": 0.2})
    await stores.caught_up()


async def test_a_single_event_with_more_rows_than_a_batch_may_take_so_long_too(
    stores: Stores, project: Project
) -> None:
    orders = range(1, 11)
    stores.append([events.customer_registered(), events.product_added(stock=1000), *map(events.order_placed, orders)])
    first = await project()
    await stores.caught_up()
    await first.stop()
    slow_down(stores, "order_details", 0.05)
    stores.append([events.orders_anonymized(orders=orders), events.product_added(2)])
    await project(follow={"statement_seconds": 0.2, "batch_rows": 5})
    await stores.caught_up()


async def test_an_erased_customer_with_many_orders_holds_no_other_view_up(
    stores: Stores, project: Project, announcements: Announcements
) -> None:
    orders = range(1, 301)
    history = [events.customer_registered(), events.product_added(stock=1000), *map(events.order_placed, orders)]
    history += [
        events.customer_erased(),
        *(events.orders_anonymized(orders=orders[it : it + 50]) for it in range(0, 300, 50)),
    ]
    placed = len(history) - 7
    first = await project()
    stores.append(history[:placed])
    await announcements.reached(placed)
    await first.stop()
    announcements.heard.clear()
    await project(follow={"batch_rows": 100})
    head = stores.append(history[placed:])
    await announcements.reached(head)
    assert any(
        it.positions["product_card"] == head and it.positions["order_details"] < head for it in announcements.heard
    )
    # Two events of fifty orders each are a batch, and the one before them is in the first.
    steps = sorted(set(announcements.positions("order_details")))
    assert steps == [placed, placed + 3, placed + 5, head]
    stored = essentials(stores.rows("order_details", "customer_profile"))
    assert stored == {view: rows for view, rows in expected_rows(history).items() if view in stored}


def test_events_are_read_up_to_a_number_of_bytes(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    stores.append([events.product_added(number) for number in range(10)])
    [size] = {len(it.payload) for it in stores.events()}
    with stores.write.connect() as connection:

        def read(max_bytes: int) -> list[int]:
            monkeypatch.setattr(reader, "MAX_BYTES", max_bytes)
            return [it.position for it in read_events(connection, EVENTS, 2, 7).events]

        assert read(1) == [3], "one is read however large it is"
        assert read(3 * size) == [3, 4, 5]
        assert read(3 * size + 1) == [3, 4, 5, 6]
        assert read(100 * size) == [3, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("cut", ["tandem.feed.source._MOST_EVENTS", "tandem.feed.reader.MAX_BYTES"])
async def test_nobody_waits_for_more_events_before_all_that_are_there_are_read(
    stores: Stores, project: Project, monkeypatch: pytest.MonkeyPatch, cut: str
) -> None:
    """However few are read at once: a slow feed, or large events."""
    head = stores.append([events.product_added(number) for number in range(40)])
    waits: list[int] = []
    read_to = 0
    read, wait = FeedSource.events, FeedSource.wait

    def recording_read(source: FeedSource, after: int, *others: Any) -> FeedPart | None:
        nonlocal read_to
        part = read(source, after, *others)
        read_to = max(read_to, part.events[-1].position if part is not None and part.events else 0)
        return part

    def recording_wait(source: FeedSource, stop: threading.Event) -> None:
        waits.append(read_to)
        wait(source, stop)

    monkeypatch.setattr(cut, 3)
    monkeypatch.setattr(FeedSource, "events", recording_read)
    monkeypatch.setattr(FeedSource, "wait", recording_wait)
    await project()
    await stores.caught_up()
    assert set(waits) <= {0, head}


def test_a_slow_feed_is_read_in_smaller_parts(stores: Stores) -> None:
    head = stores.append([events.product_added(number) for number in range(100)])
    epoch: uuid.UUID = stores.run("SELECT epoch FROM tandem_write.feed_head", "write")
    slow_feed_down(stores, 0.005)
    database = DatabaseSettings(url=SecretStr(stores.write_url), statement_timeout=0.2)
    source = FeedSource(database, EVENTS, name="test", poll_seconds=0.1)
    found: list[FeedEvent] = []

    def all_are_read() -> bool:
        part = source.events(len(found), 1000, epoch, 0)
        found.extend(part.events if part is not None else ())
        return len(found) == head

    wait_until(all_are_read, "all events are read")
    assert [it.position for it in found] == list(range(1, head + 1))
    source.close()
