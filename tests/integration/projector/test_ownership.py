"""G5, G7: one projector at a time writes a view, whoever dies, pauses or is deposed."""

import asyncio
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text

from commerce.projection.v1.projection_service_pb2 import ProjectionState
from commerce.query.v1.views_pb2 import ProductCard
from shop.views import CACHED_VIEWS, VIEWS
from tandem.cli.embedded import Memcached
from tandem.feed.head import read_head
from tandem.feed.table import CHANNEL
from tandem.projection.ownership import FreeView, begin_session, take_over
from tandem.projection.statements import Deposed
from tandem.runtime.database import driver_under
from tandem.testing.stack import kill, pause, resume, until, wait_until
from tests.integration.projector.conftest import Announcements, Project, Running, Stores, cached
from tests.support import events
from tests.support.builders import identity
from tests.support.projecting import OWNER, plan, store
from tests.support.stack import Stack

RUNNING, STANDBY = ProjectionState.PROJECTION_STATE_RUNNING, ProjectionState.PROJECTION_STATE_STANDBY
PRODUCT = identity("product", 1)
SOMEBODY_WAITS = (
    "SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
)


def own(stores: Stores, epoch: uuid.UUID, view: str, position: int = 0) -> None:
    """A view that OWNER writes."""
    stores.run(
        "INSERT INTO tandem_read.projection (view, feed_epoch, position, owner)"
        f" VALUES ('{view}', '{epoch}', {position}, '{OWNER}')"
    )


async def test_a_standby_waits_says_so_and_takes_over_after_a_clean_stop(
    stores: Stores, project: Project, announcements: Announcements
) -> None:
    first = await project()
    await announcements.reached(stores.append([events.product_added()]))
    second = await project()
    assert {it.position for it in (await second.until_state(STANDBY)).values()} == {1}
    assert {it.state for it in (await first.list()).values()} == {RUNNING}
    await first.stop()
    await second.until_state(RUNNING)
    await announcements.reached(stores.append([events.price_changed()]))


async def test_views_are_held_one_by_one_so_that_projectors_can_share_them(
    stores: Stores, project: Project, announcements: Announcements
) -> None:
    epoch = stores.run("SELECT epoch FROM tandem_write.feed_head", "write")
    with stores.read.connect().execution_options(isolation_level="AUTOCOMMIT") as other:
        session = begin_session(other, None)
        assert take_over(driver_under(other), "product_card", session, FreeView(None, None), epoch)
        projector = await project()
        found = await projector.until_state(RUNNING, *(VIEWS.keys() - {"product_card"}))
        assert found["product_card"].state == STANDBY
        head = stores.append(events.a_history(50))
        await announcements.reached(head, *(VIEWS.keys() - {"product_card"}))
        assert stores.positions()["product_card"] == 0
        other.invalidate()  # the connection goes, and its lock with it
    await announcements.reached(head)


async def test_a_projector_whose_view_was_moved_by_another_cannot_commit(stores: Stores) -> None:
    """The second line of defence, for when a lock was lost unseen."""
    stores.append([events.product_added(), events.price_changed()])
    with stores.write.connect() as connection:
        epoch = read_head(connection).epoch
    own(stores, epoch, "product_card")
    history = stores.events()
    with stores.read.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        stale = plan(connection, "product_card", history[:1])
        store(connection, epoch, 0, 2, {"product_card": plan(connection, "product_card", history)})
        before = (stores.rows(), stores.change_log(), stores.positions())
        with pytest.raises(Deposed):
            store(connection, epoch, 0, 1, {"product_card": stale})
    assert (stores.rows(), stores.change_log(), stores.positions()) == before


async def test_a_batch_of_which_one_view_was_moved_by_another_changes_none(stores: Stores) -> None:
    stores.append([events.product_added()])
    with stores.write.connect() as connection:
        epoch = read_head(connection).epoch
    views = ("product_card", "product_search")
    for view, position in zip(views, (0, 1), strict=True):
        own(stores, epoch, view, position)
    before = (stores.rows(), stores.change_log(), stores.positions())
    with stores.read.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        changes = {view: plan(connection, view, stores.events()) for view in views}
        with pytest.raises(Deposed, match="product_card, product_search: moved by another projector"):
            store(connection, epoch, 0, 1, changes)
    assert (stores.rows(), stores.change_log(), stores.positions()) == before


