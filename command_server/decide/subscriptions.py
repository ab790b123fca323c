"""Rules for subscriptions."""

from datetime import UTC, datetime
from typing import Any

from google.protobuf.message import Message

from command_server.aggregates import Aggregates, Subscription, id_of
from command_server.command import Command
from command_server.decide.periods import months_later
from command_server.decide.rules import check_version, must_be_new, not_found, refuse, timestamp
from commerce.command.v1 import command_service_pb2 as commands
from commerce.event.v1.event_pb2 import (
    SubscriptionCancellationScheduled,
    SubscriptionCancelled,
    SubscriptionLapsed,
    SubscriptionPlanChanged,
    SubscriptionRenewed,
    SubscriptionResumed,
    SubscriptionStarted,
)
from commerce.internal.v1.stored_pb2 import EndSubscriptionRequest
from commerce.type.v1.money_pb2 import Money
from commerce.type.v1.subscription_status_pb2 import SubscriptionStatus

ENDED = (SubscriptionStatus.SUBSCRIPTION_STATUS_CANCELLED, SubscriptionStatus.SUBSCRIPTION_STATUS_LAPSED)


def start_subscription(
    request: commands.StartSubscriptionRequest, command: Command, aggregates: Aggregates
) -> list[Message]:
    must_be_new(aggregates.subscriptions.get(command.subject_id), "subscription", command.subject_id)
    customer = aggregates.customers.get(id_of(request.customer_id))
    subject = f"customers/{request.customer_id}"
    if customer is None:
        raise refuse("CUSTOMER_UNKNOWN", subject, "the customer is not known")
    if customer.erased:
        raise refuse("CUSTOMER_ERASED", subject, "the customer was erased")
    started = request.started_at.ToDatetime(tzinfo=UTC) if request.HasField("started_at") else command.now
    count, months = request.period_count or 1, request.period_months
    if count > 1 and months_later(started, (count - 2) * months, started.day) > command.now:
        description = f"no more than the period under way and one ahead can be paid for; {count} periods are too many"
        raise refuse("RENEWAL_TOO_EARLY", f"subscriptions/{command.subject_id}", description)
    return [
        SubscriptionStarted(
            subscription_id=str(command.subject_id),
            version=1,
            customer_id=str(customer.id),
            plan=request.plan,
            price=request.price,
            period_months=months,
            started_at=timestamp(started),
            period_start=timestamp(months_later(started, (count - 1) * months, started.day)),
            period_end=timestamp(months_later(started, count * months, started.day)),
            period_count=count,
        )
    ]


def change_subscription_plan(
    request: commands.ChangeSubscriptionPlanRequest, command: Command, aggregates: Aggregates
) -> list[Message]:
    subscription = _running(request, command, aggregates)
    if request.price.currency_code != subscription.currency:
        raise refuse("CURRENCY_MISMATCH", _name(subscription), f"its prices are in {subscription.currency}")
    return [
        SubscriptionPlanChanged(
            **_identity(subscription), plan=request.plan, price=request.price, period_months=request.period_months
        )
    ]


def renew_subscription(
    request: commands.RenewSubscriptionRequest, command: Command, aggregates: Aggregates
) -> list[Message]:
    subscription = _running(request, command, aggregates)
    if subscription.status == SubscriptionStatus.SUBSCRIPTION_STATUS_CANCELING:
        raise refuse("SUBSCRIPTION_CANCELING", _name(subscription), "it ends with its period; resume it first")
    if subscription.period_start > command.now:
        description = f"the period that begins at {subscription.period_start.isoformat()} is paid for already"
        raise refuse("RENEWAL_TOO_EARLY", _name(subscription), description)
    end = months_later(subscription.period_end, subscription.period_months, subscription.anchor_day)
    return [
        SubscriptionRenewed(
            **_identity(subscription),
            period_start=timestamp(subscription.period_end),
            period_end=timestamp(end),
            price=Money(minor_units=subscription.price, currency_code=subscription.currency),
            plan=subscription.plan,
            period_months=subscription.period_months,
        )
    ]


def cancel_subscription(
    request: commands.CancelSubscriptionRequest, command: Command, aggregates: Aggregates
) -> list[Message]:
    subscription = _running(request, command, aggregates)
    if request.when == commands.CANCELLATION_TIME_AT_ONCE:
        return [_cancelled(subscription, command.now, request.reason or subscription.cancellation_reason)]
    if subscription.status == SubscriptionStatus.SUBSCRIPTION_STATUS_CANCELING:
        raise refuse("SUBSCRIPTION_CANCELING", _name(subscription), "it ends with its period already")
    return [
        SubscriptionCancellationScheduled(
            **_identity(subscription), ends_at=timestamp(subscription.period_end), reason=request.reason
        )
    ]


def resume_subscription(
    request: commands.ResumeSubscriptionRequest, command: Command, aggregates: Aggregates
) -> list[Message]:
    subscription = _running(request, command, aggregates)
    if subscription.status != SubscriptionStatus.SUBSCRIPTION_STATUS_CANCELING:
        raise refuse("SUBSCRIPTION_NOT_CANCELING", _name(subscription), "nothing is to be taken back")
    if subscription.period_end <= command.now:
        raise refuse("SUBSCRIPTION_ENDED", _name(subscription), "its last period is over")
    return [SubscriptionResumed(**_identity(subscription))]


def end_subscription(request: EndSubscriptionRequest, command: Command, aggregates: Aggregates) -> list[Message]:
    """Ends a subscription whose period is over. The version in the request is the one that was found to be due."""
    subscription = _running(request, command, aggregates)
    if subscription.period_end > command.now:
        raise refuse("PERIOD_NOT_OVER", _name(subscription), "its period is not over")
    if subscription.status == SubscriptionStatus.SUBSCRIPTION_STATUS_CANCELING:
        return [_cancelled(subscription, subscription.period_end, subscription.cancellation_reason)]
    return [SubscriptionLapsed(**_identity(subscription), ended_at=timestamp(subscription.period_end))]


def _cancelled(subscription: Subscription, ended: datetime, reason: str) -> SubscriptionCancelled:
    return SubscriptionCancelled(**_identity(subscription), ended_at=timestamp(ended), reason=reason)


def _running(request: Message, command: Command, aggregates: Aggregates) -> Subscription:
    subscription = aggregates.subscriptions.get(command.subject_id)
    if subscription is None:
        raise not_found("subscription", command.subject_id)
    check_version(request, subscription.version)
    if subscription.status in ENDED:
        raise refuse("SUBSCRIPTION_ENDED", _name(subscription), "it has ended; start a new one")
    return subscription


def _identity(subscription: Subscription) -> dict[str, Any]:
    """What every later event of a subscription begins with."""
    return {
        "subscription_id": str(subscription.id),
        "version": subscription.version + 1,
        "customer_id": str(subscription.customer_id),
    }


def _name(subscription: Subscription) -> str:
    return f"subscriptions/{subscription.id}"
