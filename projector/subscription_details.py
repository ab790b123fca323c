"""SubscriptionDetails: a subscription as it is now."""

from commerce.event.v1 import event_pb2 as events
from commerce.query.v1.views_pb2 import SubscriptionDetails
from commerce.type.v1.subscription_status_pb2 import SubscriptionStatus
from shop import views
from tandem.projection.projection import Projection


def started(_view: SubscriptionDetails | None, event: events.SubscriptionStarted) -> SubscriptionDetails:
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


def plan_changed(view: SubscriptionDetails, event: events.SubscriptionPlanChanged) -> SubscriptionDetails:
    view.plan = event.plan
    view.price.CopyFrom(event.price)
    view.period_months = event.period_months
    view.version = event.version
    return view


def renewed(view: SubscriptionDetails, event: events.SubscriptionRenewed) -> SubscriptionDetails:
    view.period_start.CopyFrom(event.period_start)
    view.period_end.CopyFrom(event.period_end)
    view.period_price.CopyFrom(event.price)
    view.period_count += 1
    view.version = event.version
    return view


def cancellation_scheduled(
    view: SubscriptionDetails, event: events.SubscriptionCancellationScheduled
) -> SubscriptionDetails:
    view.status = SubscriptionStatus.SUBSCRIPTION_STATUS_CANCELING
    view.cancellation_reason = event.reason
    view.version = event.version
    return view


def cancelled(view: SubscriptionDetails, event: events.SubscriptionCancelled) -> SubscriptionDetails:
    view.status = SubscriptionStatus.SUBSCRIPTION_STATUS_CANCELLED
    view.ended_at.CopyFrom(event.ended_at)
    view.cancellation_reason = event.reason
    view.version = event.version
    return view


def lapsed(view: SubscriptionDetails, event: events.SubscriptionLapsed) -> SubscriptionDetails:
    view.status = SubscriptionStatus.SUBSCRIPTION_STATUS_LAPSED
    view.ended_at.CopyFrom(event.ended_at)
    view.version = event.version
    return view


def resumed(view: SubscriptionDetails, event: events.SubscriptionResumed) -> SubscriptionDetails:
    view.status = SubscriptionStatus.SUBSCRIPTION_STATUS_ACTIVE
    view.ClearField("cancellation_reason")
    view.version = event.version
    return view


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
    scope="customer_id",
    begins=frozenset({"subscription_started"}),
)
