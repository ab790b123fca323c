"""A view is made anew beside the one that is served, compared, exchanged, exchanged back and dropped."""

from typing import TYPE_CHECKING

from commerce.projection.v1.projection_service_pb2 import ProjectionState
from shop.views import VIEWS
from tests.integration.projector.conftest import Announcements, Project, Stores
from tests.support import events
from tests.support.builders import identity
from tests.support.operating import KEPT, READY, operator

if TYPE_CHECKING:
    pass

RUNNING, FAILED = ProjectionState.PROJECTION_STATE_RUNNING, ProjectionState.PROJECTION_STATE_FAILED
ORDER = identity("order", 1)


def damage(stores: Stores, key: str = ORDER) -> None:
    """A row that differs from what the events make."""
    stores.run(f"UPDATE tandem_read.order_details SET value = value || '\\x7a00'::bytea WHERE key = '{key}'")


def tables(stores: Stores, schema: str) -> set[str]:
    with stores.read.connect() as connection:
        rows = connection.exec_driver_sql(f"SELECT tablename FROM pg_tables WHERE schemaname = '{schema}'").all()
    return {row.tablename for row in rows}


async def test_every_view_is_made_anew_compared_exchanged_back_and_dropped_while_events_come(
    stores: Stores, project: Project, announcements: Announcements
) -> None:
    projector = await project(follow={"rebuild_batch": 40})
    history = events.a_history(450)
    stores.append(history[:300])
    await stores.caught_up()
    definitions = _definitions(stores)
    generations = _generations(stores)
    async with operator(projector.port) as ask:
        await ask.rebuild(*VIEWS)
        stores.append(history[300:400])
        found = await ask.until(READY, *VIEWS)
        for view, it in found.items():
            same = it.comparison
            assert (same.changed_count, same.missing_count, same.added_count) == (0, 0, 0), view
            assert same.row_count == len(stores.rows(view)[view])
        assert _generations(stores) == generations
        for view in VIEWS:
            await ask.switch(view)
        await ask.until(KEPT, *VIEWS)
        switched = _generations(stores)
        assert all(switched[view] != generations[view] for view in VIEWS)
        assert _definitions(stores) == definitions
        head = stores.append(history[400:])
        await announcements.reached(head)
        served = stores.rows()
        for view in VIEWS:
            await ask.switch(view)
        await ask.until(READY, *VIEWS)
        assert _generations(stores) == generations
        assert stores.rows() == served, "the one that was kept was followed on"
        for view in VIEWS:
            await ask.drop(view)
        await ask.until_gone()
    assert tables(stores, "tandem_read_other") == tables(stores, "tandem_read_passage") == set()
    assert _definitions(stores) == definitions
    assert stores.positions().keys() == VIEWS.keys()
    await announcements.reached(stores.append([events.product_added(77)]))


def _generations(stores: Stores) -> dict[str, int]:
    with stores.read.connect() as connection:
        rows = connection.exec_driver_sql("SELECT view, generation FROM tandem_read.projection").all()
    return {row.view: row.generation for row in rows if row.view in VIEWS}


def _definitions(stores: Stores) -> set[str]:
    """Of the tables that are served: indexes, constraints, triggers, options, privileges."""
    with stores.read.connect() as connection:
        rows = connection.exec_driver_sql("""
            SELECT indexdef FROM pg_indexes WHERE schemaname = 'tandem_read'
            UNION ALL SELECT conrelid::regclass || conname || pg_get_constraintdef(oid) FROM pg_constraint
              WHERE connamespace = 'tandem_read'::regnamespace
            UNION ALL SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal
              AND tgrelid::regclass::text LIKE 'tandem_read.%%'
            UNION ALL SELECT relname || coalesce(reloptions::text, '') || coalesce(relacl::text, '') FROM pg_class
              WHERE relnamespace = 'tandem_read'::regnamespace AND relkind = 'r'""").all()
    return {row[0] for row in rows}
