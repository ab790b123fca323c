"""A view that cannot go on, a feed that is another, databases that go away: visible, and mended by themselves."""

import pytest
from structlog.testing import capture_logs

from commerce.projection.v1.projection_service_pb2 import ProjectionState
from commerce.query.v1.views_pb2 import ProductCard
from shop.views import VIEWS
from tandem.testing.stack import until
from tests.integration.projector.conftest import Announcements, Project, Stored, Stores
from tests.support import events
from tests.support.builders import identity
from tests.support.operating import operator

RUNNING, FAILED = ProjectionState.PROJECTION_STATE_RUNNING, ProjectionState.PROJECTION_STATE_FAILED
ORDERS = ("order_details", "order_summary")
OTHERS = tuple(VIEWS.keys() - set(ORDERS))


async def test_a_view_that_cannot_take_an_event_in_stops_alone_right_before_it(
    stores: Stores, project: Project, announcements: Announcements
) -> None:
    projector = await project()
    # An id that is none; what comes before it in the same batch is taken in.
    wrong = events.order_paid()
    wrong.order_paid.order_id = "nothing"
    head = stores.append([events.product_added(), events.order_placed(1), wrong, events.order_paid(1)])
    await stores.reached(head, *OTHERS)
    found = await projector.until_state(FAILED, *ORDERS)
    for view in ORDERS:
        assert found[view].position == 2
        assert found[view].lag_events == 2
        assert found[view].error.startswith("event 3 (order_paid): ValueError:")
    assert {found[view].state for view in OTHERS} == {RUNNING}
    assert len(stores.rows("order_details")["order_details"]) == 1
    head = stores.append([events.price_changed()])
    await announcements.reached(head, *OTHERS)
    assert announcements.heard[-1].positions == {**dict.fromkeys(ORDERS, 2), **dict.fromkeys(OTHERS, head)}


@pytest.mark.parametrize("batch_size", [3, 1000])
async def test_a_view_whose_rows_cannot_be_stored_stops_alone_and_goes_on_when_that_has_passed(
    stores: Stores, project: Project, batch_size: int
) -> None:
    stores.run("ALTER TABLE tandem_read.product_card RENAME COLUMN price TO cost")
    head = stores.append([events.product_added(), events.customer_registered(), events.order_placed()])
    if batch_size == 3:
        # A second batch, which is folded on top of the first while that is refused.
        head = stores.append([events.stock_adjusted(delta=5), events.order_placed(2)])
    projector = await project(follow={"batch_size": batch_size})
    found = await projector.until_state(FAILED, "product_card")
    assert found["product_card"].error.startswith("events after 0: (psycopg.errors.UndefinedColumn)")
    await stores.reached(head, *(VIEWS.keys() - {"product_card"}))
    assert stores.positions()["product_card"] == 0

    stores.run("ALTER TABLE tandem_read.product_card RENAME COLUMN cost TO price")
    await projector.until_state(RUNNING)
    await stores.caught_up()
    card = ProductCard.FromString(stores.value("product_card", identity("product", 1)) or b"")
    assert card.available == (100 - 1 + 5 - 1 if batch_size == 3 else 100 - 1)


async def test_an_event_of_which_it_cannot_be_said_what_it_changes_stops_the_views_that_it_concerns_alone(
    stores: Stores, project: Project
) -> None:
    """A number of days that no calendar has is an OverflowError, before there is anything to write."""
    placed = events.order_placed(2)
    placed.order_placed.placed_at.seconds = 10**15
    head = stores.append([events.product_added(), events.order_placed(1), placed, events.price_changed()])
    projector = await project()
    found = await projector.until_state(FAILED, "sales_summary")
    assert "event 3 (order_placed): OverflowError" in found["sales_summary"].error
    assert found["sales_summary"].position == 2
    others = tuple(VIEWS.keys() - {"sales_summary"})
    await stores.reached(head, *others)
    assert (await projector.list())["order_summary"].parked_keys == 1, "its row is known, and cannot be made"


