"""What the other generation of a view cannot take in is its own: it stops nobody, and goes where that one goes."""

from collections.abc import Callable

import grpc
import pytest
from grpc import aio

from commerce.projection.v1.projection_service_pb2 import (
    ExplainRequest,
    ListParkedKeysRequest,
    RedriveParkedKeysRequest,
)
from commerce.query.v1.views_pb2 import OrderDetails
from tandem.cli.embedded import Memcached
from tandem.testing.stack import until, up_to
from tests.integration.projector.conftest import Announcements, Project, Running, Stores
from tests.integration.projector.test_audit import ROW, differences, verify
from tests.integration.projector.test_parking import refuse_payments
from tests.support import events
from tests.support.builders import identity
from tests.support.metrics import sample
from tests.support.operating import KEPT, READY, operator

VIEW, OTHER = "order_details", "order_details@other"
ONE, TWO = identity("order", 1), identity("order", 2)
CARD = identity("product", 1)


def other_value(stores: Stores, view: str, key: str) -> bytes | None:
    found: bytes | None = stores.run(f"SELECT value FROM tandem_read_other.{view} WHERE key = '{key}'")
    return found


async def parked(projector: Running) -> dict[tuple[str, str], int]:
    """How many events wait, by view and key."""
    async with projector.stub() as stub:
        answer = await stub.ListParkedKeys(ListParkedKeysRequest(), timeout=10)
    return {(it.view, it.key): it.waiting_events for it in answer.parked_keys}


async def explained(projector: Running, position: int) -> tuple[bool, list[str]]:
    """Of the event there: whether the view has it, and its parked keys."""
    async with projector.stub() as stub:
        answer = await stub.Explain(ExplainRequest(position=position), timeout=10)
    [view] = [it for it in answer.views if it.view == VIEW]
    return view.included, [it.key for it in view.parked_keys]


def parked_now(view: str) -> float | None:
    return sample("tandem_projection_parked_keys", view=view)


async def test_what_is_parked_goes_with_its_generation(
    stores: Stores, project: Project, announcements: Announcements, monkeypatch: pytest.MonkeyPatch
) -> None:
    projector = await project()
    stores.append([events.product_added(), events.order_placed(1), events.order_placed(2)])
    await announcements.reached(stores.append([events.order_paid(1), events.order_paid(2)]))
    refuse_payments(monkeypatch)
    async with operator(projector.port) as ask:
        await ask.rebuild(VIEW)
        it = (await ask.until(READY, VIEW))[VIEW]
        assert (it.parked_keys, it.comparison.row_count, it.comparison.changed_count) == (1, 2, 1)
        head = stores.append([events.order_shipped(1), events.order_shipped(2)])
        await announcements.reached(head)

        async def both() -> bool:
            return await parked(projector) == {(OTHER, ONE): 2}

        await until(both, "what comes waits there")
        assert not any(said.parked for said in announcements.heard), "readers have all of it"
        assert (await projector.list())[VIEW].parked_keys == 0
        assert (parked_now(VIEW), parked_now(OTHER)) == (0, 1)
        assert OrderDetails.FromString(stores.value(VIEW, ONE) or b"").version == 3
        assert await explained(projector, 4) == (True, [])

        await ask.switch(VIEW)
        await ask.until(KEPT, VIEW)
        await announcements.parked({VIEW: 1})
        assert await parked(projector) == {(VIEW, ONE): 2}
        assert (await projector.list())[VIEW].parked_keys == 1
        assert (await ask.list())[VIEW].parked_keys == 0
        assert (parked_now(VIEW), parked_now(OTHER)) == (1, 0)
        assert OrderDetails.FromString(stores.value(VIEW, ONE) or b"").version == 1
        assert await explained(projector, 4) == (False, [ONE])

        await ask.switch(VIEW)
        await ask.until(READY, VIEW)
        await announcements.parked({})
        assert await parked(projector) == {(OTHER, ONE): 2}
        assert OrderDetails.FromString(stores.value(VIEW, ONE) or b"").version == 3

        monkeypatch.undo()
        done = await projector.redrive(OTHER)
        assert (done.keys, done.events, done.failed_keys) == (1, 2, 0)
        assert (await ask.list())[VIEW].parked_keys == 0
        assert other_value(stores, VIEW, ONE) == stores.value(VIEW, ONE)
        # They go on together.
        await announcements.reached(stores.append([events.order_delivered(1)]))
        assert other_value(stores, VIEW, ONE) == stores.value(VIEW, ONE)


async def test_what_is_parked_is_gone_with_a_generation_that_is_dropped(
    stores: Stores, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_payments(monkeypatch, TWO)
    projector = await project()
    await stores.reached(stores.append([events.product_added(), events.order_placed(2), events.order_paid(2)]))
    async with operator(projector.port) as ask:
        await ask.rebuild(VIEW)
        await ask.until(READY, VIEW)
        assert await parked(projector) == {(VIEW, TWO): 1, (OTHER, TWO): 1}
        assert parked_now(OTHER) == 1
        await ask.drop(VIEW)
        await ask.until_gone()
    assert await parked(projector) == {(VIEW, TWO): 1}
    assert parked_now(OTHER) is None
    async with projector.stub() as stub:
        with pytest.raises(aio.AioRpcError) as refused:
            await stub.RedriveParkedKeys(RedriveParkedKeysRequest(view=OTHER), timeout=10)
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


async def test_damage_in_either_generation_is_found_and_made_good_there(
    stores: Stores,
    project: Project,
    announcements: Announcements,
    memcached_nodes: Callable[[int], list[Memcached]],
) -> None:
    projector = await project([it.address for it in memcached_nodes(up_to(1))], audit={"share": 0})
    await announcements.reached(stores.append([events.product_added(1), events.product_added(2)]))
    async with operator(projector.port) as ask:
        await ask.rebuild("product_card")
        await ask.until(READY, "product_card")
        stores.run(f"UPDATE tandem_read_other.product_card SET value = '\\xff' WHERE key = '{CARD}'")
        # Rows that are in memory are not looked up.
        stores.end_sessions()
        await announcements.reached(stores.append([events.price_changed(1, price=5)]))

        async def is_right() -> bool:
            same = other_value(stores, "product_card", CARD) == stores.value("product_card", CARD)
            return same and not await parked(projector)

        await until(is_right, "the row is made again where it was damaged", seconds=20)
        assert differences(await verify(projector)) == [], "before the switch"
        await ask.switch("product_card")
        await ask.until(KEPT, "product_card")
        assert differences(await verify(projector)) == [], "and after it"
        stores.run(f"UPDATE tandem_read.product_card SET price = price + 1 WHERE key = '{CARD}'")
        assert differences(await verify(projector, repair=True)) == [("product_card", CARD, ROW)]
        assert differences(await verify(projector)) == []
