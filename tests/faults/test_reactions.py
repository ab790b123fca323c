"""What reactions do is done once: several command servers do it, and one of them is killed, between any two steps."""

import asyncio
import base64
import json
import signal
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
from google.protobuf.timestamp_pb2 import Timestamp
from typer.testing import CliRunner

from commerce.command.v1 import command_service_pb2 as commands
from commerce.event.v1.event_pb2 import Event
from commerce.query.v1.query_service_pb2 import GetOrderDetailsRequest, GetSubscriptionRequest
from commerce.type.v1.consistency_pb2 import Consistency
from commerce.type.v1.order_status_pb2 import OrderStatus
from commerce.type.v1.subscription_status_pb2 import SubscriptionStatus
from shop.cli import app
from tandem.feed.token import encode_token
from tandem.testing.stack import PATIENCE, kill, up_to, wait_until
from tests.support.builders import add_product, identity, place_order, register_customer, start_subscription
from tests.support.dying_command_server import STEPS
from tests.support.stack import Stack

COUNT = 100
STOCK = 1_000
SUBSCRIPTIONS = [identity("subscription", number) for number in range(1, COUNT + 1)]
ORDERS = [identity("order", number) for number in range(1, COUNT + 1)]
ENDS = {"subscription_lapsed": "subscription_id", "subscription_cancelled": "subscription_id",
        "order_cancelled": "order_id"}  # fmt: skip
SERVICES = {"command": "command_server", "query": "query_server", "projector": "projector"}
# The stack's own server takes the commands, and has time; others have none.
PATIENT = {"SUBSCRIPTIONS__GRACE_DAYS": "366", "ORDERS__UNPAID_DAYS": "366"}
HASTY = {"SUBSCRIPTIONS__GRACE_DAYS": "0", "ORDERS__UNPAID_DAYS": "0.0000001", "REACTIONS__POLL_SECONDS": "0.05",
         "REACTIONS__ATTEMPT_SECONDS": "0.5"}  # fmt: skip