async def test_an_event_of_a_kind_that_this_program_does_not_know_is_never_passed_over(
    stores: Stores, project: Project
) -> None:
    stores.append([events.product_added()])
    head = stores.append_stored([Stored("order_returned", b"")])
    projector = await project()
    found = await projector.until_state(FAILED)
    assert {(it.position, it.lag_events) for it in found.values()} == {(head - 1, 1)}
    assert all("this program does not know this kind of event" in it.error for it in found.values())


async def test_a_failure_is_logged_once_however_often_it_is_tried(
    stores: Stores, project: Project, announcements: Announcements
) -> None:
    with capture_logs() as logs:
        projector = await project(follow={"retry_seconds": 0.01, "heartbeat_seconds": 0.05})
        wrong = events.order_paid()
        wrong.order_paid.order_id = "nothing"
        stores.append([wrong])
        await projector.until_state(FAILED, *ORDERS)
        for _ in range(5):
            await announcements.one_more()
        await projector.stop()
    failures = [it for it in logs if it["event"] == "a view cannot go on"]
    assert sorted(it["view"] for it in failures) == sorted(ORDERS)


async def test_views_of_another_feed_are_refused_and_a_rebuild_makes_them_anew(
    stores: Stores, project: Project, announcements: Announcements
) -> None:
    first = await project()
    await announcements.reached(stores.append([events.product_added()]))
    before = stores.rows()
    await first.stop()
    epoch = stores.new_feed_epoch()
    second = await project()
    found = await second.until_state(FAILED)
    assert all(f"tandem rebuild {view} --switch" in it.error for view, it in found.items())
    stores.append([events.price_changed()])
    assert stores.rows() == before, "what is served is left alone"

    async with operator(second.port) as ask:
        await ask.make_anew()
    await second.until_state(RUNNING)
    assert stores.change_log() == [], "what it said was of the other feed"

    async def announced() -> bool:
        return announcements.heard[-1].feed_epoch == epoch

    await until(announced, "the views of the feed that is there are announced")
    assert stores.value("product_card", identity("product", 1))


async def test_a_feed_that_becomes_another_while_it_is_followed_is_refused(
    stores: Stores, project: Project, announcements: Announcements
) -> None:
    projector = await project(follow={"heartbeat_seconds": 0.05})
    await announcements.reached(stores.append([events.product_added()]))
    before = stores.rows()
    stores.new_feed_epoch()
    stores.append([events.price_changed()])
    await projector.until_state(FAILED)
    assert stores.rows() == before
    assert set(stores.positions().values()) == {1}


async def test_a_write_database_that_goes_away_is_told_and_followed_again_when_it_is_back(
    stores: Stores, project: Project, announcements: Announcements
) -> None:
    projector = await project(follow={"heartbeat_seconds": 0.05})
    head = stores.append([events.product_added()])
    await announcements.reached(head)
    with stores.refused("write"):
        found = await projector.until_state(FAILED)
        assert all("the write database is away" in it.error for it in found.values())
        assert {it.position for it in found.values()} == {head}
        assert await projector.is_ready(), "what was projected is served; the query servers need not know"
        assert (await announcements.one_more()).positions == dict.fromkeys(VIEWS, head)
    await announcements.reached(stores.append([events.price_changed()]))
    await projector.until_state(RUNNING)


async def test_a_read_database_that_goes_away_is_written_again_when_it_is_back(
    stores: Stores, project: Project
) -> None:
    projector = await project()
    await stores.reached(stores.append([events.product_added()]))
    with stores.refused("read"):

        async def is_unready() -> bool:
            return not await projector.is_ready()

        await until(is_unready, "the projector is not ready")
        stores.append([events.price_changed()])
    await stores.caught_up()
    await projector.until_state(RUNNING)
    assert await projector.is_ready()


async def test_a_session_that_ended_while_it_was_idle_does_not_show(stores: Stores, project: Project) -> None:
    projector = await project()
    assert await projector.is_ready()
    await projector.until_state(RUNNING)
    for side in ("read", "write"):
        stores.end_sessions(side, "tandem-projector-status")
    assert {it.error for it in (await projector.list()).values()} == {""}
    stores.end_sessions("read", "tandem-projector-status")
    assert await projector.is_ready()
