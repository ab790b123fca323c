"""G3 for what only time does: several command servers end each subscription once, also where one of them is killed."""

import asyncio
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime

import psycopg

from commerce.command.v1 import command_service_pb2 as commands
from commerce.event.v1.event_pb2 import Event
from commerce.query.v1.query_service_pb2 import GetSubscriptionRequest, ListSubscriptionsRequest
from commerce.type.v1.consistency_pb2 import Consistency
from commerce.type.v1.subscription_status_pb2 import SubscriptionStatus
from tandem.feed.token import encode_token
from tandem.testing.stack import kill, up_to, wait_until
from tests.support.builders import identity, register_customer, start_subscription
from tests.support.stack import AsyncStubs, Stack

COUNT = 300
LAPSING = {identity("subscription", number) for number in range(1, COUNT + 1, 2)}
CANCELING = {identity("subscription", number) for number in range(2, COUNT + 1, 2)}
PERIOD_END = datetime(2020, 2, 29, 12, tzinfo=UTC)


async def test_two_command_servers_of_which_one_is_killed_end_each_subscription_once(
    new_stack: Callable[..., Stack],
) -> None:
    # The first one takes the commands and ends nothing: it looked once, before there was anything to end.
    stack = new_stack(cache_nodes=up_to(1), settings={"COMMAND": {"SUBSCRIPTIONS__CHECK_EVERY_SECONDS": "3600"}})
    await _start_and_cancel(stack)
    assert _ended(stack) == 0

    looking = {"SUBSCRIPTIONS__CHECK_EVERY_SECONDS": "0.02", "SUBSCRIPTIONS__BATCH": "3"}
    victim, other = (stack.new_command_server(**looking) for _ in range(2))
    victim.launch()
    wait_until(lambda: _ended(stack) >= COUNT // 10, "some have ended")
    other.launch()
    kill(victim)
    assert _ended(stack) < COUNT, "it was to be killed in the middle of it"
    victim.start()
    other.wait_until_serving()
    wait_until(lambda: _ended(stack) >= COUNT, "all have ended", seconds=60)

    assert Counter(_ends(stack.write_url)) == Counter(
        [("subscription_lapsed", it) for it in LAPSING] + [("subscription_cancelled", it) for it in CANCELING]
    )
    await _every_view_shows_it(stack)


async def _start_and_cancel(stack: Stack) -> None:
    async with stack.async_stubs() as stubs:
        await stubs.commands.RegisterCustomer(register_customer())
        await asyncio.gather(
            *(
                stubs.commands.StartSubscription(start_subscription(number, started_at="2020-01-29T12:00:00Z"))
                for number in range(1, COUNT + 1)
            )
        )
        when = commands.CANCELLATION_TIME_AT_PERIOD_END
        await asyncio.gather(
            *(
                stubs.commands.CancelSubscription(
                    commands.CancelSubscriptionRequest(subscription_id=it, when=when, reason="moving")
                )
                for it in CANCELING
            )
        )


def _ended(stack: Stack) -> int:
    kinds = "('subscription_lapsed', 'subscription_cancelled')"
    with psycopg.connect(stack.write_url) as connection:
        row = connection.execute(f"SELECT count(*) FROM tandem_write.event WHERE kind IN {kinds}").fetchone()
    assert row is not None
    return int(row[0])


def _ends(url: str) -> list[tuple[str, str]]:
    """(kind, subscription) of every end in the feed, which has no gap."""
    with psycopg.connect(url) as connection:
        rows = connection.execute("SELECT position, kind, payload FROM tandem_write.event ORDER BY position").fetchall()
    assert [position for position, _, _ in rows] == list(range(1, len(rows) + 1))
    kinds = ("subscription_lapsed", "subscription_cancelled")
    ends = [(kind, getattr(Event.FromString(payload), kind)) for _, kind, payload in rows if kind in kinds]
    assert all(event.ended_at.ToDatetime(UTC) == PERIOD_END for _, event in ends)
    return [(kind, event.subscription_id) for kind, event in ends]


async def _every_view_shows_it(stack: Stack) -> None:
    with psycopg.connect(stack.write_url) as connection:
        row = connection.execute("SELECT epoch, position FROM tandem_write.feed_head").fetchone()
    assert row is not None
    fresh = Consistency(at_least_as_fresh=encode_token(*row), max_wait={"seconds": 30})  # type: ignore[arg-type]
    expected: dict[SubscriptionStatus.ValueType, set[str]] = {
        SubscriptionStatus.SUBSCRIPTION_STATUS_LAPSED: LAPSING,
        SubscriptionStatus.SUBSCRIPTION_STATUS_CANCELLED: CANCELING,
        SubscriptionStatus.SUBSCRIPTION_STATUS_ACTIVE: set(),
        SubscriptionStatus.SUBSCRIPTION_STATUS_CANCELING: set(),
    }
    async with stack.async_stubs() as stubs:
        for status, ids in expected.items():
            assert sorted(await _listed(stubs, status, fresh)) == sorted(ids)
        for name, status in (
            (min(LAPSING), SubscriptionStatus.SUBSCRIPTION_STATUS_LAPSED),
            (min(CANCELING), SubscriptionStatus.SUBSCRIPTION_STATUS_CANCELLED),
        ):
            # From the cache, where there is one.
            request = GetSubscriptionRequest(subscription_id=name, consistency=fresh)
            shown = (await stubs.queries.GetSubscription(request)).subscription
            assert (shown.status, shown.ended_at.ToDatetime(UTC)) == (status, PERIOD_END)


async def _listed(stubs: AsyncStubs, status: SubscriptionStatus.ValueType, fresh: Consistency) -> list[str]:
    """The ids over all pages."""
    request, ids = ListSubscriptionsRequest(statuses=[status], page_size=100, consistency=fresh), []
    while True:
        page = await stubs.queries.ListSubscriptions(request)
        ids += [it.subscription_id for it in page.subscriptions]
        request.page_token = page.next_page_token
        if not request.page_token:
            return ids
