"""Rows that somebody else has changed are made again from the feed, while the views go on."""

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import text
from structlog.testing import capture_logs

from commerce.projection.v1.projection_service_pb2 import PROJECTION_STATE_FAILED, PROJECTION_STATE_RUNNING
from projector.app import VIEWS
from tandem.cli.embedded import Memcached
from tandem.read_store.damage import CHANNEL
from tandem.testing.stack import until, up_to
from tests.integration.projector.conftest import Announcements, Project, Running, Stores, cached
from tests.integration.projector.test_replay import replay, rows_of
from tests.support import events
from tests.support.builders import identity
from tests.support.metrics import sample

# The auditor would make a row good before whom the test is about.
ALONE = {"share": 0}
ONE, TWO = identity("product", 1), identity("product", 2)


def damage(stores: Stores, key: str = ONE, view: str = "product_card", value: str = "'\\xff'") -> None:
    stores.run(f"UPDATE tandem_read.{view} SET value = {value} WHERE key = '{key}'")


def report(stores: Stores, view: str, key: str = "") -> None:
    """As a query server that has met the row."""
    stores.run(f"SELECT pg_notify('{CHANNEL}', '{view} {uuid.UUID(key).hex if key else ''}')")


def repaired(view: str = "product_card") -> float:
    return sample("tandem_rows_repaired_total", view=view) or 0


