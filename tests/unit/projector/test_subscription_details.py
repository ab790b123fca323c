"""SubscriptionDetails: each rule, alone."""

import random
import uuid
from datetime import UTC
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from command_server.subscriptions import ENDED
from commerce.event.v1 import event_pb2 as events
from commerce.query.v1.views_pb2 import SubscriptionDetails
from commerce.type.v1.subscription_status_pb2 import SubscriptionStatus
from projector import subscription_details as rules
from tests.support.builders import NOW, identity, usd
from tests.support.events import at, feed_events
from tests.support.projecting import fold
from tests.support.subscriptions import Subscriptions

IDENTITY: dict[str, Any] = {
    "subscription_id": identity("subscription", 1),
    "customer_id": identity("customer", 1),
}


def started() -> SubscriptionDetails:
    return rules.started(
        None,
        events.SubscriptionStarted(
            **IDENTITY,
            version=1,
            plan="silver",
            price=usd(1900),
            period_months=1,
            started_at=at(1),
            period_start=at(50),
            period_end=at(100),
            period_count=3,
        ),
    )


def changed(version: int, **fields: Any) -> SubscriptionDetails:
    """The subscription as it was started, but for these."""
    expected = SubscriptionDetails()
    expected.CopyFrom(started())
    expected.MergeFrom(SubscriptionDetails(version=version, **fields))
    return expected


def test_a_started_subscription_shows_the_period_that_is_paid_for() -> None:
    assert (
        SubscriptionDetails(
            **IDENTITY,
            status=SubscriptionStatus.SUBSCRIPTION_STATUS_ACTIVE,
            plan="silver",
            price=usd(1900),
            period_months=1,
            started_at=at(1),
            period_start=at(50),
            period_end=at(100),
            period_price=usd(1900),
            period_count=3,
            version=1,
        )
        == started()
    )


def test_a_renewal_moves_the_period_and_counts_it() -> None:
    event = events.SubscriptionRenewed(**IDENTITY, version=2, period_start=at(100), period_end=at(200), price=usd(1))
    assert rules.renewed(started(), event) == changed(
        2, period_start=at(100), period_end=at(200), period_price=usd(1), period_count=4
    )


def test_a_changed_plan_leaves_the_period_alone() -> None:
    event = events.SubscriptionPlanChanged(**IDENTITY, version=2, plan="gold", price=usd(4900), period_months=12)
    assert rules.plan_changed(started(), event) == changed(2, plan="gold", price=usd(4900), period_months=12)


def test_a_scheduled_cancellation_shows_why_and_is_taken_back_without_a_trace() -> None:
    event = events.SubscriptionCancellationScheduled(**IDENTITY, version=2, ends_at=at(100), reason="moving")
    canceling = rules.cancellation_scheduled(started(), event)
    status = SubscriptionStatus.SUBSCRIPTION_STATUS_CANCELING
    assert canceling == changed(2, status=status, cancellation_reason="moving")
    assert rules.resumed(canceling, events.SubscriptionResumed(**IDENTITY, version=3)) == changed(3)


def test_what_has_ended_shows_when_and_why() -> None:
    cancelled = events.SubscriptionCancelled(**IDENTITY, version=2, ended_at=at(50), reason="too dear")
    assert rules.cancelled(started(), cancelled) == changed(
        2,
        status=SubscriptionStatus.SUBSCRIPTION_STATUS_CANCELLED,
        ended_at=at(50),
        cancellation_reason="too dear",
    )
    lapsed = events.SubscriptionLapsed(**IDENTITY, version=2, ended_at=at(100))
    status = SubscriptionStatus.SUBSCRIPTION_STATUS_LAPSED
    assert rules.lapsed(started(), lapsed) == changed(2, status=status, ended_at=at(100))


def test_the_columns_follow_the_status_and_keep_the_start() -> None:
    first = rules.columns(started(), 7)
    start: Timestamp = at(1)
    moment = start.ToDatetime(tzinfo=NOW.tzinfo)
    assert first == (identity("customer", 1), SubscriptionStatus.SUBSCRIPTION_STATUS_ACTIVE, moment, 7)
    ended = rules.lapsed(started(), events.SubscriptionLapsed(**IDENTITY, version=2, ended_at=at(100)))
    status = SubscriptionStatus.SUBSCRIPTION_STATUS_LAPSED
    assert rules.columns(ended, 7) == (identity("customer", 1), status, moment, 7)


@given(st.integers(0, 1_000_000), st.integers(1, 60))
def test_the_view_is_where_the_write_model_is_after_any_history(seed: int, count: int) -> None:
    drawn = Subscriptions(random.Random(seed))
    history = feed_events([drawn.event(customers=3) for _ in range(count)])
    changes = fold(rules.PROJECTION, history, {})
    parse = SubscriptionDetails.FromString
    views: dict[str, Any] = {
        str(uuid.UUID(bytes=key)): parse(row.value) for key, row in changes.rows.items() if row is not None
    }
    assert views.keys() == drawn.state.keys()
    for it in drawn.state.values():
        view = views[str(it.id)]
        assert (view.status, view.version, view.cancellation_reason) == (it.status, it.version, it.cancellation_reason)
        assert (view.plan, view.price, view.period_months) == (it.plan, usd(it.price), it.period_months)
        period = (view.period_start.ToDatetime(UTC), view.period_end.ToDatetime(UTC))
        assert period == (it.period_start, it.period_end)
        assert view.HasField("ended_at") == (it.status in ENDED)
