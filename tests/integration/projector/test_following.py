"""The feed becomes rows, positions, the change log and announcements, each event once."""

import uuid
from collections.abc import Collection, Mapping

import pytest
from pydantic import SecretStr

from commerce.event.v1.event_pb2 import Event
from commerce.query.v1.views_pb2 import ProductCard
from shop.views import VIEWS
from tandem.projection.changes import NOTHING_PARKED, FoundRows, ViewChanges
from tandem.projection.fold import fold_steps
from tandem.projection.rows import RowSource
from tandem.projection.statements import select_rows
from tandem.runtime.database import create_database_engine, driver_under
from tandem.runtime.settings import DatabaseSettings
from tandem.testing.stack import until
from tests.integration.projector.conftest import Announcements, Project, Rows, Stores
from tests.support import events
from tests.support.builders import NOW, identity
from tests.support.events import a_history, feed_events
from tests.support.projecting import PROJECTIONS, fold, plan, steps

HISTORY = a_history(400, seed=7)


def expected_rows(history: list[Event]) -> Rows:
    """The rows of each view, folded in memory: (key, position, …, value)."""
    found: Rows = {}
    for view, projection in PROJECTIONS.items():
        changes = fold(projection, feed_events(history), {})
        rows = {key: row for key, row in changes.rows.items() if row is not None}
        found[view] = [(uuid.UUID(bytes=key), rows[key].position, rows[key].value) for key in sorted(rows)]
    return found


def essentials(rows: Rows) -> Rows:
    return {view: [(row[0], row[1], row[-1]) for row in found] for view, found in rows.items()}


@pytest.mark.parametrize("batch_size", [1, 7, 500])
async def test_the_feed_becomes_the_views_whatever_the_size_of_batches(
    stores: Stores, project: Project, batch_size: int
) -> None:
    stores.append(HISTORY[:300])
    await project(follow={"batch_size": batch_size})
    stores.append(HISTORY[300:])
    await stores.caught_up()
    assert essentials(stores.rows()) == expected_rows(HISTORY)
    log = [
        (view, position, uuid.UUID(bytes=key))
        for view, projection in PROJECTIONS.items()
        for position, key in fold(projection, feed_events(HISTORY), {}).log
    ]
    assert stores.change_log() == sorted(log)


def test_what_the_batch_before_changes_is_neither_loaded_nor_remembered_for_the_next(stores: Stores) -> None:
    stores.append([events.product_added(1, stock=10), events.product_added(2), events.stock_adjusted(1, delta=5)])
    added, also_added, adjusted = stores.events()
    one, two = (uuid.UUID(identity("product", number)).bytes for number in (1, 2))
    projection = PROJECTIONS["product_card"]
    asked: list[set[bytes]] = []
    with stores.read.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:

        def select(wanted: Mapping[str, Collection[bytes]]) -> FoundRows:
            asked.extend(map(set, wanted.values()))
            return select_rows(driver_under(connection), PROJECTIONS, wanted)

        def next_one(rows: RowSource) -> ViewChanges:
            concerned = steps(projection, [adjusted])
            return fold_steps(projection, concerned, rows.find({"product_card": {one}})["product_card"])

        first = plan(connection, "product_card", [added, also_added])
        source = RowSource(select, lambda _view: NOTHING_PARKED, ["product_card"], 1_000_000)
        source.add_folded({"product_card": first})
        row = next_one(source).rows[one]
        source.written()
        source.add_folded({"product_card": ViewChanges(rows={one: None, two: None})})
        without = next_one(source)
    assert row is not None
    assert ProductCard.FromString(row.value).available == 15
    assert "NotThere" in str(without.parked)
    assert asked == []


def test_rows_are_looked_up_by_one_plan_however_many_are_asked_for(stores: Stores) -> None:
    settings = DatabaseSettings(url=SecretStr(stores.read_url))
    engine = create_database_engine(settings, name="test", pool_size=1, by_key=True, autocommit=True)
    keys = [uuid.UUID(identity("product", number)).bytes for number in range(10)]
    with engine.connect() as connection:
        driver = driver_under(connection)
        for count in range(1, 10):
            select_rows(driver, PROJECTIONS, {"product_card": keys[:count]})
        plans = driver.execute(
            "SELECT custom_plans, generic_plans FROM pg_prepared_statements WHERE statement LIKE '%product_card%'"
        )
        assert plans.fetchall() == [(0, 9)]
    engine.dispose()


