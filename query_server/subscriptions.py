"""Lists of subscriptions."""

from commerce.query.v1.query_service_pb2 import ListSubscriptionsRequest
from shop.views import subscription_details
from tandem.queries.checker import QueryChecker
from tandem.queries.pages import KeysetList, Selection

_STARTED = {"time": "started_at", "position": "started_position", "scope": "customer_id"}

OF_CUSTOMER = KeysetList(subscription_details, **_STARTED, equal=["customer_id"])
OF_STATUSES = KeysetList(subscription_details, **_STARTED, one_of="status")
OF_CUSTOMER_AND_STATUSES = KeysetList(subscription_details, **_STARTED, equal=["customer_id"], one_of="status")


def subscriptions(request: ListSubscriptionsRequest, check: QueryChecker) -> Selection:
    """The rows that the request selects; `check` collects what is wrong with it."""
    customer_id = check.key_of(request.customer_id) if request.customer_id else None
    # Each once, in one order however they came.
    statuses = tuple(sorted(set(request.statuses)))
    if customer_id is None:
        if not statuses:
            for field in ("customer_id", "statuses"):
                check.wrong(field, "REQUIRED", "customer_id or statuses is required")
        return Selection(OF_STATUSES, one_of=statuses)
    rows = OF_CUSTOMER_AND_STATUSES if statuses else OF_CUSTOMER
    return Selection(rows, equal=(customer_id,), one_of=statuses)
