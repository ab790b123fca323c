"""A feed that is not what a view was made from: commits that were lost, events that are missing. Named, and mended."""

import uuid
from typing import Any

import pytest

from commerce.projection.v1.projection_service_pb2 import Projection, ProjectionState
from shop.views import VIEWS
from tandem.commands.maintenance import begin_epoch
from tests.integration.projector.conftest import Announcements, Project, Stores
from tests.integration.projector.test_audit import OFF, verify
from tests.support import events
from tests.support.builders import identity
from tests.support.metrics import sample

RUNNING, FAILED = ProjectionState.PROJECTION_STATE_RUNNING, ProjectionState.PROJECTION_STATE_FAILED
STANDBY = ProjectionState.PROJECTION_STATE_STANDBY
BEFORE = [events.product_added(), events.customer_registered(), events.order_placed(1)]
LOST = [events.order_placed(2), events.order_placed(3), events.order_paid(1)]
INSTEAD = [events.order_placed(4), events.order_placed(5), events.order_paid(4)]


def lose(stores: Stores, after: int) -> None:
    """What PostgreSQL does that fails over to a standby without the last commits."""
    stores.run(
        f"DELETE FROM tandem_write.event WHERE position > {after};UPDATE tandem_write.feed_head SET position = {after}",
        "write",
    )


def new_epoch(stores: Stores) -> None:
    """The one command."""
    with stores.write.begin() as connection:
        begin_epoch(connection)


def column(stores: Stores, name: str) -> dict[str, Any]:
    with stores.read.connect() as connection:
        rows = connection.exec_driver_sql(f"SELECT view, {name} FROM tandem_read.projection").all()
    return {row.view: row[1] for row in rows}


async def exact(stores: Stores, project: Project) -> bool:
    """Whether the views are what a projector makes of the feed that is there from the beginning."""
    await stores.caught_up()
    served = stores.rows()
    stores.run(
        "TRUNCATE tandem_read.change, tandem_read.projection, " + ", ".join(it.fullname for it in VIEWS.values())
    )
    await project()
    await stores.caught_up()
    return served == stores.rows()


@pytest.mark.parametrize("instead", [[], INSTEAD[:1], INSTEAD], ids=["nothing", "less", "more"])
async def test_views_with_commits_that_the_feed_has_lost_say_so_until_one_command_makes_them_right(
    stores: Stores, project: Project, announcements: Announcements, instead: list[Any]
) -> None:
    projector = await project(audit=OFF)
    await announcements.reached(stores.append(BEFORE + LOST))
    lose(stores, len(BEFORE))
    if instead:
        stores.append(instead)
    found = await projector.until_state(FAILED)
    assert all(it.error.startswith("HISTORY_CHANGED: ") and "begin-epoch" in it.error for it in found.values())
    assert (await announcements.one_more()).problems == dict.fromkeys(VIEWS, "HISTORY_CHANGED")
    assert sample("tandem_projection_failed", view="order_details") == 1
    answers = await verify(projector, subjects=["order_details", "order_summary"], repair=True)
    assert all("begin-epoch" in it.problem and not it.differences for it in answers)
    assert stores.value("order_details", identity("order", 2)), "what is served is left alone until a person decides"

    generations, epochs = column(stores, "generation"), announcements.epochs()
    new_epoch(stores)
    await projector.until_state(RUNNING)
    await announcements.reached(stores.append([events.price_changed()]))
    assert (announcements.heard[-1].problems, announcements.epochs()) == ({}, epochs)
    assert all(column(stores, "generation")[view] != generations[view] for view in VIEWS)
    assert not stores.value("order_details", identity("order", 2))
    assert (uuid.UUID(identity("order", 1)), len(BEFORE + LOST)) not in [
        (key, at) for _, at, key in stores.change_log()
    ]
    await projector.stop()
    assert await exact(stores, project)


async def test_a_parked_row_takes_nothing_in_from_another_history(
    stores: Stores, project: Project, announcements: Announcements
) -> None:
    projector = await project(audit=OFF)
    await announcements.reached(stores.append(BEFORE + LOST))
    key = identity("order", 2)
    stores.run(
        "INSERT INTO tandem_read.parked (view, key, position, kind, error)"
        f" VALUES ('order_details', '{key}', {len(BEFORE) + 1}, 'order_placed', 'a rule that raised')"
    )
    before = stores.value("order_details", key)
    lose(stores, len(BEFORE))
    stores.append(INSTEAD)
    await projector.until_state(FAILED)
    redriven = await projector.redrive("order_details", key)
    assert redriven.failed_keys == 1
    assert "begin-epoch" in redriven.failing[0].error
    assert stores.value("order_details", key) == before


