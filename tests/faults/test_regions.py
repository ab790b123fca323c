"""A far region, which has no way to the write database: tokens hold there, and a line that is cut or loses packets
costs time and nothing else.
"""

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from commerce.projection.v1.projection_service_pb2 import ListProjectionsRequest
from commerce.query.v1.query_service_pb2 import GetOrderDetailsRequest
from tandem.feed.token import decode_token
from tandem.testing.stack import wait_until
from tests.support.builders import identity
from tests.support.regions import Regions, Watch, Writes, missing, two_regions

ORDERS = 3
ROUND_TRIP = 0.04


@pytest.fixture
def regions(servers_folder: Path) -> Iterator[Regions]:
    if reason := missing():
        pytest.skip(reason)
    with two_regions(servers_folder, round_trip=ROUND_TRIP) as made:
        yield made


def wanted(token: str, seconds: float = 30.0) -> GetOrderDetailsRequest:
    request = GetOrderDetailsRequest(order_id=identity("order", 1))
    request.consistency.at_least_as_fresh = token
    request.consistency.max_wait.FromMilliseconds(int(1000 * seconds))
    return request


def unreachable(regions: Regions) -> list[str]:
    """The stores that the far projector cannot reach, as it says to operators."""
    listed = regions.far_projections.ListProjections(ListProjectionsRequest(), timeout=10)
    return [it.store for it in listed.unreachable]


def test_a_cut_line_costs_time_and_nothing_else(regions: Regions) -> None:
    writes = Writes(regions.commands, orders=ORDERS)
    found = regions.far_queries().GetOrderDetails(wanted(writes.token))
    assert decode_token(found.as_of).position >= decode_token(writes.token).position
    assert found.order_details.order_id == identity("order", 1)
    # What was seen far holds near, too.
    seen = regions.near_queries.GetOrderDetails(wanted(found.as_of))
    assert seen.order_details == found.order_details
    assert unreachable(regions) == []
    watches = [Watch(regions.far_queries(), it) for it in writes.versions]
    wait_until(lambda: all(it.shown for it in watches), "all are shown")
    with writes.going_on():
        writes.more(20)
        _cut_and_mend(regions, writes)
        # Every tenth packet, each way.
        regions.line.lose(0.1)
        writes.more(50)
    regions.far_queries().GetOrderDetails(wanted(writes.token))
    regions.line.mend()

    regions.caught_up()
    near, far = regions.views()
    assert far == near
    assert len(far["order_details"]) > ORDERS
    wait_until(
        lambda: all(it.shown[-1] == writes.versions[it.order_id] for it in watches), "watches are at the latest state"
    )
    for it in watches:
        it.leave()
    assert all(it.only_went_forward() for it in watches)
    assert [it.ends for it in watches] == [[]] * ORDERS


def _cut_and_mend(regions: Regions, writes: Writes) -> None:
    regions.line.cut()
    before = regions.far_position()
    writes.more(50)
    with pytest.raises(grpc.RpcError) as refused:
        regions.far_queries().GetOrderDetails(wanted(writes.token, 0.3))
    assert reason(refused.value) == "PROJECTION_LAG"
    # Whoever names no token is answered from what is there.
    regions.far_queries().GetOrderDetails(GetOrderDetailsRequest(order_id=identity("order", 1)))
    wait_until(lambda: unreachable(regions) == ["broker"], "the far projector says that the broker is silent")
    assert regions.far_position() < before + 50
    regions.line.mend()
    regions.far_queries().GetOrderDetails(wanted(writes.token))


def reason(error: grpc.RpcError) -> str:
    status = rpc_status.from_call(error)
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    assert any(it.Unpack(info) for it in status.details)
    return str(info.reason)
