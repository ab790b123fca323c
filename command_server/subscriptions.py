"""Subscriptions: periods that are paid for, one after the other, until they end."""

import calendar
from datetime import UTC, datetime
from typing import Any, NamedTuple

from google.protobuf.message import Message
from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    SmallInteger,
    Table,
    Text,
    Uuid,
)

from command_server.customers import CUSTOMERS, customer_table
from commerce.command.v1 import command_service_pb2 as commands
from commerce.event.v1 import event_pb2 as events
from commerce.internal.v1.stored_pb2 import EndSubscriptionRequest, EndSubscriptionResponse
from commerce.type.v1.money_pb2 import Money
from commerce.type.v1.subscription_status_pb2 import SubscriptionStatus
from tandem.commands.domain import Command, change, change_fields, rule
from tandem.commands.rules import Id, datetime_of, id_of, must_be_new, refusal, timestamp
from tandem.commands.write_model import Aggregate, Keys, States
from tandem.feed.table import metadata
from tandem.runtime.bulk import Row

ENDED = (SubscriptionStatus.SUBSCRIPTION_STATUS_CANCELLED, SubscriptionStatus.SUBSCRIPTION_STATUS_LAPSED)


# The state, its table and its rows


class Subscription(NamedTuple):
    """Its plan and price are those of the next renewal; `price` in minor units for `period_months` months.

    period_start, period_end: the last period that is paid for, UTC.
    """

    id: Id
    version: int
    customer_id: Id
    status: SubscriptionStatus.ValueType
    plan: str
    price: int
    currency: str
    period_months: int
    started_at: datetime
    period_start: datetime
    period_end: datetime
    cancellation_reason: str

    @property
    def anchor_day(self) -> int:
        """The day of the month on which its periods begin and end, where the month has it."""
        return self.started_at.day


subscription_table = Table(
    "subscription",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("customer_id", Uuid, ForeignKey(customer_table.c.id), nullable=False),
    Column("status", SmallInteger, nullable=False, comment="commerce.type.v1.SubscriptionStatus"),
    Column("plan", Text, nullable=False),
    Column("price", BigInteger, nullable=False, comment="minor units"),
    Column("currency", Text, nullable=False),
    Column("period_months", Integer, CheckConstraint("period_months > 0"), nullable=False),
    Column("started_at", DateTime(timezone=True), nullable=False),
    Column("period_start", DateTime(timezone=True), nullable=False),
    Column("period_end", DateTime(timezone=True), nullable=False),
    Column("cancellation_reason", Text, nullable=False),
)
# Command servers of the version before look here for what is due: the index goes one release later.
Index(
    "subscription_due",
    subscription_table.c.status,
    subscription_table.c.period_end,
    # Subscriptions that have ended are not in it: in time they are the most.
    postgresql_where=subscription_table.c.status.in_((1, 2)),
)


def _of_row(row: Row) -> Subscription:
    it = Subscription._make(row)
    # The database answers in the session's time zone.
    return it._replace(
        started_at=it.started_at.astimezone(UTC),
        period_start=it.period_start.astimezone(UTC),
        period_end=it.period_end.astimezone(UTC),
    )


SUBSCRIPTIONS = Aggregate("subscription", subscription_table, of_row=_of_row)


# What a command needs beside its subscription


def _start_subscription_keys(request: commands.StartSubscriptionRequest, _subject: Id, keys: Keys) -> None:
    keys[CUSTOMERS].add(id_of(request.customer_id))


# The rules


@rule(SUBSCRIPTIONS, keys=_start_subscription_keys)
def start_subscription(request: commands.StartSubscriptionRequest, command: Command, states: States) -> list[Message]:
    must_be_new(states[SUBSCRIPTIONS].get(command.subject_id), "subscription", command.subject_id)
    customer = states[CUSTOMERS].get(id_of(request.customer_id))
    subject = f"customers/{request.customer_id}"
    if customer is None:
        raise refusal("CUSTOMER_UNKNOWN", subject, "the customer is not known")
    if customer.erased:
        raise refusal("CUSTOMER_ERASED", subject, "the customer was erased")
    started = request.started_at.ToDatetime(tzinfo=UTC) if request.HasField("started_at") else command.now
    count, months = request.period_count or 1, request.period_months
    if count > 1 and months_later(started, (count - 2) * months, started.day) > command.now:
        description = f"no more than the period under way and one ahead can be paid for; {count} periods are too many"
        raise refusal("RENEWAL_TOO_EARLY", f"subscriptions/{command.subject_id}", description)
    return [
        events.SubscriptionStarted(
            subscription_id=command.subject_id,
            version=1,
            customer_id=customer.id,
            plan=request.plan,
            price=request.price,
            period_months=months,
            started_at=timestamp(started),
            period_start=timestamp(months_later(started, (count - 1) * months, started.day)),
            period_end=timestamp(months_later(started, count * months, started.day)),
            period_count=count,
        )
    ]