async def test_views_that_never_had_what_was_lost_go_on_in_the_new_epoch_where_they_are(
    stores: Stores, project: Project, announcements: Announcements
) -> None:
    projector = await project()
    await announcements.reached(stores.append(BEFORE))
    await projector.stop()
    stores.append(LOST)
    lose(stores, len(BEFORE))
    stores.append(INSTEAD)
    generations = column(stores, "generation")
    new_epoch(stores)
    projector = await project()
    await stores.caught_up()
    assert column(stores, "generation") == generations, "no view was made anew"
    await projector.stop()
    assert await exact(stores, project)


async def test_what_was_acknowledged_and_no_view_had_stops_all_views_until_an_operator_has_decided(
    stores: Stores, project: Project, announcements: Announcements
) -> None:
    """A command server alone knows of it: tandem.commands.acknowledged."""
    projector = await project()
    await announcements.reached(stores.append(BEFORE))
    generations = column(stores, "generation")
    stores.run("UPDATE tandem_write.feed_head SET lost_position = 5", "write")
    stores.append(INSTEAD)
    found = await projector.until_state(FAILED)
    assert all("event 5 was acknowledged" in it.error and "begin-epoch" in it.error for it in found.values())
    assert (await announcements.one_more()).problems == dict.fromkeys(VIEWS, "HISTORY_CHANGED")
    new_epoch(stores)
    await projector.until_state(RUNNING)
    await stores.caught_up()
    assert column(stores, "generation") == generations, "no view was made anew"
    await projector.stop()
    assert await exact(stores, project)


async def test_a_history_that_comes_back_is_gone_on_with(stores: Stores, project: Project) -> None:
    """The failover was a mistake, and the old primary is back."""
    projector = await project()
    await stores.reached(stores.append(BEFORE))
    stores.run("UPDATE tandem_write.feed_head SET position = position - 1", "write")
    await projector.until_state(FAILED)
    stores.run("UPDATE tandem_write.feed_head SET position = position + 1", "write")
    await projector.until_state(RUNNING)
    assert set(column(stores, "error").values()) == {None}


async def test_why_a_view_cannot_go_on_is_announced_by_who_takes_it_over_while_the_feed_is_away(
    stores: Stores, project: Project, announcements: Announcements
) -> None:
    first = await project()
    await announcements.reached(stores.append(BEFORE + LOST))
    lose(stores, len(BEFORE))
    await first.until_state(FAILED)
    with stores.refused("write"):
        await first.stop()
        announcements.heard.clear()
        second = await project()
        await second.until_state(FAILED)
        assert (await announcements.one_more()).problems == dict.fromkeys(VIEWS, "HISTORY_CHANGED")
    new_epoch(stores)
    await second.until_state(RUNNING)
    await stores.caught_up()
    await second.stop()
    assert await exact(stores, project)


async def test_a_standby_says_why_a_view_cannot_go_on_and_its_service_is_not_healthy(
    stores: Stores, project: Project
) -> None:
    nothing_is_parked = {"parked_keys": 0}
    active = await project(follow=nothing_is_parked)
    await active.until_state(RUNNING)
    standby = await project(follow=nothing_is_parked)
    head = stores.append([*BEFORE, events.order_paid(9)])
    await active.until_state(FAILED, "order_details")
    found = await standby.list()
    assert found["order_details"].state == STANDBY
    assert found["order_details"].error == (await active.list())["order_details"].error != ""
    assert found["product_card"].error == ""
    for projector in (active, standby):
        assert not await projector.projections_are_well()
        assert await projector.is_ready(), "it serves what there is"
    assert column(stores, "problem")["order_details"] == "VIEW_FAILED"
    await stores.reached(head, "product_card")


async def test_a_view_that_is_behind_what_was_dropped_names_what_is_missing_and_takes_nothing_in(
    stores: Stores, project: Project
) -> None:
    """Reset after old events were dropped, it would be filled from the first event that is left."""
    head = stores.append(events.a_history(20))
    stores.run("DELETE FROM tandem_write.event WHERE position <= 5", "write")
    projector = await project()
    found = await projector.until_state(FAILED)
    assert {it.error for it in found.values()} == {"EVENTS_MISSING: events 1 to 5 are not in the feed"}
    assert not any(stores.rows().values())
    assert {(it.position, it.lag_events) for it in found.values()} == {(0, head)}


@pytest.mark.parametrize(
    ("missing", "named"), [((8, 9), "events 8 to 9"), ((19, 20), "events 19 to 20")], ids=["between", "at the end"]
)
async def test_events_that_are_missing_are_never_passed_over(
    stores: Stores, project: Project, missing: tuple[int, int], named: str
) -> None:
    stores.append(events.a_history(20))
    stores.run(f"DELETE FROM tandem_write.event WHERE position BETWEEN {missing[0]} AND {missing[1]}", "write")
    projector = await project(follow={"batch_size": 3})
    found = await projector.until_state(FAILED)
    assert {it.error for it in found.values()} == {f"EVENTS_MISSING: {named} are not in the feed"}
    assert all(_is_before(it, missing[0]) for it in found.values())


def _is_before(view: Projection, position: int) -> bool:
    return view.position < position
