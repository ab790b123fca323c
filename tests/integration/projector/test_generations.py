"""A view is made anew beside the one that is served, compared, exchanged, exchanged back and dropped."""

from collections.abc import Awaitable

import psycopg
import pytest
from google.rpc import error_details_pb2
from grpc import aio
from grpc_status import rpc_status
from prometheus_client import REGISTRY

from commerce.projection.v1.projection_service_pb2 import ListParkedKeysRequest, ProjectionState
from shop.views import VIEWS
from tandem.testing.stack import until
from tests.integration.projector.conftest import Announcements, Project, Stores
from tests.support import events
from tests.support.builders import identity
from tests.support.metrics import sample
from tests.support.operating import KEPT, READY, operator

RUNNING, FAILED = ProjectionState.PROJECTION_STATE_RUNNING, ProjectionState.PROJECTION_STATE_FAILED
ORDER = identity("order", 1)
SOME = ("order_details", "product_search", "sales_summary")
"""One that is cached and watched, one with triggers and generated columns, one with an option of its table."""


def tables(stores: Stores, schema: str) -> set[str]:
    with stores.read.connect() as connection:
        rows = connection.exec_driver_sql(f"SELECT tablename FROM pg_tables WHERE schemaname = '{schema}'").all()
    return {row.tablename for row in rows}


async def test_views_are_made_anew_compared_exchanged_back_and_dropped_while_events_come(
    stores: Stores, project: Project, announcements: Announcements
) -> None:
    projector = await project(follow={"rebuild_batch": 40})
    history = events.a_history(450)
    stores.append(history[:300])
    await stores.caught_up()
    definitions = _definitions(stores)
    generations = _generations(stores)
    async with operator(projector.port) as ask:
        await ask.rebuild(*SOME)
        stores.append(history[300:400])
        found = await ask.until(READY, *SOME)
        for view, it in found.items():
            same = it.comparison
            assert (same.changed_count, same.missing_count, same.added_count) == (0, 0, 0), view
            assert same.row_count == len(stores.rows(view)[view])
        assert _generations(stores) == generations
        await until(lambda: _is_shown("order_details", "ready"), "metrics show it")
        for view in SOME:
            await ask.switch(view)
        await ask.until(KEPT, *SOME)
        switched = _generations(stores)
        assert all(switched[view] != generations[view] for view in SOME)
        assert _definitions(stores) == definitions
        head = stores.append(history[400:])
        await announcements.reached(head)
        served = stores.rows()
        for view in SOME:
            await ask.switch(view)
        await ask.until(READY, *SOME)
        assert _generations(stores) == generations
        assert stores.rows() == served, "the one that was kept was followed on"
        for view in SOME:
            await ask.drop(view)
        await ask.until_gone()
    await until(_nothing_is_shown, "metrics show none that is dropped")
    assert tables(stores, "tandem_read_other") == tables(stores, "tandem_read_passage") == set()
    assert _definitions(stores) == definitions
    assert stores.positions().keys() == VIEWS.keys()
    await announcements.reached(stores.append([events.product_added(77)]))


async def _is_shown(view: str, state: str) -> bool:
    of_view = {"view": view}
    differences = [
        sample("tandem_generation_differences", **(of_view | {"kind": kind}))
        for kind in ("changed", "missing", "added")
    ]
    return (
        sample("tandem_generation_state", **(of_view | {"state": state})) == 1
        and sample("tandem_generation_progress_ratio", **of_view) == 1
        and differences == [0, 0, 0]
    )


async def _nothing_is_shown() -> bool:
    return not any(it.samples for it in REGISTRY.collect() if it.name.startswith("tandem_generation"))


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