def test_a_batch_that_waited_while_one_of_its_views_was_moved_writes_nothing(stores: Stores) -> None:
    """Between its snapshot and its locks, another projector moves one of the two views and commits."""
    head = stores.append([events.product_added()])
    epoch = stores.run("SELECT epoch FROM tandem_write.feed_head", "write")
    views = ("product_card", "product_search")
    for view in views:
        own(stores, epoch, view)
    with (
        stores.read.connect() as another,
        stores.read.connect().execution_options(isolation_level="AUTOCOMMIT") as ours,
        ThreadPoolExecutor(1) as thread,
    ):
        changes = {view: plan(ours, view, stores.events()) for view in views}
        another.execute(text("UPDATE tandem_read.projection SET position = 1 WHERE view = 'product_search'"))
        storing = thread.submit(store, ours, epoch, 0, head, changes)
        wait_until(lambda: stores.run(SOMEBODY_WAITS), "the batch waits for the other projector")
        another.commit()
        with pytest.raises(Deposed):
            storing.result()
    assert not any(stores.rows().values())
    assert stores.change_log() == []
    assert stores.positions() == {"product_card": 0, "product_search": 1}
    assert stores.run("SELECT count(content) FROM tandem_read.projection") == 0


def test_a_batch_that_waited_while_something_else_of_its_view_was_changed_is_written(stores: Stores) -> None:
    head = stores.append([events.product_added()])
    epoch = stores.run("SELECT epoch FROM tandem_write.feed_head", "write")
    own(stores, epoch, "product_card")
    with (
        stores.read.connect() as another,
        stores.read.connect().execution_options(isolation_level="AUTOCOMMIT") as ours,
        ThreadPoolExecutor(1) as thread,
    ):
        changes = {"product_card": plan(ours, "product_card", stores.events())}
        another.execute(text("UPDATE tandem_read.projection SET cache_epochs = NULL"))
        storing = thread.submit(store, ours, epoch, 0, head, changes)
        wait_until(lambda: stores.run(SOMEBODY_WAITS), "the batch waits")
        another.commit()
        storing.result()
    assert stores.positions() == {"product_card": head}
    assert stores.value("product_card", PRODUCT)


async def test_a_deposed_projector_starts_over_from_where_the_other_came_to(
    stores: Stores, project: Project, announcements: Announcements, memcached_nodes: Callable[[int], list[Memcached]]
) -> None:
    [node] = memcached_nodes(1)
    # Without the poll, which could take in what is not to be heard.
    projector = await project([node.address], follow={"poll_seconds": 10})
    added = stores.append([events.product_added()])
    await announcements.reached(added)
    before = announcements.epochs()
    # As if another had taken in two more events: this one may do nothing to the view that follows from position 1. The
    # view first: this one may look at the feed at any moment, woken by the first event that it has read already.
    stores.run(f"UPDATE tandem_read.projection SET position = {added + 2}, mark = 0 WHERE view = 'product_card'")
    stores.append_unheard([events.stock_adjusted(delta=5), events.stock_adjusted(version=3, delta=7)])
    await announcements.reached(stores.append([events.price_changed(version=4)]))
    assert announcements.epochs() != before
    assert cached("product_card", PRODUCT, announcements.epochs()) == stores.value("product_card", PRODUCT)
    await stop_at_once(projector, stores)


@pytest.mark.parametrize("batch_size", [1, 1000])
async def test_a_deposed_projector_forgets_the_rows_that_it_remembered_or_folded_ahead(
    stores: Stores, project: Project, announcements: Announcements, batch_size: int
) -> None:
    projector = await project(follow={"poll_seconds": 10, "batch_size": batch_size})
    added = stores.append([events.product_added(stock=10)])
    await announcements.reached(added)
    # As if another had taken in the next event: the row is not what this one wrote last.
    taken = ProductCard.FromString(stores.value("product_card", PRODUCT) or b"")
    taken.available += 5
    stores.run(
        f"UPDATE tandem_read.product_card SET value = decode('{taken.SerializeToString().hex()}', 'hex');"
        f"UPDATE tandem_read.projection SET position = {added + 1}, mark = 0 WHERE view = 'product_card'"
    )
    stores.append_unheard([events.stock_adjusted(delta=5)])
    await announcements.reached(stores.append([events.stock_adjusted(version=3, delta=7)]))
    assert ProductCard.FromString(stores.value("product_card", PRODUCT) or b"").available == 10 + 5 + 7
    await stop_at_once(projector, stores)