async def test_recent_orders_can_be_selected_by_customer_and_the_position_they_were_placed_at(
    stores: Stores, project: Project
) -> None:
    placed = stores.append([events.product_added(), events.order_placed()])
    await project()
    stores.append([events.order_paid(), events.order_shipped()])
    await stores.caught_up()
    [(key, position, customer, placed_at, placed_position, _)] = stores.rows("order_summary")["order_summary"]
    assert (str(key), str(customer)) == (identity("order", 1), identity("customer", 1))
    assert placed_at == events.at(1).ToDatetime(tzinfo=NOW.tzinfo)
    assert (placed_position, position) == (placed, placed + 2)


async def test_a_lost_notification_is_made_up_for_by_the_poll(
    stores: Stores, project: Project, announcements: Announcements
) -> None:
    await project()
    await announcements.reached(0)
    await announcements.reached(stores.append_unheard([events.product_added()]))
    assert stores.value("product_card", identity("product", 1))


async def test_a_view_that_nothing_in_a_batch_concerns_moves_on(stores: Stores, project: Project) -> None:
    await project()
    head = stores.append([events.customer_registered()])
    await stores.reached(head)
    assert stores.rows("product_card", "order_details") == {"product_card": [], "order_details": []}


async def test_a_view_that_is_behind_catches_up_alone_to_the_same_bytes(stores: Stores, project: Project) -> None:
    stores.append(HISTORY)
    first = await project()
    await stores.caught_up()
    rows, log = stores.rows(), stores.change_log()
    await first.stop()
    stores.run("TRUNCATE tandem_read.order_details")
    stores.run("DELETE FROM tandem_read.change WHERE view = 'order_details'")
    stores.run("UPDATE tandem_read.projection SET position = 0 WHERE view = 'order_details'")
    await project(follow={"batch_size": 50})
    await stores.caught_up()
    assert (stores.rows(), stores.change_log()) == (rows, log)


async def test_positions_are_announced_only_after_their_rows_are_committed(
    stores: Stores, project: Project, announcements: Announcements
) -> None:
    await project()
    for number in range(1, 20):
        head = stores.append([events.product_added(number)])
        await announcements.reached(head)
        assert all(position >= head for position in stores.positions().values())
    for view in VIEWS:
        heard = announcements.positions(view)
        assert heard == sorted(heard)


async def test_announcements_go_on_while_nothing_happens(
    stores: Stores, project: Project, announcements: Announcements
) -> None:
    await project(follow={"heartbeat_seconds": 0.05})
    for _ in range(3):
        assert (await announcements.one_more()).positions == dict.fromkeys(VIEWS, 0)


async def test_old_rows_of_the_change_log_are_purged_in_small_batches(stores: Stores, project: Project) -> None:
    first = await project()
    stores.append(HISTORY)
    await stores.caught_up()
    await first.stop()
    newest = stores.run("SELECT max(position) FROM tandem_read.change")
    stores.run("UPDATE tandem_read.change SET changed_at = now() - interval '3 hours' WHERE position <= 300")
    await project(change_log={"keep_hours": 2, "purge_batch": 100})

    async def purged() -> bool:
        return bool(stores.run("SELECT min(position) > 300 FROM tandem_read.change"))

    await until(purged, "what is older than two hours is purged")
    assert stores.run("SELECT max(position) FROM tandem_read.change") == newest


async def test_a_projector_may_start_before_anything_else_is_there(
    stores: Stores, project: Project, announcements: Announcements
) -> None:
    for side in ("write", "read"):
        stores.run(f"ALTER SCHEMA tandem_{side} RENAME TO later", side)
    projector = await project()
    assert not await projector.is_ready()
    for side in ("read", "write"):
        stores.run(f"ALTER SCHEMA later RENAME TO tandem_{side}", side)
    await announcements.reached(0)
    assert await projector.is_ready()
    head = stores.append([events.product_added()])
    await announcements.reached(head)
