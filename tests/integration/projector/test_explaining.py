"""Where a write is, and how a row came to be: what a projector tells an operator."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc import aio

from commerce.projection.v1 import projection_service_pb2 as projections
from commerce.projection.v1.projection_service_pb2_grpc import ProjectionServiceStub
from commerce.query.v1.views_pb2 import OrderDetails
from commerce.type.v1.order_status_pb2 import OrderStatus
from shop.views import VIEWS
from tandem.cli.embedded import Memcached
from tandem.feed.head import read_marked_head
from tandem.feed.token import encode_token, new_mark
from tandem.internal.v1.stored_pb2 import Envelope
from tandem.testing.stack import until
from tests.integration.projector.conftest import Announcements, Project, Running, Stores
from tests.support import events
from tests.support.archiving import archive_all, small, small_partitions
from tests.support.builders import identity

if TYPE_CHECKING:
    from commerce.projection.v1.projection_service_pb2_grpc import ProjectionServiceAsyncStub

ORDER = identity("order", 1)
BY = Envelope(actor="clerk-7", request_id=identity("request"), correlation_id="checkout")
Cached = projections.CachedState


@asynccontextmanager
async def asking(projector: Running) -> "AsyncIterator[ProjectionServiceAsyncStub]":
    async with aio.insecure_channel(f"127.0.0.1:{projector.port}") as channel:
        stub: ProjectionServiceAsyncStub = ProjectionServiceStub(channel)
        yield stub


async def history(stub: "ProjectionServiceAsyncStub", **request: Any) -> list[Any]:
    """The changes alone."""
    asked = projections.GetHistoryRequest(view="order_details", key=ORDER, **request)
    found = [it async for it in stub.GetHistory(asked, timeout=30)]
    assert found[-1].position == found[-1].until_position or request.get("last_only")
    return [it for it in found if it.HasField("event")]


def row(change: Any) -> OrderDetails:
    made = OrderDetails()
    assert change.row.Unpack(made)
    return made


async def test_what_became_of_an_event_is_said_of_every_view(
    stores: Stores,
    project: Project,
    announcements: Announcements,
    memcached_nodes: Callable[[int], list[Memcached]],
) -> None:
    [node] = memcached_nodes(1)
    projector = await project([node.address])
    stores.append([events.product_added(), events.customer_registered()])
    await stores.caught_up()
    placed = stores.append([events.order_placed(1)], BY)
    await announcements.reached(placed)
    stores.append([events.price_changed()])
    with stores.write.connect() as connection:
        head = read_marked_head(connection)
    async with asking(projector) as stub:

        async def announced() -> Any:
            answer = await stub.Explain(projections.ExplainRequest(key=ORDER), timeout=10)
            [it] = [it for it in answer.views if it.view == "order_details"]
            return answer if it.HasField("announced_by") else None

        answer: Any = await until(announced, "the announcement is noted")
        assert (answer.event.position, answer.event.type) == (placed, "order_placed")
        assert (answer.event.envelope.actor, answer.event.envelope.request_id) == (BY.actor, BY.request_id)
        assert answer.event.event.order_placed.order_id == ORDER
        views = {it.view: it for it in answer.views}
        assert views.keys() == VIEWS.keys()
        details = views["order_details"]
        assert (details.included, [*details.keys], details.waiting_for) == (True, [ORDER], "")
        assert details.cached == Cached.CACHED_STATE_CURRENT
        assert answer.stored_at.ToDatetime() <= details.changed_at.ToDatetime() <= details.announced_by.ToDatetime()
        assert not views["customer_profile"].keys
        assert len(views["sales_summary"].keys) == 2

        by_token = projections.ExplainRequest(consistency_token=encode_token(head.epoch, head.position, head.mark))
        assert (await stub.Explain(by_token, timeout=10)).event.type == "price_changed"
        forged = encode_token(head.epoch, head.position, new_mark())
        for request, code in (
            ({"consistency_token": forged}, grpc.StatusCode.FAILED_PRECONDITION),
            ({"position": head.position + 1}, grpc.StatusCode.OUT_OF_RANGE),
            ({"key": identity("nobody")}, grpc.StatusCode.NOT_FOUND),
            ({}, grpc.StatusCode.INVALID_ARGUMENT),
        ):
            with pytest.raises(aio.AioRpcError) as refused:
                await stub.Explain(projections.ExplainRequest(**request), timeout=10)
            assert refused.value.code() == code


async def test_an_event_that_is_not_there_yet_says_what_it_waits_for(stores: Stores, project: Project) -> None:
    projector = await project(follow={"parked_keys": 0})
    stores.append([events.product_added(), events.customer_registered(), events.order_paid(9)])
    last = stores.append([events.order_placed(1)])
    await stores.reached(last, "product_card")

    async with asking(projector) as stub:

        async def failed() -> Any:
            answer = await stub.Explain(projections.ExplainRequest(position=last), timeout=10)
            views = {it.view: it for it in answer.views}
            return views if "cannot" in views["order_details"].waiting_for else None

        views: Any = await until(failed, "the view has failed")
        assert not views["order_details"].included
        assert "event 3" in views["order_details"].waiting_for
        assert views["product_card"].included
    standby = await project(follow={"parked_keys": 0})
    async with asking(standby) as stub:
        answer = await stub.Explain(projections.ExplainRequest(position=last), timeout=10)
    assert {it.view: it.waiting_for for it in answer.views}["order_details"] == views["order_details"].waiting_for


async def test_a_row_is_made_again_event_by_event_and_as_it_was_at_a_position(
    stores: Stores, project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(monkeypatch)
    small_partitions(stores.write)
    placed = stores.append([events.product_added(), events.customer_registered(), events.order_placed(1)], BY)
    stores.append([events.order_placed(2), *(events.price_changed(version=it) for it in range(2, 25))])
    paid = stores.append([events.order_paid(1)])
    stores.append([events.order_paid(2)])
    archive_all(stores.write_url, tmp_path)
    projector = await project(archive={"folder": tmp_path})
    await stores.caught_up()
    async with asking(projector) as stub:
        first, second = await history(stub)
        assert [(it.event.position, it.event.type) for it in (first, second)] == [
            (placed, "order_placed"),
            (paid, "order_paid"),
        ]
        assert first.event.envelope.actor == BY.actor
        statuses = [row(it).status for it in (first, second)]
        assert statuses == [OrderStatus.ORDER_STATUS_PLACED, OrderStatus.ORDER_STATUS_PAID]
        assert row(second).SerializeToString() == stores.value("order_details", ORDER)
        [then] = await history(stub, until_position=paid - 1, last_only=True)
        assert then == first or (then.event, then.row) == (first.event, first.row)
        assert await history(stub, until_position=placed - 1) == []

        stores.run("UPDATE tandem_write.subject_key SET key = NULL", "write")
        [erased, _] = await history(stub)
        assert erased.event.personal_data_erased
        assert row(erased).customer_name == ""

        wrong = projections.GetHistoryRequest(view="orders", key="")
        with pytest.raises(aio.AioRpcError) as refused:
            await stub.GetHistory(wrong, timeout=10).read()
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "order_details" in str(refused.value.details())


async def test_there_are_four_histories_at_once(stores: Stores, project: Project) -> None:
    stores.append(events.a_history(50))
    projector = await project()
    await stores.caught_up()
    async with asking(projector) as stub:
        asked = projections.GetHistoryRequest(view="order_details", key=ORDER)
        calls = [stub.GetHistory(asked, timeout=30) for _ in range(12)]
        ended = await asyncio.gather(*(_code(it) for it in calls))
        assert set(ended) <= {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert await _code(stub.GetHistory(asked, timeout=30)) == grpc.StatusCode.OK, "those that ended count no more"


async def _code(call: Any) -> grpc.StatusCode:
    try:
        async for _ in call:
            pass
    except aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK
