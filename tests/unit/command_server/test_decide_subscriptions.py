"""The rules of subscriptions, each alone."""

from datetime import UTC, datetime
from typing import Any

import pytest
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from command_server.app import DOMAIN
from command_server.subscriptions import SUBSCRIPTIONS, Subscription
from commerce.command.v1 import command_service_pb2 as commands
from commerce.internal.v1.stored_pb2 import EndSubscriptionRequest
from commerce.type.v1.subscription_status_pb2 import SubscriptionStatus
from tandem.commands.batch import decide_batch
from tandem.commands.write_model import States
from tandem.runtime.errors import AlreadyExists, Conflict, NotFound, PreconditionFailed, TandemError
from tandem.testing.rules import Given, Rules
from tests.support.builders import command, euros, identity, register_customer, start_subscription, usd

SUBSCRIPTION = identity("subscription", 1)
CANCEL_NOW = commands.CancelSubscriptionRequest(
    subscription_id=SUBSCRIPTION, when=commands.CANCELLATION_TIME_AT_ONCE, reason="too dear"
)
CANCEL_LATER = commands.CancelSubscriptionRequest(
    subscription_id=SUBSCRIPTION, when=commands.CANCELLATION_TIME_AT_PERIOD_END, reason="moving"
)
RENEW = commands.RenewSubscriptionRequest(subscription_id=SUBSCRIPTION)
RESUME = commands.ResumeSubscriptionRequest(subscription_id=SUBSCRIPTION)
CHANGE = commands.ChangeSubscriptionPlanRequest(
    subscription_id=SUBSCRIPTION, plan="gold", price=usd(4900), period_months=12
)

ACTIVE, CANCELING = (
    SubscriptionStatus.SUBSCRIPTION_STATUS_ACTIVE,
    SubscriptionStatus.SUBSCRIPTION_STATUS_CANCELING,
)

RULES = Rules(DOMAIN)

Dated = tuple[str, Message]
"""When a command arrives, and the command."""


def moment(day: str) -> datetime:
    return datetime.fromisoformat(f"{day}T12:00:00+00:00")


def stamp(day: str) -> Timestamp:
    result = Timestamp()
    result.FromDatetime(moment(day))
    return result


def end_of(version: int) -> EndSubscriptionRequest:
    """Of the subscription that was found to be due in that version."""
    return EndSubscriptionRequest(subscription_id=SUBSCRIPTION, expected_version=version)


def given(*dated: Dated) -> Given:
    so_far = RULES.given(register_customer(), at=moment("2025-01-01"))
    for day, request in dated:
        so_far = so_far.given(request, at=moment(day))
    return so_far


def after(*dated: Dated) -> tuple[Subscription, Any]:
    """The subscription and the last event."""
    so_far = given(*dated)
    [subscription] = so_far[SUBSCRIPTIONS].values()
    return subscription, so_far.events[-1]


def refused(*dated: Dated) -> TandemError:
    *before, (day, request) = dated
    refusal = given(*before).when(request, at=moment(day)).refusal
    assert refusal is not None
    return refusal


def rule(error: TandemError) -> tuple[str, str]:
    assert isinstance(error, PreconditionFailed)
    [violation] = error.violations
    return violation.kind, violation.subject


START: Dated = ("2026-01-31", start_subscription())


def test_a_subscription_starts_its_first_period_at_once() -> None:
    subscription, event = after(START)
    assert (subscription.period_start, subscription.period_end) == (moment("2026-01-31"), moment("2026-02-28"))
    assert (event.plan, event.price, event.period_months) == ("silver", usd(1900), 1)
    assert event.period_end == stamp("2026-02-28")


def test_a_subscription_from_elsewhere_starts_when_it_did_there() -> None:
    request = start_subscription()
    request.started_at.FromJsonString("2025-08-31T09:30:00Z")
    subscription, _ = after(("2026-01-31", request))
    assert subscription.period_end == datetime(2025, 9, 30, 9, 30, tzinfo=UTC)


def test_a_subscription_from_elsewhere_brings_the_periods_that_are_paid_for_as_if_it_had_been_renewed_here() -> None:
    request = start_subscription(started_at="2025-10-31T12:00:00Z")
    for count, start, end in ((0, "2025-10-31", "2025-11-30"), (1, "2025-10-31", "2025-11-30"),
                              (4, "2026-01-31", "2026-02-28"), (5, "2026-02-28", "2026-03-31")):  # fmt: skip
        request.period_count = count
        subscription, event = after(("2026-01-31", request))
        assert (subscription.period_start, subscription.period_end) == (moment(start), moment(end))
        assert (event.period_start, event.period_end, event.period_count) == (stamp(start), stamp(end), max(count, 1))
    request.period_count = 6
    assert rule(refused(("2026-01-31", request))) == ("RENEWAL_TOO_EARLY", f"subscriptions/{SUBSCRIPTION}")
    request.period_count = 5
    assert rule(refused(("2026-01-31", request), ("2026-02-01", RENEW)))[0] == "RENEWAL_TOO_EARLY"
    assert rule(refused(("2026-01-30", request)))[0] == "RENEWAL_TOO_EARLY"