def is_right(stores: Stores, *views: str) -> bool:
    """Whether the views' rows are as the feed makes them, all views at its end."""

    def as_text(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        return [tuple(str(it) if isinstance(it, uuid.UUID) else it for it in row) for row in rows]

    stored = stores.rows(*views)
    return all(as_text(rows_of(replay(stores, view))) == as_text(rows) for view, rows in stored.items())


async def until_right(stores: Stores, *views: str) -> None:
    async def right() -> bool:
        return is_right(stores, *views)

    await until(right, f"{views} are as the feed makes them", seconds=20)


@contextmanager
def one_repair(view: str = "product_card") -> Iterator[list[Any]]:
    """Within it one row is repaired, which is counted and logged."""
    before = repaired(view)
    with capture_logs() as logs:
        yield logs
    assert repaired(view) == before + 1
    assert [it["view"] for it in logs if it["event"] == "a row was made again"] == [view]


async def test_a_row_that_the_projector_cannot_read_is_made_again(
    stores: Stores, project: Project, announcements: Announcements, memcached_nodes: Callable[[int], list[Memcached]]
) -> None:
    nodes = [it.address for it in memcached_nodes(up_to(1))]
    first = await project(nodes, audit=ALONE)
    await announcements.reached(stores.append([events.product_added(1), events.product_added(2)]))
    # With its memory of rows.
    await first.stop()
    damage(stores)
    with one_repair() as logs:
        projector = await project(nodes, audit=ALONE)
        head = stores.append([events.price_changed(1), events.order_placed(1), events.price_changed(2, price=7)])
        await announcements.reached(head)
        await until_right(stores, "product_card")
        if nodes:
            # The entry is written with the row.
            async def is_cached() -> bool:
                value = cached("product_card", ONE, announcements.epochs())
                return value == stores.value("product_card", ONE)

            await until(is_cached, "the row is in the cache")
    assert [it["key"] for it in logs if it["event"].startswith("a row is damaged")] == [uuid.UUID(ONE).hex]
    await projector.until_state(PROJECTION_STATE_RUNNING)
    # And it goes on from there.
    await announcements.reached(stores.append([events.stock_adjusted(1, version=3)]))
    await until_right(stores)


async def test_a_row_that_a_reader_reports_is_made_again_on_an_idle_system(stores: Stores, project: Project) -> None:
    await project(audit=ALONE)
    await stores.reached(stores.append(events.a_history(200)))
    damage(stores, value=f"(SELECT value FROM tandem_read.product_card WHERE key = '{TWO}')")
    with one_repair():
        report(stores, "product_card", ONE)
        await until_right(stores)


async def test_a_reader_that_does_not_know_the_rows_key_reports_the_view(stores: Stores, project: Project) -> None:
    await project(audit=ALONE)
    await stores.reached(stores.append(events.order_placed(number) for number in range(1, 1200)), "order_summary")
    damage(stores, identity("order", 700), "order_summary")
    with one_repair("order_summary"):
        report(stores, "order_summary")
        await until_right(stores, "order_summary")


async def test_no_event_is_skipped_or_done_twice_by_repairs_under_writes(stores: Stores, project: Project) -> None:
    """Each event adds to the damaged row."""
    await project(audit=ALONE, follow={"batch_size": 50})
    stores.append([events.product_added(1), events.product_added(2)])
    version = 2
    for _ in range(3):
        await stores.caught_up()
        before = repaired()
        damage(stores)
        # Its memory of rows ends with the session.
        stores.end_sessions()
        deadline = time.monotonic() + 20
        while repaired() == before:
            assert time.monotonic() < deadline
            stores.append(events.stock_adjusted(1, version=version + it) for it in range(10))
            version += 10
    await until_right(stores)


async def test_a_row_that_the_feed_cannot_make_is_named_and_stays(stores: Stores, project: Project) -> None:
    await project(audit=ALONE)
    await stores.reached(stores.append([events.product_added(1), events.price_changed(1)]))
    # The first event is another product's now.
    stores.run(
        "UPDATE tandem_write.event SET payload = (SELECT payload FROM tandem_write.event WHERE position = 2)"
        " WHERE position = 1",
        "write",
    )
    damage(stores)
    with capture_logs() as logs:
        report(stores, "product_card", ONE)

        async def said() -> bool:
            return any(it["event"] == "rows cannot be made again" for it in logs)

        await until(said, "it is said")
    assert stores.value("product_card", ONE) == b"\xff"


async def test_a_row_that_is_gone_is_parked_and_takes_what_waits_when_it_is_made_again(
    stores: Stores, project: Project
) -> None:
    projector = await project(follow={"retry_seconds": 600})
    await stores.reached(stores.append([events.product_added(1), events.product_added(2)]))
    stores.run(f"DELETE FROM tandem_read.product_card WHERE key = '{ONE}'")
    # Its memory of rows ends with the session.
    stores.end_sessions()
    stores.append([events.price_changed(1), events.price_changed(2)])
    await stores.caught_up()
    assert (await projector.list())["product_card"].parked_keys == 1
    report(stores, "product_card", ONE)
    await projector.until_state(PROJECTION_STATE_RUNNING)
    await until_right(stores)

    async def goes_on() -> bool:
        return not (await projector.list())["product_card"].parked_keys

    await until(goes_on, "nothing is parked")


async def test_watches_are_told_of_a_row_that_was_made_again_whatever_becomes_of_the_batch_that_is_to_tell_it(
    stores: Stores, project: Project
) -> None:
    projector = await project(audit=ALONE)
    await stores.reached(stores.append([events.order_placed(1), events.order_placed(2)]))
    order, view = identity("order", 1), "order_details"

    async def repair() -> None:
        before = repaired(view)
        damage(stores, order, view)
        report(stores, view, order)

        async def is_repaired() -> bool:
            return repaired(view) == before + 1

        await until(is_repaired, "the row is made again")

    async def told(head: int) -> None:
        await stores.reached(head)
        assert (view, head, uuid.UUID(order)) in stores.change_log()

    await repair()
    with stores.read.connect() as other:
        other.execute(text(f"LOCK TABLE tandem_read.{view} IN SHARE MODE"))
        head = stores.append([events.order_paid(2)])
        await projector.until_state(PROJECTION_STATE_FAILED, view)
    await told(head)
    await repair()
    stores.end_sessions()
    await told(stores.append([events.order_shipped(2)]))


async def test_rows_of_views_that_another_projector_owns_are_repaired_by_that_one(
    stores: Stores, project: Project
) -> None:
    await project(audit=ALONE)
    await stores.reached(stores.append(events.a_history(100)))
    standby: Running = await project(audit=ALONE)
    damage(stores)
    with one_repair():
        report(stores, "product_card", ONE)
        await until_right(stores)
    assert VIEWS.projections.keys() == (await standby.list()).keys()
