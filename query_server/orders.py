"""Lists of orders."""

from commerce.query.v1.query_service_pb2 import ListRecentOrdersRequest
from shop.views import order_summary
from tandem.queries.checker import QueryChecker
from tandem.queries.pages import KeysetList, Selection

OF_CUSTOMER = KeysetList(
    order_summary, time="placed_at", position="placed_position", equal=["customer_id"], scope="customer_id"
)


def recent_orders(request: ListRecentOrdersRequest, check: QueryChecker) -> Selection:
    """The rows that the request selects; `check` collects what is wrong with it."""
    return Selection(OF_CUSTOMER, equal=(check.key_of(request.customer_id),))
