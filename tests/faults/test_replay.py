"""G5: replaying the feed into empty tables gives the same rows as live projection, byte for byte."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import psycopg
from typer.testing import CliRunner

from commerce.command.v1 import command_service_pb2 as commands
from shop.cli import app
from shop.views import VIEWS
from tandem.testing.stack import up_to, wait_until
from tests.support.builders import identity, start_subscription, usd
from tests.support.shop import PRODUCTS, Load, open_shop
from tests.support.stack import AsyncStubs, Stack


async def test_replaying_the_feed_into_empty_tables_gives_the_same_bytes(new_stack: Callable[..., Stack]) -> None:
    settings = {"COMMAND": {"REACTIONS__POLL_SECONDS": "0.05"}}
    stack = new_stack(cache_nodes=up_to(1), settings=settings)
    load = Load(300)
    async with stack.async_stubs() as stubs:
        await open_shop(stubs.commands)
        await load.run(stubs.commands)
        orders = [identity("order", number) for number in range(1, 301)]
        await asyncio.gather(
            *(stubs.commands.PayOrder(commands.PayOrderRequest(order_id=it)) for it in orders[:200]),
            *(stubs.commands.CancelOrder(commands.CancelOrderRequest(order_id=it)) for it in orders[200:]),
        )
        await asyncio.gather(*(stubs.commands.ShipOrder(commands.ShipOrderRequest(order_id=it)) for it in orders[:100]))
        await _subscriptions_in_every_status(stack, stubs)
    live = _rows_when_caught_up(stack)
    assert len(live["order_details"]) == 300
    assert {row[3] for row in live["subscription_details"]} == {1, 2, 3, 4}
    assert len(live["sales_summary"]) > PRODUCTS, "all products of the day together, and each"

    at = ["--projector-address", stack.projector.address]
    found = json.loads(tandem("rebuild", "--all", "--json", *at))
    assert {it["view"]: it["state"] for it in found} == dict.fromkeys(VIEWS, "ready")
    assert all(it["comparison"]["row_count"] == len(live[it["view"]]) for it in found)
    assert not any(it["comparison"]["examples"] for it in found)
    assert "order_details" in tandem("generations", "switch", *VIEWS, *at)
    assert _rows(stack.read_url) == live
    assert "rows, all the same" in tandem("generations", "list", *at)
    tandem("generations", "back", "order_details", *at)
    tandem("generations", "drop", *VIEWS, *at)
    assert tandem("generations", "list", *at) == "no view has another generation\n"
    assert _rows_when_caught_up(stack) == live


def tandem(*words: str) -> str:
    """What the command prints."""
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    return result.stdout


async def _subscriptions_in_every_status(stack: Stack, stubs: AsyncStubs) -> None:
    """Of 40: ten lapse, ten stay canceling, ten are cancelled, and ten resume, change and renew."""
    names = [identity("subscription", number) for number in range(1, 41)]
    started = ["2020-01-31T12:00:00Z"] * 10 + [""] * 30
    requests = [start_subscription(number, started_at=at) for number, at in enumerate(started, start=1)]
    await asyncio.gather(*(stubs.commands.StartSubscription(it) for it in requests))
    at_end, at_once = commands.CANCELLATION_TIME_AT_PERIOD_END, commands.CANCELLATION_TIME_AT_ONCE
    cancel = commands.CancelSubscriptionRequest
    await asyncio.gather(
        *(stubs.commands.CancelSubscription(cancel(subscription_id=it, when=at_end)) for it in names[10:20]),
        *(stubs.commands.CancelSubscription(cancel(subscription_id=it, when=at_once)) for it in names[20:30]),
        *(stubs.commands.CancelSubscription(cancel(subscription_id=it, when=at_end)) for it in names[30:]),
    )
    for it in names[30:]:
        await stubs.commands.ResumeSubscription(commands.ResumeSubscriptionRequest(subscription_id=it))
        change = commands.ChangeSubscriptionPlanRequest(
            subscription_id=it, plan="gold", price=usd(4900), period_months=12
        )
        await stubs.commands.ChangeSubscriptionPlan(change)
        await stubs.commands.RenewSubscription(commands.RenewSubscriptionRequest(subscription_id=it))
    lapsed = "SELECT count(*) FROM tandem_write.event WHERE kind = 'subscription_lapsed'"

    def all_lapsed() -> bool:
        with psycopg.connect(stack.write_url) as connection:
            return connection.execute(lapsed).fetchone() == (10,)

    wait_until(all_lapsed, "ten have lapsed")


def _rows_when_caught_up(stack: Stack) -> dict[str, list[Any]]:
    with psycopg.connect(stack.write_url) as connection:
        row = connection.execute("SELECT position FROM tandem_write.feed_head").fetchone()
    assert row is not None

    def caught_up() -> bool:
        with psycopg.connect(stack.read_url) as connection:
            positions = connection.execute("SELECT position FROM tandem_read.projection").fetchall()
        return len(positions) == len(VIEWS) and all(position == row[0] for (position,) in positions)

    wait_until(caught_up, "all views are at the head of the feed")
    return _rows(stack.read_url)


def _rows(url: str) -> dict[str, list[Any]]:
    with psycopg.connect(url) as connection:
        return {view: connection.execute(f"SELECT * FROM tandem_read.{view} ORDER BY key").fetchall() for view in VIEWS}
