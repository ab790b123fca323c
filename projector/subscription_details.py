"""SubscriptionDetails: a subscription as it is now."""

from datetime import UTC

from commerce.event.v1 import event_pb2 as events
from commerce.query.v1.views_pb2 import SubscriptionDetails
from commerce.type.v1.subscription_status_pb2 import SubscriptionStatus
from shop import views
from tandem.projection.projection import Columns, Projection, present

View = SubscriptionDetails | None


def started(_view: View, event: events.SubscriptionStarted) -> SubscriptionDetails:
    return SubscriptionDetails(
        subscription_id=event.subscription_id,
        customer_id=event.customer_id,
        status=SubscriptionStatus.SUBSCRIPTION_STATUS_ACTIVE,
        plan=event.plan,
        price=event.price,
        period_months=event.period_months,
        started_at=event.started_at,
        period_start=event.period_start,
        period_end=event.period_end,
        period_price=event.price,
        period_count=event.period_count,
        version=event.version,
    )


def plan_changed(view: View, event: events.SubscriptionPlanChanged) -> SubscriptionDetails:
    changed: SubscriptionDetails = present(view)
    changed.plan = event.plan
    changed.price.CopyFrom(event.price)
    changed.period_months = event.period_months
    changed.version = event.version
    return changed


def renewed(view: View, event: events.SubscriptionRenewed) -> SubscriptionDetails:
    changed: SubscriptionDetails = present(view)
    changed.period_start.CopyFrom(event.period_start)
    changed.period_end.CopyFrom(event.period_end)
    changed.period_price.CopyFrom(event.price)
    changed.period_count += 1
    changed.version = event.version
    return changed


def cancellation_scheduled(view: View, event: events.SubscriptionCancellationScheduled) -> SubscriptionDetails:
    changed: SubscriptionDetails = present(view)
    changed.status = SubscriptionStatus.SUBSCRIPTION_STATUS_CANCELING
    changed.cancellation_reason = event.reason
    changed.version = event.version
    return changed


def cancelled(view: View, event: events.SubscriptionCancelled) -> SubscriptionDetails:
    changed: SubscriptionDetails = present(view)
    changed.status = SubscriptionStatus.SUBSCRIPTION_STATUS_CANCELLED
    changed.ended_at.CopyFrom(event.ended_at)
    changed.cancellation_reason = event.reason
    changed.version = event.version
    return changed


def lapsed(view: View, event: events.SubscriptionLapsed) -> SubscriptionDetails:
    changed: SubscriptionDetails = present(view)
    changed.status = SubscriptionStatus.SUBSCRIPTION_STATUS_LAPSED
    changed.ended_at.CopyFrom(event.ended_at)
    changed.version = event.version
    return changed


def resumed(view: View, event: events.SubscriptionResumed) -> SubscriptionDetails:
    changed: SubscriptionDetails = present(view)
    changed.status = SubscriptionStatus.SUBSCRIPTION_STATUS_ACTIVE
    changed.ClearField("cancellation_reason")
    changed.version = event.version
    return changed


def columns(view: SubscriptionDetails, began: int) -> Columns:
    """customer_id, status, started_at and started_position: the last is the start's position in the feed, for ever."""
    return view.customer_id, view.status, view.started_at.ToDatetime(tzinfo=UTC), began


PROJECTION = Projection(
    table=views.subscription_details,
    message=SubscriptionDetails,
    key_field="subscription_id",
    rules={
        "subscription_started": started,
        "subscription_plan_changed": plan_changed,
        "subscription_renewed": renewed,
        "subscription_cancellation_scheduled": cancellation_scheduled,
        "subscription_cancelled": cancelled,
        "subscription_lapsed": lapsed,
        "subscription_resumed": resumed,
    },
    columns=columns,
    began="started_position",
    begins=frozenset({"subscription_started"}),
)
