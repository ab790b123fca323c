"""SubscriptionDetails: each rule, alone."""

import random
import uuid
from datetime import UTC
from typing import Any

from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from command_server.subscriptions import ENDED
from commerce.event.v1 import event_pb2 as events
from commerce.query.v1.views_pb2 import SubscriptionDetails
from commerce.type.v1.subscription_status_pb2 import SubscriptionStatus
from projector.subscription_details import PROJECTION
from shop.events import EVENTS
from tandem.testing.views import Rows, view
from tests.support.builders import identity, usd
from tests.support.events import at, feed_events
from tests.support.projecting import fold
from tests.support.subscriptions import Subscriptions

IDENTITY: dict[str, Any] = {
    "subscription_id": identity("subscription", 1),
    "customer_id": identity("customer", 1),
}
# What the event says and the row shows as it is.
SAID: dict[str, Any] = {
    **IDENTITY,
    "version": 1,
    "plan": "silver",
    "price": usd(1900),
    "period_months": 1,
    "started_at": at(1),
    "period_start": at(50),
    "period_end": at(100),
    "period_count": 3,
}
STARTED = events.SubscriptionStarted(**SAID)
AS_STARTED = SubscriptionDetails(**SAID, status=SubscriptionStatus.SUBSCRIPTION_STATUS_ACTIVE, period_price=usd(1900))
LAPSED = events.SubscriptionLapsed(**IDENTITY, version=2, ended_at=at(100))
SCHEDULED = events.SubscriptionCancellationScheduled(**IDENTITY, version=2, ends_at=at(100), reason="moving")


def after(*later: Message) -> Rows:
    return view(PROJECTION, EVENTS).after(STARTED, *later)


def changed(version: int, **fields: Any) -> SubscriptionDetails:
    """The subscription as it was started, but for these."""
    expected = SubscriptionDetails()
    expected.CopyFrom(AS_STARTED)
    expected.MergeFrom(SubscriptionDetails(version=version, **fields))
    return expected


def test_a_started_subscription_shows_the_period_that_is_paid_for() -> None:
    after().shows(AS_STARTED)


def test_a_renewal_moves_the_period_and_counts_it() -> None:
    renewed = events.SubscriptionRenewed(**IDENTITY, version=2, period_start=at(100), period_end=at(200), price=usd(1))
    after(renewed).shows(changed(2, period_start=at(100), period_end=at(200), period_price=usd(1), period_count=4))


def test_a_changed_plan_leaves_the_period_alone() -> None:
    event = events.SubscriptionPlanChanged(**IDENTITY, version=2, plan="gold", price=usd(4900), period_months=12)
    after(event).shows(changed(2, plan="gold", price=usd(4900), period_months=12))


def test_a_scheduled_cancellation_shows_why_and_is_taken_back_without_a_trace() -> None:
    status = SubscriptionStatus.SUBSCRIPTION_STATUS_CANCELING
    after(SCHEDULED).shows(changed(2, status=status, cancellation_reason="moving"))
    after(SCHEDULED, events.SubscriptionResumed(**IDENTITY, version=3)).shows(changed(3))


def test_what_has_ended_shows_when_and_why() -> None:
    status = SubscriptionStatus.SUBSCRIPTION_STATUS_CANCELLED
    cancelled = events.SubscriptionCancelled(**IDENTITY, version=2, ended_at=at(50), reason="too dear")
    after(cancelled).shows(changed(2, status=status, ended_at=at(50), cancellation_reason="too dear"))
    after(LAPSED).shows(changed(2, status=SubscriptionStatus.SUBSCRIPTION_STATUS_LAPSED, ended_at=at(100)))


def test_the_columns_follow_the_status_and_keep_the_start() -> None:
    customer, moment = identity("customer", 1), at(1).ToDatetime(UTC)
    assert after().columns() == (customer, SubscriptionStatus.SUBSCRIPTION_STATUS_ACTIVE, moment, 1)
    assert after(LAPSED).columns() == (customer, SubscriptionStatus.SUBSCRIPTION_STATUS_LAPSED, moment, 1)


@given(st.integers(0, 1_000_000), st.integers(1, 60))
def test_the_view_is_where_the_write_model_is_after_any_history(seed: int, count: int) -> None:
    drawn = Subscriptions(random.Random(seed))
    history = feed_events([drawn.event(customers=3) for _ in range(count)])
    changes = fold(PROJECTION, history, {})
    parse = SubscriptionDetails.FromString
    found: dict[str, Any] = {
        str(uuid.UUID(bytes=key)): parse(it.value) for key, it in changes.rows.items() if it is not None
    }
    assert found.keys() == drawn.state.keys()
    for it in drawn.state.values():
        row = found[str(it.id)]
        assert (row.status, row.version, row.cancellation_reason) == (it.status, it.version, it.cancellation_reason)
        assert (row.plan, row.price, row.period_months) == (it.plan, usd(it.price), it.period_months)
        period = (row.period_start.ToDatetime(UTC), row.period_end.ToDatetime(UTC))
        assert period == (it.period_start, it.period_end)
        assert row.HasField("ended_at") == (it.status in ENDED)
