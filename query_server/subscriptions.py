"""Lists of subscriptions."""

from commerce.query.v1.query_service_pb2 import ListSubscriptionsRequest
from query_server.queries.pages import KeysetList, Selection
from query_server.validation import Checker
from shop.views import subscription_details

_STARTED = {"time": "started_at", "position": "started_position"}

OF_CUSTOMER = KeysetList(subscription_details, **_STARTED, equal=["customer_id"])
OF_STATUSES = KeysetList(subscription_details, **_STARTED, one_of="status")
OF_CUSTOMER_AND_STATUSES = KeysetList(subscription_details, **_STARTED, equal=["customer_id"], one_of="status")


def subscriptions(request: ListSubscriptionsRequest, check: Checker) -> Selection:
    """What the request asks for; tells `check` what is wrong with it."""
    customer_id = check.optional_uuid("customer_id", request.customer_id)
    statuses = check.statuses("statuses", request.statuses)
    if customer_id is None and not statuses:
        for field in ("customer_id", "statuses"):
            check.wrong(field, "REQUIRED", "customer_id or statuses is required")
    if customer_id is None:
        return Selection(OF_STATUSES, one_of=statuses)
    rows = OF_CUSTOMER_AND_STATUSES if statuses else OF_CUSTOMER
    return Selection(rows, equal=(customer_id,), one_of=statuses)