@rule(SUBSCRIPTIONS)
def change_subscription_plan(
    request: commands.ChangeSubscriptionPlanRequest, command: Command, states: States
) -> list[Message]:
    subscription = _running(request, command, states)
    if request.price.currency_code != subscription.currency:
        raise refusal("CURRENCY_MISMATCH", _name(subscription), f"its prices are in {subscription.currency}")
    return [
        events.SubscriptionPlanChanged(
            **_identity(subscription), plan=request.plan, price=request.price, period_months=request.period_months
        )
    ]


@rule(SUBSCRIPTIONS)
def renew_subscription(request: commands.RenewSubscriptionRequest, command: Command, states: States) -> list[Message]:
    subscription = _running(request, command, states)
    if subscription.status == SubscriptionStatus.SUBSCRIPTION_STATUS_CANCELING:
        raise refusal("SUBSCRIPTION_CANCELING", _name(subscription), "it ends with its period; resume it first")
    if subscription.period_start > command.now:
        description = f"the period that begins at {subscription.period_start.isoformat()} is paid for already"
        raise refusal("RENEWAL_TOO_EARLY", _name(subscription), description)
    end = months_later(subscription.period_end, subscription.period_months, subscription.anchor_day)
    return [
        events.SubscriptionRenewed(
            **_identity(subscription),
            period_start=timestamp(subscription.period_end),
            period_end=timestamp(end),
            price=Money(minor_units=subscription.price, currency_code=subscription.currency),
            plan=subscription.plan,
            period_months=subscription.period_months,
        )
    ]


@rule(SUBSCRIPTIONS)
def cancel_subscription(request: commands.CancelSubscriptionRequest, command: Command, states: States) -> list[Message]:
    subscription = _running(request, command, states)
    if request.when == commands.CANCELLATION_TIME_AT_ONCE:
        return [_cancelled(subscription, command.now, request.reason or subscription.cancellation_reason)]
    if subscription.status == SubscriptionStatus.SUBSCRIPTION_STATUS_CANCELING:
        raise refusal("SUBSCRIPTION_CANCELING", _name(subscription), "it ends with its period already")
    return [
        events.SubscriptionCancellationScheduled(
            **_identity(subscription), ends_at=timestamp(subscription.period_end), reason=request.reason
        )
    ]


@rule(SUBSCRIPTIONS)
def resume_subscription(request: commands.ResumeSubscriptionRequest, command: Command, states: States) -> list[Message]:
    subscription = _running(request, command, states)
    if subscription.status != SubscriptionStatus.SUBSCRIPTION_STATUS_CANCELING:
        raise refusal("SUBSCRIPTION_NOT_CANCELING", _name(subscription), "nothing is to be taken back")
    if subscription.period_end <= command.now:
        raise refusal("SUBSCRIPTION_ENDED", _name(subscription), "its last period is over")
    return [events.SubscriptionResumed(**_identity(subscription))]


# No RPC takes it: the reactions to what subscriptions begin with give it when their time is over.
@rule(SUBSCRIPTIONS, response=EndSubscriptionResponse)
def end_subscription(request: EndSubscriptionRequest, command: Command, states: States) -> list[Message]:
    """Ends a subscription whose period is over, unless it has changed since it was to be ended."""
    subscription = _running(request, command, states)
    if request.status and subscription.status != request.status:
        raise refusal("SUBSCRIPTION_GOES_ON", _name(subscription), "its cancellation was taken back, or has come")
    if request.HasField("period_end") and datetime_of(request.period_end) != subscription.period_end:
        raise refusal("SUBSCRIPTION_GOES_ON", _name(subscription), "it was renewed")
    if subscription.period_end > command.now:
        raise refusal("PERIOD_NOT_OVER", _name(subscription), "its period is not over")
    if subscription.status == SubscriptionStatus.SUBSCRIPTION_STATUS_CANCELING:
        return [_cancelled(subscription, subscription.period_end, subscription.cancellation_reason)]
    return [events.SubscriptionLapsed(**_identity(subscription), ended_at=timestamp(subscription.period_end))]


