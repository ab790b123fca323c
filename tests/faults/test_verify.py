"""G16: while everything runs, nothing differs from the feed; what somebody changes is found by `tandem verify`."""

import asyncio
import json
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import psycopg
from typer.testing import CliRunner

from command_server.app import DOMAIN
from commerce.command.v1 import command_service_pb2 as commands
from commerce.projection.v1 import projection_service_pb2 as projections
from shop.cli import app
from shop.views import VIEWS
from tandem.testing.stack import up_to
from tests.support.builders import identity
from tests.support.shop import CUSTOMERS, Load, open_shop
from tests.support.stack import Stack

# All of the time, one comparison behind the other.
AUDIT = {"AUDIT__SHARE": "0.5", "AUDIT__ROUND_SECONDS": "0"}
ORDERS = 400
# Of a comparison that was over before, and of one that was under way.
_ENDS = 2


def verify(stack: Stack, *words: str) -> tuple[int, Any]:
    """The exit code, and the report."""
    addresses = [f"--command-address={stack.command_server.address}", f"--projector-address={stack.projector.address}"]
    result = CliRunner().invoke(app, ["verify", "--json", *addresses, *words])
    return result.exit_code, json.loads(result.stdout)


def differing(report: Any) -> set[tuple[str, str, str, bool]]:
    assert not report["problem"]
    return {
        (it["subject"], it["key"], it["kind"], it["repaired"])
        for subject in report["subjects"]
        for it in subject["differences"]
    }


async def found(stack: Stack) -> int:
    """How many differences the auditor has found, when it has compared every view once more, from the beginning.

    The comparison that is under way may have passed a row already: the one behind it has not.
    """
    ends: defaultdict[str, set[int]] = defaultdict(set)
    async with asyncio.timeout(60), stack.async_stubs() as stubs:
        while True:
            answer = await stubs.projections.ListProjections(projections.ListProjectionsRequest())
            for it in answer.projections:
                ends[it.view].add(it.audited_at.seconds)
            if len(ends) == len(VIEWS) and all(len(it - {0}) > _ENDS for it in ends.values()):
                return sum(it.differences for it in answer.projections)
            await asyncio.sleep(0.1)


async def test_nothing_differs_under_load_and_what_is_changed_by_hand_is_found(
    new_stack: Callable[..., Stack],
) -> None:
    stack = new_stack(cache_nodes=up_to(1), settings={"PROJECTOR": AUDIT})
    load = Load(ORDERS, buyers=8, cancel_every=5)
    async with stack.async_stubs() as stubs:
        await open_shop(stubs.commands)
        buying = asyncio.create_task(load.run(stubs.commands))
        while not buying.done():
            code, report = await asyncio.to_thread(verify, stack)
            assert differing(report) == set()
            assert code == 0
        await buying
        # A person is taken out of everything while it is compared.
        customer = identity("customer", 1)
        erasing = stubs.commands.EraseCustomer(commands.EraseCustomerRequest(customer_id=customer))
        code, report = await asyncio.to_thread(verify, stack)
        await erasing
        assert (code, differing(report)) == (0, set())
    assert await found(stack) == 0
    code, report = await asyncio.to_thread(verify, stack)
    keys = {it["name"]: it["keys"] for it in report["subjects"]}
    assert keys.keys() == {*VIEWS, *(it.name for it in DOMAIN.model.aggregates)}
    assert keys["order"] == keys["order_details"] == keys["order_summary"] == ORDERS
    assert keys["customer"] == keys["customer_profile"] == CUSTOMERS
    code, _ = await asyncio.to_thread(verify, stack, "--sample", "20", "order", "order_details")
    assert code == 0

    product, order = identity("product", 1), identity("order", 1)
    with psycopg.connect(stack.write_url, autocommit=True) as write:
        write.execute("UPDATE tandem_write.product SET stock = stock - 1 WHERE id = %s", (product,))
    code, report = await asyncio.to_thread(verify, stack, "--repair", "product", "order_summary")
    assert (code, differing(report)) == (1, {("product", product, "row", False)}), "it is never repaired"

    # The auditor makes a view right by itself.
    with psycopg.connect(stack.read_url, autocommit=True) as read:
        read.execute("UPDATE tandem_read.order_summary SET placed_at = now() WHERE key = %s", (order,))
    assert await found(stack) == 1
    code, report = await asyncio.to_thread(verify, stack, "order_summary", "--key", order)
    assert (code, differing(report)) == (0, set())
    await asyncio.to_thread(says_what_is_not_there, stack)


def says_what_is_not_there(stack: Stack) -> None:
    code, report = verify(stack, "order_detials")
    assert (code, report["problem"]) == (1, "no service has order_detials")
    stack.command_server.stop()
    code, report = verify(stack, "order")
    assert code == 1
    assert "does not compare: UNAVAILABLE" in report["problem"]