async def test_two_command_servers_of_which_one_is_killed_do_each_thing_once(new_stack: Callable[..., Stack]) -> None:
    stack = new_stack(cache_nodes=up_to(1), settings={"COMMAND": PATIENT})
    await _start_and_place(stack)
    assert _done(stack) == []

    victim, other = (stack.new_command_server(**HASTY, REACTIONS__BATCH="1") for _ in range(2))
    victim.launch()
    wait_until(lambda: len(_done(stack)) >= COUNT // 10, "some are done")
    other.launch()
    kill(victim)
    assert len(_done(stack)) < 2 * COUNT, "it was to be killed in the middle of it"
    victim.start()
    other.wait_until_serving()
    wait_until(lambda: len(_done(stack)) >= 2 * COUNT, "all are done", seconds=60)

    assert Counter(_done(stack)) == Counter(
        [("subscription_lapsed", it) for it in SUBSCRIPTIONS] + [("order_cancelled", it) for it in ORDERS]
    )
    await _every_view_shows_it(stack)


def test_a_command_server_that_is_killed_between_any_two_steps_leaves_nothing_undone_and_nothing_done_twice(
    new_stack: Callable[..., Stack],
) -> None:
    """Each time another one takes over, and is killed at the next step."""
    stack = new_stack(settings={"COMMAND": PATIENT})
    stack.commands.RegisterCustomer(register_customer())
    stack.commands.AddProduct(add_product(stock=STOCK))
    with psycopg.connect(stack.write_url) as connection:
        wait_until(lambda: _one(connection, "SELECT count(*) FROM tandem_write.reaction") == 3, "they are begun")
        # Nobody takes the events in before the first that is to die.
        connection.execute("SELECT FROM tandem_write.reaction FOR UPDATE")
        for number in range(1, len(STEPS) + 1):
            stack.commands.PlaceOrder(place_order(number))
        stack.command_server.stop()
    for step in STEPS:
        dying = stack.new_command_server(**HASTY, REACTIONS__BATCH="1")
        dying.name = "tests.support.dying_command_server"
        dying._environment["DIES"] = step
        dying.launch()
        assert dying._process is not None
        assert dying._process.wait(PATIENCE) == -signal.SIGKILL, step
    stack.new_command_server(**HASTY).start()
    wait_until(lambda: len(_done(stack)) >= len(STEPS), "all are done")
    assert Counter(_done(stack)) == Counter(("order_cancelled", it) for it in ORDERS[: len(STEPS)])
    with psycopg.connect(stack.write_url) as connection:
        assert _one(connection, "SELECT stock FROM tandem_write.product") == STOCK
        left = "SELECT count(*) FROM tandem_write.reaction_task WHERE done_at IS NULL"
        wait_until(lambda: _one(connection, left) == 0, "nothing is left to do")


def test_an_operator_sees_a_dead_letter_sends_it_again_and_drops_it(
    new_stack: Callable[..., Stack], tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text(f"whsec_{base64.b64encode(bytes(24)).decode()}")
    nobody = {"WEBHOOK__URL": "http://127.0.0.1:9/hooks", "WEBHOOK__SECRET_FILES": json.dumps([str(secret)])}
    stack = new_stack(settings={"COMMAND": {**PATIENT, **nobody, "WEBHOOK__MAX_ATTEMPTS": "1", "STOCK__LOW": "10"}})
    product, at = identity("product", 1), ["--command-address", stack.command_server.address]

    def tandem(*arguments: str, code: int = 0) -> str:
        done = CliRunner().invoke(app, ["reactions", *arguments, *at])
        assert done.exit_code == code, done.output
        return done.output

    wait_until(lambda: "low_stock" in tandem("list"), "it is begun")
    assert "nothing is parked" in tandem("parked")
    stack.commands.AddProduct(add_product(stock=11))
    stack.commands.AdjustStock(commands.AdjustStockRequest(product_id=product, delta=-2))
    wait_until(lambda: product in tandem("parked", "low_stock"), "it is parked")
    [parked] = json.loads(tandem("parked", "--json"))
    assert (parked["kind"], parked["type"]) == ("PARKED_TASK_KIND_WEBHOOK", "product.stock_low")
    [low_stock] = [it for it in json.loads(tandem("list", "--json")) if it["name"] == "low_stock"]
    assert low_stock["parked_tasks"] == "1"

    addresses = [f"--{it}-address={getattr(stack, name).address}" for it, name in SERVICES.items()]
    seen = CliRunner().invoke(app, ["status", *addresses])
    assert seen.exit_code == 0, seen.output
    assert "tandem reactions parked low_stock" in seen.output
    [stands] = [line.split() for line in seen.output.splitlines() if line.startswith("low_stock")]
    assert (stands[1], stands[-1]) == ("2", "1")

    assert "1 are done from now on" in tandem("redrive", "low_stock", product)
    wait_until(lambda: product in tandem("parked"), "it is parked again")
    assert "1 dropped" in tandem("drop", "low_stock", product, "--reason", "a test", "--yes")
    assert "nothing is parked" in tandem("parked")
    assert "0 are done" in tandem("redrive", "low_stock", "--all")
    assert "behind event 0; it was at 2" in tandem("replay", "low_stock", "--after", "0")
    assert "is not known" in tandem("replay", "no_reaction", "--after", "0", code=1)
    assert "ends at event" in tandem("replay", "low_stock", "--after", "9", code=1)
    assert "must be a UUID" in tandem("drop", "low_stock", "x", "--reason", "a test", "--yes", code=1)
    assert "give a key, or --all" in tandem("redrive", "low_stock", code=2)


async def _start_and_place(stack: Stack) -> None:
    period = timedelta(days=40)
    started = Timestamp()
    started.FromDatetime(datetime.now(UTC) - period)
    async with stack.async_stubs() as stubs:
        await stubs.commands.RegisterCustomer(register_customer())
        await stubs.commands.AddProduct(add_product(stock=STOCK))
        start = partial(start_subscription, started_at=started.ToJsonString())
        numbers = range(1, COUNT + 1)
        await asyncio.gather(*(stubs.commands.StartSubscription(start(number)) for number in numbers))
        await asyncio.gather(*(stubs.commands.PlaceOrder(place_order(number)) for number in numbers))


def _done(stack: Stack) -> list[tuple[str, str]]:
    """(kind, aggregate) of every end in the feed, which has no gap."""
    with psycopg.connect(stack.write_url) as connection:
        rows = connection.execute("SELECT position, kind, payload FROM tandem_write.event ORDER BY position").fetchall()
    assert [position for position, _, _ in rows] == list(range(1, len(rows) + 1))
    return [(kind, getattr(getattr(Event.FromString(it), kind), ENDS[kind])) for _, kind, it in rows if kind in ENDS]


def _one(connection: psycopg.Connection[Any], query: str) -> Any:
    connection.rollback()
    row = connection.execute(query).fetchone()
    assert row is not None
    return row[0]


async def _every_view_shows_it(stack: Stack) -> None:
    with psycopg.connect(stack.write_url) as connection:
        row = connection.execute("SELECT epoch, position FROM tandem_write.feed_head").fetchone()
    assert row is not None
    fresh = Consistency(at_least_as_fresh=encode_token(*row), max_wait={"seconds": 30})  # type: ignore[arg-type]
    async with stack.async_stubs() as stubs:
        order = await stubs.queries.GetOrderDetails(GetOrderDetailsRequest(order_id=ORDERS[0], consistency=fresh))
        assert order.order_details.status == OrderStatus.ORDER_STATUS_CANCELLED
        lapsed = await stubs.queries.GetSubscription(
            GetSubscriptionRequest(subscription_id=SUBSCRIPTIONS[0], consistency=fresh)
        )
        assert lapsed.subscription.status == SubscriptionStatus.SUBSCRIPTION_STATUS_LAPSED
