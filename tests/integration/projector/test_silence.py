"""Databases that do not answer: views are announced, taken over and followed by whoever can."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from commerce.projection.v1.projection_service_pb2 import ProjectionState
from shop.views import VIEWS
from tandem.cli.embedded import Memcached
from tests.integration.projector.conftest import Announcements, Project, Stores
from tests.support import events
from tests.support.stack import Stack, kill

RUNNING, STANDBY = ProjectionState.PROJECTION_STATE_RUNNING, ProjectionState.PROJECTION_STATE_STANDBY
Nodes = Callable[[int], list[Memcached]]


@contextmanager
def silent(stores: Stores, side: str, name: str = "tandem-projector%") -> Iterator[None]:
    """While this is entered, the sessions of this name that the database has now stand still: their clients wait."""
    found = stores.run(
        "SELECT coalesce(string_agg(pid::text, ' '), '') FROM pg_stat_activity"
        f" WHERE datname = current_database() AND application_name LIKE '{name}'",
        side,
    )
    pids = [int(pid) for pid in found.split()]
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


async def test_announcements_go_on_while_the_write_database_does_not_answer(
    stores: Stores, project: Project, announcements: Announcements, memcached_nodes: Nodes
) -> None:
    [node] = memcached_nodes(1)
    await project([node.address], follow={"heartbeat_seconds": 0.05})
    head = stores.append([events.product_added()])
    await announcements.reached(head)
    before = announcements.epochs()
    with silent(stores, "write"):
        later = stores.append([events.price_changed()])
        # The first of them may have been under way.
        for _ in range(5):
            latest = await announcements.one_more()
        assert latest.positions == dict.fromkeys(VIEWS, head)
        assert latest.cache_epochs["product_card"] == before
    await announcements.reached(later)
    assert announcements.epochs() == before, "the cache was kept"


async def test_views_are_taken_over_and_announced_while_the_write_database_is_away(
    stores: Stores, project: Project, announcements: Announcements
) -> None:
    first = await project()
    head = stores.append([events.product_added()])
    await announcements.reached(head)
    with stores.refused("write"):
        await first.stop()
        announcements.heard.clear()
        await project()
        await announcements.reached(head)
        assert (await announcements.one_more()).positions == dict.fromkeys(VIEWS, head)
    await announcements.reached(stores.append([events.price_changed()]))


async def test_views_of_another_feed_are_announced_until_the_feed_says_so(
    stores: Stores, project: Project, announcements: Announcements
) -> None:
    first = await project()
    head = stores.append([events.product_added()])
    await announcements.reached(head)
    stores.new_feed_epoch()
    with stores.refused("write"):
        await first.stop()
        announcements.heard.clear()
        second = await project()
        await announcements.reached(head)
    found = await second.until_state(ProjectionState.PROJECTION_STATE_FAILED)
    assert all(f"tandem rebuild {view} --switch" in it.error for view, it in found.items())


async def test_a_projector_that_cannot_read_the_feed_releases_its_views_to_one_that_can(
    stores: Stores, project: Project, announcements: Announcements, memcached_nodes: Nodes
) -> None:
    [node] = memcached_nodes(1)
    follow = {"heartbeat_seconds": 0.05, "release_seconds": 0.2}
    first = await project([node.address], follow=follow)
    await announcements.reached(stores.append([events.product_added()]))
    before = announcements.epochs()
    with silent(stores, "write"):
        # Its sessions are new, and answer.
        second = await project([node.address], follow=follow)
        await second.until_state(RUNNING)
        await first.until_state(STANDBY)
        await announcements.reached(stores.append([events.price_changed()]))
        assert announcements.epochs() == before, "the cache was handed over"
        await first.stop()
    await announcements.reached(stores.append([events.stock_adjusted(version=3, delta=1)]))


async def test_a_session_that_stands_still_keeps_no_view_from_a_standby(
    processes: Stack, process_stores: Stores, heard: Announcements
) -> None:
    """Its client is gone, and PostgreSQL does not notice: the session is not there to be ended."""
    processes.projector.start()
    await heard.reached(process_stores.append(events.a_history(50)))
    before = heard.epochs()
    with silent(process_stores, "read", "tandem-projector"):
        kill(processes.projector)
        standby = processes.new_projector()
        standby.start()
        await heard.reached(process_stores.append([events.product_added(1000)]))
        assert heard.epochs() != before
    await heard.reached(process_stores.append([events.price_changed(1000)]))