async def stop_at_once(projector: Running, stores: Stores) -> None:
    """What waits for events looks whether it is to stop when it is notified, and else when it polls."""
    stopping = asyncio.create_task(projector.stop())
    while not stopping.done():
        stores.run(f"NOTIFY {CHANNEL}", "write")
        await asyncio.wait([stopping], timeout=0.05)
    await stopping


def no_entry_differs_from_its_row(stores: Stores, heard: Announcements) -> None:
    for view, rows in stores.rows(*CACHED_VIEWS).items():
        for row in rows:
            assert cached(view, str(row[0]), heard.epochs(view)) in {None, row[-1]}


async def test_an_event_is_projected_once_when_a_projector_dies_between_the_commit_and_the_cache(
    processes: Stack, process_stores: Stores, heard: Announcements
) -> None:
    [node] = processes.nodes
    processes.projector.start()
    await heard.reached(process_stores.append([events.product_added(stock=10)]))
    pause(node)
    head = process_stores.append([events.stock_adjusted(delta=5)])
    await process_stores.reached(head)
    kill(processes.projector)
    assert max(heard.positions("product_card")) < head, "it died before it announced"
    row = process_stores.value("product_card", PRODUCT)
    log = process_stores.change_log()
    resume(node)  # which now stores what the dead one had sent

    processes.projector.start()
    await heard.reached(head)
    assert process_stores.value("product_card", PRODUCT) == row
    assert process_stores.change_log() == log
    no_entry_differs_from_its_row(process_stores, heard)
    await heard.reached(process_stores.append([events.stock_adjusted(version=3, delta=1)]))
    assert cached("product_card", PRODUCT, heard.epochs()) == process_stores.value("product_card", PRODUCT)


async def test_a_standby_takes_over_from_one_that_hangs_and_its_late_writes_are_never_read(
    processes: Stack, process_stores: Stores, heard: Announcements
) -> None:
    [node] = processes.nodes
    processes.projector.start()
    standby = processes.new_projector()
    standby.start()
    await heard.reached(process_stores.append([events.product_added(stock=10)]))
    before = heard.epochs()

    # It hangs with a batch committed whose entry is on its way to the node, or will be sent when it wakes up.
    pause(node)
    head = process_stores.append([events.stock_adjusted(delta=5)])
    await process_stores.reached(head)
    pause(processes.projector)
    resume(node)
    await heard.reached(head)
    assert heard.epochs() != before
    head = process_stores.append([events.stock_adjusted(version=3, delta=7)])
    await heard.reached(head)
    row = process_stores.value("product_card", PRODUCT)
    assert cached("product_card", PRODUCT, heard.epochs()) == row

    resume(processes.projector)

    async def started_over() -> bool:
        return '"event": "starting over"' in processes.projector.log_tail(40)

    await until(started_over, "the one that hung finds that its views have another owner")
    assert cached("product_card", PRODUCT, heard.epochs()) == row
    late = cached("product_card", PRODUCT, before)
    assert late not in {None, row}, "what it wrote late is there, under an epoch that nobody reads"
    positions = heard.positions("product_card")
    assert positions == sorted(positions)


async def test_a_standby_takes_over_from_one_that_is_killed(
    processes: Stack, process_stores: Stores, heard: Announcements
) -> None:
    processes.projector.start()
    standby = processes.new_projector()
    standby.start()
    await heard.reached(process_stores.append(events.a_history(50)))
    before = heard.epochs()
    kill(processes.projector)
    head = process_stores.append([events.product_added(1000)])
    await heard.reached(head)
    assert heard.epochs() != before
    key = identity("product", 1000)
    assert cached("product_card", key, heard.epochs()) == process_stores.value("product_card", key)
