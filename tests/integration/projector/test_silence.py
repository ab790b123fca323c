"""Databases that do not answer: views are announced, taken over and followed by whoever can."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from grpc import StatusCode, aio
from sqlalchemy import text
from sqlalchemy.engine import make_url

from commerce.projection.v1 import projection_service_pb2 as projections
from commerce.projection.v1.projection_service_pb2 import ProjectionState
from shop.views import VIEWS
from tandem.cli.embedded import Memcached
from tandem.feed import table as feed
from tandem.testing.stack import kill, until
from tests.integration.projector.conftest import Announcements, Project, Stores
from tests.integration.projector.test_batches import slow_feed_down
from tests.support import events
from tests.support.proxy import CuttingProxy
from tests.support.stack import Stack

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
    follow = {"heartbeat_seconds": 0.05, "release_seconds": 1.0}
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


async def test_two_projectors_get_on_with_a_feed_that_is_too_slow_for_a_whole_batch(
    stores: Stores, project: Project
) -> None:
    """Each can ask for the head, and neither can read a batch before it would release the views to the other."""
    head = stores.append([events.product_added(number) for number in range(200)])
    slow_feed_down(stores, 0.005)
    follow = {"heartbeat_seconds": 0.05, "release_seconds": 0.4}
    for _ in range(2):
        await project(follow=follow)
    await stores.reached(head)


async def test_a_stop_waits_for_no_silent_database_and_what_waits_for_it_leaves_no_session(
    stores: Stores, project: Project
) -> None:
    projector = await project(audit={"share": 1.0, "round_seconds": 0.0})
    await stores.reached(stores.append([events.product_added()]))

    def sessions(side: str, condition: str = "true") -> int:
        its = "datname = current_database() AND application_name = 'tandem-projector-audit'"
        return int(stores.run(f"SELECT count(*) FROM pg_stat_activity WHERE {its} AND {condition}", side))

    async def has_begun() -> bool:
        return sessions("read") > 0

    async def waits_for_feed() -> bool:
        return sessions("write", "wait_event_type = 'Lock'") > 0

    async def has_ended() -> bool:
        return sessions("write") + sessions("read") == 0

    await until(has_begun, "the auditor reads rows")
    with stores.write.begin() as connection:
        connection.execute(text(f"LOCK TABLE {feed.event.fullname} IN ACCESS EXCLUSIVE MODE"))
        await until(waits_for_feed, "the auditor reads the feed")
        with silent(stores, "write", "tandem-projector-audit"):
            await projector.stop()
            assert sessions("read"), "it still waits"
    await until(has_ended, "the auditor has ended its sessions")


@pytest.fixture
def proxied(stores: Stores) -> Iterator[tuple[Stores, dict[str, CuttingProxy]]]:
    """The same stores behind proxies, by "write" and "read"."""
    urls = {"write": make_url(stores.write_url), "read": make_url(stores.read_url)}
    proxies = {side: CuttingProxy(("127.0.0.1", it.port or 0)) for side, it in urls.items()}
    through = Stores(
        *(it.set(port=proxies[side].port).render_as_string(hide_password=False) for side, it in urls.items())
    )
    yield through, proxies
    through.close()
    for it in proxies.values():
        it.close()


async def test_an_operator_is_answered_before_the_deadline_with_what_is_known(
    stores: Stores,
    project: Project,
    proxied: tuple[Stores, dict[str, CuttingProxy]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A busy machine has so long for the way back, and as long for what answers.
    monkeypatch.setattr("tandem.runtime.inquiries._RESERVED_SECONDS", 1.0)
    through, proxies = proxied
    projector = await project(on=through)
    head = stores.append([events.product_added()])
    await stores.caught_up()
    await projector.until_state(RUNNING)
    async with projector.stub() as stub:
        explain = projections.ExplainRequest(position=head)
        proxies["read"].be_silent()
        explained = await stub.Explain(explain, timeout=2)
        assert explained.event.type == "product_added"
        assert [it.store for it in explained.unreachable] == ["read database"]
        proxies["write"].be_silent()
        listed = await stub.ListProjections(projections.ListProjectionsRequest(), timeout=2)
        assert [it.store for it in listed.unreachable] == ["read database", "write database"]
        assert {it.view: it.position for it in listed.projections} == dict.fromkeys(VIEWS, head)
        assert listed.feed_head == head
        others = {
            stub.ListParkedKeys: projections.ListParkedKeysRequest(),
            stub.RedriveParkedKeys: projections.RedriveParkedKeysRequest(view="product_card"),
            stub.Explain: explain,
        }
        for ask, request in others.items():
            with pytest.raises(aio.AioRpcError) as refused:
                await ask(request, timeout=2)
            assert refused.value.code() is StatusCode.UNAVAILABLE, refused.value.details()
        for it in proxies.values():
            it.speak()

        async def all_is_known() -> bool:
            listed = await stub.ListProjections(projections.ListProjectionsRequest(), timeout=10)
            with contextlib.suppress(aio.AioRpcError):
                explained = await stub.Explain(explain, timeout=10)
                return not listed.unreachable and len(explained.views) == len(VIEWS)
            return False

        await until(all_is_known, "both databases answer")


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