def _cancelled(subscription: Subscription, ended: datetime, reason: str) -> events.SubscriptionCancelled:
    return events.SubscriptionCancelled(**_identity(subscription), ended_at=timestamp(ended), reason=reason)


def _running(request: Message, command: Command, states: States) -> Subscription:
    subscription = SUBSCRIPTIONS.current(states, request, command.subject_id)
    if subscription.status in ENDED:
        raise refusal("SUBSCRIPTION_ENDED", _name(subscription), "it has ended; start a new one")
    return subscription


def _identity(subscription: Subscription) -> dict[str, Any]:
    """What every later event of a subscription begins with."""
    return {
        "subscription_id": subscription.id,
        "version": subscription.version + 1,
        "customer_id": subscription.customer_id,
    }


def _name(subscription: Subscription) -> str:
    return f"subscriptions/{subscription.id}"


def months_later(moment: datetime, months: int, anchor_day: int) -> datetime:
    """The same time of day `months` months later, on `anchor_day` or on the month's last day where it is shorter.

    anchor_day: the day of the month on which the subscription was started, so that a short month shortens no later one.

    >>> months_later(datetime(2026, 1, 31), 1, anchor_day=31)
    datetime.datetime(2026, 2, 28, 0, 0)
    >>> months_later(datetime(2026, 2, 28), 1, anchor_day=31)
    datetime.datetime(2026, 3, 31, 0, 0)
    """
    years, month = divmod(moment.month - 1 + months, 12)
    year, month = moment.year + years, month + 1
    return moment.replace(year=year, month=month, day=min(anchor_day, calendar.monthrange(year, month)[1]))


# What each event changes


@change(SUBSCRIPTIONS)
def subscription_started(states: States, event: events.SubscriptionStarted) -> None:
    subscription = Subscription(
        id=event.subscription_id,
        version=event.version,
        customer_id=event.customer_id,
        status=SubscriptionStatus.SUBSCRIPTION_STATUS_ACTIVE,
        plan=event.plan,
        price=event.price.minor_units,
        currency=event.price.currency_code,
        period_months=event.period_months,
        started_at=datetime_of(event.started_at),
        period_start=datetime_of(event.period_start),
        period_end=datetime_of(event.period_end),
        cancellation_reason="",
    )
    states[SUBSCRIPTIONS][subscription.id] = subscription


@change(SUBSCRIPTIONS)
def subscription_plan_changed(states: States, event: events.SubscriptionPlanChanged) -> None:
    SUBSCRIPTIONS.change(
        states, event, plan=event.plan, price=event.price.minor_units, period_months=event.period_months
    )


@change(SUBSCRIPTIONS)
def subscription_renewed(states: States, event: events.SubscriptionRenewed) -> None:
    start, end = datetime_of(event.period_start), datetime_of(event.period_end)
    SUBSCRIPTIONS.change(states, event, period_start=start, period_end=end)


@change(SUBSCRIPTIONS)
def subscription_cancellation_scheduled(states: States, event: events.SubscriptionCancellationScheduled) -> None:
    canceling = SubscriptionStatus.SUBSCRIPTION_STATUS_CANCELING
    SUBSCRIPTIONS.change(states, event, status=canceling, cancellation_reason=event.reason)


@change(SUBSCRIPTIONS)
def subscription_cancelled(states: States, event: events.SubscriptionCancelled) -> None:
    cancelled = SubscriptionStatus.SUBSCRIPTION_STATUS_CANCELLED
    SUBSCRIPTIONS.change(states, event, status=cancelled, cancellation_reason=event.reason)


change_fields(SUBSCRIPTIONS, events.SubscriptionLapsed, status=SubscriptionStatus.SUBSCRIPTION_STATUS_LAPSED)
change_fields(
    SUBSCRIPTIONS,
    events.SubscriptionResumed,
    status=SubscriptionStatus.SUBSCRIPTION_STATUS_ACTIVE,
    cancellation_reason="",
)