async def test_a_view_that_cannot_go_on_is_replaced_by_one_that_can(
    stores: Stores, project: Project, announcements: Announcements
) -> None:
    first = await project()
    stores.append([events.customer_registered(), events.product_added(), events.order_placed(1)])
    await stores.caught_up()
    await first.stop()
    # As if it had been made of another history.
    stores.run("UPDATE tandem_read.projection SET mark = 7 WHERE view = 'order_details'")
    stores.append([events.order_paid(1)])
    projector = await project()
    await projector.until_state(FAILED, "order_details")
    async with operator(projector.port) as ask:
        await ask.rebuild("order_details")
        found = await ask.until(READY, "order_details")
        assert not found["order_details"].HasField("comparison")
        await ask.switch("order_details")
        await projector.until_state(RUNNING)
        assert stores.value("order_details", ORDER)
        await announcements.reached(stores.append([events.order_placed(2)]))
        assert await projector.projections_are_well(), "one that is not served may stand"
        await ask.drop("order_details")
        await ask.until_gone()


async def test_any_projector_is_asked_and_the_one_that_takes_a_view_over_takes_all_of_it(
    stores: Stores, project: Project, announcements: Announcements
) -> None:
    first = await project(follow={"rebuild_batch": 20})
    second = await project()
    head = stores.append(events.a_history(200))
    await announcements.reached(head)
    async with operator(second.port) as ask:
        await ask.rebuild("order_details", max_events_per_second=50)

        async def begun() -> bool:
            return (await ask.list())["order_details"].position > 0

        await until(begun, "it is filled")
        assert (await ask.list())["order_details"].position < head
        await first.stop()
        await second.until_state(RUNNING)
        await ask.until(READY, "order_details")
        await ask.switch("order_details")
        await ask.until(KEPT, "order_details")


async def test_an_exchange_waits_for_who_uses_the_table_says_so_and_holds_up_no_other_view(
    stores: Stores, project: Project, announcements: Announcements
) -> None:
    projector = await project(follow={"lock_seconds": 0.02})
    await announcements.reached(stores.append([events.product_added()]))
    async with operator(projector.port) as ask:
        await ask.rebuild("product_card")
        await ask.until(READY, "product_card")
        with psycopg.connect(stores.read_url) as reader:
            reader.execute("SELECT FROM tandem_read.product_card")
            await ask.switch("product_card")

            async def says_so() -> bool:
                return "lock timeout" in (await ask.list())["product_card"].error

            await until(says_so, "it says what it waits for")
            await announcements.reached(stores.append([events.price_changed()]))
        await ask.until(KEPT, "product_card")


async def test_what_cannot_be_done_is_refused_by_name(stores: Stores, project: Project) -> None:
    projector = await project()
    stores.append([events.product_added()])
    await stores.caught_up()
    async with operator(projector.port) as ask:
        assert await refusal(ask.rebuild("")) == "INVALID_REQUEST"
        assert await refusal(ask.switch("order\0details")) == "INVALID_REQUEST"
        assert await refusal(ask.drop("order\0details")) == "INVALID_REQUEST"
        token = ListParkedKeysRequest(page_token=f"\0/{ORDER}")
        async with projector.stub() as stub:
            assert await refusal(stub.ListParkedKeys(token, timeout=10)) == "INVALID_REQUEST"
        assert await refusal(ask.rebuild("order_details", max_events_per_second=2_000_000)) == "INVALID_REQUEST"
        assert await refusal(ask.rebuild("orders")) == "NOT_FOUND"
        assert await refusal(ask.switch("order_details")) == "NOT_FOUND"
        assert await refusal(ask.drop("order_details")) == "NOT_FOUND"
        assert await refusal(ask.drop("orders")) == "NOT_FOUND"
        await ask.rebuild("order_details", max_events_per_second=1)
        assert await refusal(ask.rebuild("order_details")) == "GENERATION_EXISTS"
        assert await refusal(ask.switch("order_details")) == "GENERATION_NOT_READY"
        await ask.drop("order_details")
        await ask.until_gone()


async def refusal(asking: Awaitable[object]) -> str:
    with pytest.raises(aio.AioRpcError) as refused:
        await asking
    status = rpc_status.from_call(refused.value)
    info = error_details_pb2.ErrorInfo()
    assert status is not None
    assert status.details[0].Unpack(info)
    return str(info.reason)
