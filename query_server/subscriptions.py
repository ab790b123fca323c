"""Lists of subscriptions."""

from collections.abc import Sequence

from commerce.query.v1.query_service_pb2 import ListSubscriptionsRequest
from commerce.type.v1.subscription_status_pb2 import SubscriptionStatus
from shop.views import subscription_details
from tandem.queries.checker import QueryChecker
from tandem.queries.pages import KeysetList, Selection

MAX_STATUSES = 20
"""More than there are, and each may come twice."""

_STARTED = {"time": "started_at", "position": "started_position", "scope": "customer_id"}

OF_CUSTOMER = KeysetList(subscription_details, **_STARTED, equal=["customer_id"])
OF_STATUSES = KeysetList(subscription_details, **_STARTED, one_of="status")
OF_CUSTOMER_AND_STATUSES = KeysetList(subscription_details, **_STARTED, equal=["customer_id"], one_of="status")


def subscriptions(request: ListSubscriptionsRequest, check: QueryChecker) -> Selection:
    """The rows that the request selects; `check` collects what is wrong with it."""
    customer_id = check.key("customer_id", request.customer_id) if request.customer_id else None
    statuses = _statuses(request.statuses, check)
    if customer_id is None:
        if not statuses:
            for field in ("customer_id", "statuses"):
                check.wrong(field, "REQUIRED", "customer_id or statuses is required")
        return Selection(OF_STATUSES, one_of=statuses)
    rows = OF_CUSTOMER_AND_STATUSES if statuses else OF_CUSTOMER
    return Selection(rows, equal=(customer_id,), one_of=statuses)


def _statuses(values: Sequence[int], check: QueryChecker) -> tuple[int, ...]:
    """Each once, in one order however they came."""
    known = set(SubscriptionStatus.values()) - {SubscriptionStatus.SUBSCRIPTION_STATUS_UNSPECIFIED}
    counted = check.count("statuses", values, MAX_STATUSES)
    for number, value in enumerate(counted):
        if value not in known:
            check.wrong(f"statuses[{number}]", "MALFORMED", f"{value} is no status of a subscription")
    return tuple(sorted(set(counted)))