def test_each_renewal_adds_a_month_and_short_months_shorten_no_later_one() -> None:
    ends = [after(START, *[("2026-04-01", RENEW)] * count)[0].period_end for count in range(4)]
    assert ends == [moment(it) for it in ("2026-02-28", "2026-03-31", "2026-04-30", "2026-05-31")]


def test_a_renewal_is_taken_one_period_ahead_and_no_more() -> None:
    _, event = after(START, ("2026-02-01", RENEW))
    assert (event.period_start, event.period_end) == (stamp("2026-02-28"), stamp("2026-03-31"))
    assert (event.plan, event.price, event.period_months) == ("silver", usd(1900), 1)
    error = refused(START, ("2026-02-01", RENEW), ("2026-02-02", RENEW))
    assert rule(error) == ("RENEWAL_TOO_EARLY", f"subscriptions/{SUBSCRIPTION}")


def test_a_changed_plan_is_shown_at_once_and_counts_from_the_next_period() -> None:
    changed, event = after(START, ("2026-02-10", CHANGE))
    assert (changed.plan, changed.price, changed.period_end) == ("gold", 4900, moment("2026-02-28"))
    assert event.period_months == 12
    renewed, event = after(START, ("2026-02-10", CHANGE), ("2026-02-11", RENEW))
    assert renewed.period_end == moment("2027-02-28")
    assert (event.plan, event.price, event.period_months) == ("gold", usd(4900), 12)


def test_a_plan_keeps_its_currency() -> None:
    change = commands.ChangeSubscriptionPlanRequest(
        subscription_id=SUBSCRIPTION, plan="gold", price=euros(1), period_months=1
    )
    assert rule(refused(START, ("2026-02-01", change)))[0] == "CURRENCY_MISMATCH"


def test_a_cancellation_at_once_ends_it_now_and_one_at_the_periods_end_does_not() -> None:
    ended, event = after(START, ("2026-02-10", CANCEL_NOW))
    assert ended.status == SubscriptionStatus.SUBSCRIPTION_STATUS_CANCELLED
    assert (event.ended_at, event.reason) == (stamp("2026-02-10"), "too dear")
    going, event = after(START, ("2026-02-10", CANCEL_LATER))
    assert going.status == SubscriptionStatus.SUBSCRIPTION_STATUS_CANCELING
    assert (event.ends_at, event.reason) == (stamp("2026-02-28"), "moving")
    ended, event = after(START, ("2026-02-10", CANCEL_LATER), ("2026-02-11", CANCEL_NOW))
    assert ended.status == SubscriptionStatus.SUBSCRIPTION_STATUS_CANCELLED
    assert event.reason == "too dear"
    silent = commands.CancelSubscriptionRequest(subscription_id=SUBSCRIPTION, when=commands.CANCELLATION_TIME_AT_ONCE)
    _, event = after(START, ("2026-02-10", CANCEL_LATER), ("2026-02-11", silent))
    assert event.reason == "moving", "the reason that was given stays where none is given anew"


def test_a_scheduled_cancellation_is_taken_back_before_it_comes() -> None:
    resumed, _ = after(START, ("2026-02-10", CANCEL_LATER), ("2026-02-11", RESUME))
    assert resumed.status == SubscriptionStatus.SUBSCRIPTION_STATUS_ACTIVE
    assert resumed.cancellation_reason == ""
    assert rule(refused(START, ("2026-02-10", CANCEL_LATER), ("2026-03-01", RESUME)))[0] == "SUBSCRIPTION_ENDED"
    assert rule(refused(START, ("2026-02-10", RESUME)))[0] == "SUBSCRIPTION_NOT_CANCELING"


def test_what_is_cancelled_to_the_periods_end_is_neither_renewed_nor_cancelled_so_again() -> None:
    for request in (RENEW, CANCEL_LATER):
        error = refused(START, ("2026-02-10", CANCEL_LATER), ("2026-02-11", request))
        assert rule(error)[0] == "SUBSCRIPTION_CANCELING"


