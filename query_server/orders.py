"""Lists of orders."""

from commerce.query.v1.query_service_pb2 import ListRecentOrdersRequest
from query_server.queries.pages import KeysetList, Selection
from query_server.validation import Checker
from shop.views import order_summary

OF_CUSTOMER = KeysetList(order_summary, time="placed_at", position="placed_position", equal=["customer_id"])


def recent_orders(request: ListRecentOrdersRequest, check: Checker) -> Selection:
    """What the request asks for; tells `check` what is wrong with it."""
    return Selection(OF_CUSTOMER, equal=(check.uuid("customer_id", request.customer_id),))
