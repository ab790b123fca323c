"""Which RPC a list's function is for: the one that takes what its first parameter is typed as."""

import pytest

from commerce.query.v1.query_service_pb2 import DESCRIPTOR, GetProductRequest, ListRecentOrdersRequest
from query_server.app import LISTS
from query_server.orders import recent_orders
from tandem.queries.checker import QueryChecker
from tandem.queries.pages import Selection, lists_of
from tandem.services.v1.projection_service_pb2 import DESCRIPTOR as PROJECTIONS

SERVICE = DESCRIPTOR.services_by_name["QueryService"]


def test_a_list_is_for_the_rpc_that_takes_its_request() -> None:
    assert lists_of(SERVICE, LISTS)["ListRecentOrders"] is recent_orders


def test_a_list_whose_request_no_rpc_takes_or_that_is_there_twice_is_named() -> None:
    projections = PROJECTIONS.services_by_name["ProjectionService"]
    with pytest.raises(ValueError, match=r"recent_orders .* which no RPC of .*ProjectionService takes"):
        lists_of(projections, [recent_orders])

    def again(request: ListRecentOrdersRequest, check: QueryChecker) -> Selection:
        raise NotImplementedError

    with pytest.raises(ValueError, match=r"again .* which another list takes too"):
        lists_of(SERVICE, [recent_orders, again])


def test_a_list_must_be_typed() -> None:
    def untyped(request, check):  # type: ignore[no-untyped-def]
        raise NotImplementedError(GetProductRequest)

    with pytest.raises(TypeError, match="untyped: type request as a message of the contract"):
        lists_of(SERVICE, [untyped])