def test_time_ends_a_cancelled_subscription_with_its_period_and_one_that_was_not_renewed() -> None:
    ended, event = after(START, ("2026-02-10", CANCEL_LATER), ("2026-03-05", end_of(2)))
    assert ended.status == SubscriptionStatus.SUBSCRIPTION_STATUS_CANCELLED
    assert (event.ended_at, event.reason) == (stamp("2026-02-28"), "moving")
    lapsed, event = after(START, ("2026-03-05", end_of(1)))
    assert lapsed.status == SubscriptionStatus.SUBSCRIPTION_STATUS_LAPSED
    assert event.ended_at == stamp("2026-02-28")


def test_a_subscription_that_has_changed_since_it_was_found_to_be_over_goes_on() -> None:
    for change in (RENEW, CHANGE, CANCEL_LATER):
        assert isinstance(refused(START, ("2026-03-01", change), ("2026-03-05", end_of(1))), Conflict)
    # Found while it was canceling, and resumed in the last moment: it has days of grace now, and does not lapse.
    resumed = (START, ("2026-02-10", CANCEL_LATER), ("2026-02-27", RESUME))
    assert isinstance(refused(*resumed, ("2026-03-01", end_of(2))), Conflict)


def test_no_subscription_ends_by_itself_before_its_period_does() -> None:
    assert rule(refused(START, ("2026-02-27", end_of(1))))[0] == "PERIOD_NOT_OVER"


@pytest.mark.parametrize("last", [CANCEL_NOW, end_of(1)], ids=["cancelled", "lapsed"])
@pytest.mark.parametrize("request_", [RENEW, CHANGE, CANCEL_NOW, CANCEL_LATER, RESUME, end_of(2)])
def test_what_has_ended_takes_no_command_any_more(last: Message, request_: Message) -> None:
    error = refused(START, ("2026-03-05", last), ("2026-03-06", request_))
    assert rule(error) == ("SUBSCRIPTION_ENDED", f"subscriptions/{SUBSCRIPTION}")


@pytest.mark.parametrize("request_", [RENEW, CHANGE, CANCEL_NOW, RESUME])
def test_what_is_not_known_is_not_found(request_: Message) -> None:
    error = refused(("2026-01-01", request_))
    assert isinstance(error, NotFound)
    assert error.resource_name == f"subscriptions/{SUBSCRIPTION}"


def test_a_subscription_needs_a_customer_who_is_known_and_not_erased() -> None:
    assert rule(refused(("2026-01-01", start_subscription(customer=9))))[0] == "CUSTOMER_UNKNOWN"
    erase = commands.EraseCustomerRequest(customer_id=identity("customer", 1))
    assert rule(refused(("2026-01-01", erase), START))[0] == "CUSTOMER_ERASED"


def test_what_exists_is_not_started_again_and_an_old_version_is_refused() -> None:
    assert isinstance(refused(START, ("2026-02-01", start_subscription())), AlreadyExists)
    late = commands.RenewSubscriptionRequest(subscription_id=SUBSCRIPTION, expected_version=2)
    assert isinstance(refused(START, ("2026-02-01", late)), Conflict)


def test_a_receipt_tells_its_own_things_version_also_where_another_thing_has_the_same_id() -> None:
    rename = commands.RenameCustomerRequest(customer_id=identity("customer", 1), name="Ada")
    start = start_subscription()
    start.subscription_id = identity("customer", 1)
    dated = (("2026-01-30", rename), ("2026-01-31", start), ("2026-02-01", rename))
    batch = [command(register_customer()), *[command(request, moment(day)) for day, request in dated]]
    assert [it.version for it in decide_batch(DOMAIN, batch, States(), {}).receipts] == [1, 2, 1, 3]


def test_an_end_is_of_the_period_and_of_the_kind_of_end_that_the_reaction_was_told_of() -> None:
    over = EndSubscriptionRequest(subscription_id=SUBSCRIPTION, status=ACTIVE, period_end=stamp("2026-02-28"))
    _, event = after(START, ("2026-02-28", over))
    assert event.ended_at == stamp("2026-02-28")
    assert rule(refused(START, ("2026-02-27", over)))[0] == "PERIOD_NOT_OVER"
    renewed, cancelled = ("2026-02-28", RENEW), ("2026-02-27", CANCEL_LATER)
    assert rule(refused(START, renewed, ("2026-05-28", over)))[0] == "SUBSCRIPTION_GOES_ON"
    assert rule(refused(START, cancelled, ("2026-02-28", over)))[0] == "SUBSCRIPTION_GOES_ON"
    over.status = CANCELING
    assert rule(refused(START, ("2026-02-28", over)))[0] == "SUBSCRIPTION_GOES_ON"
    after(START, cancelled, ("2026-02-28", over))
    assert rule(refused(START, cancelled, ("2026-02-28", over), ("2026-02-28", over)))[0] == "SUBSCRIPTION_ENDED"
