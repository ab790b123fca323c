"""The Python of docs/clients.md does what the page says."""

import asyncio
import re
import uuid
from pathlib import Path
from typing import Any

import pytest

from commerce.command.v1 import command_service_pb2 as commands
from commerce.query.v1 import query_service_pb2 as queries
from commerce.type.v1.order_status_pb2 import OrderStatus
from shop.client import Client
from tandem.client.errors import RuleBroken
from tests.support.builders import identity, place_order
from tests.support.stack import Stack

PAGE = Path(__file__).parents[3] / "docs" / "clients.md"
CUSTOMER = "42ea32d9-b8fb-5bab-8c52-74f4ca2b1d77"
PRODUCT = "d0100de7-51d5-5019-ad68-9963e214fa9f"


@pytest.fixture
def blocks(stack: Stack) -> list[str]:
    """The page's blocks of Python, for the stack's servers and what it sells."""
    text = PAGE.read_text()
    for shown, actual in (
        ("127.0.0.1:50051", stack.command_server.address),
        ("127.0.0.1:50052", stack.query_server.address),
        ("127.0.0.1:50053", stack.projector.address),
        (CUSTOMER, identity("customer", 8)),
        (PRODUCT, identity("product", 8)),
    ):
        assert shown in text
        text = text.replace(shown, actual)
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def run(block: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(block, str(PAGE), "exec"), names)
    return names


def test_every_block_does_what_the_page_says(
    blocks: list[str], client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    placing, listing, following, paying = blocks

    run(placing)
    assert "minor_units: 3998" in capsys.readouterr().out
    sold_out = placing.replace("quantity=2", "quantity=1000")
    assert sold_out != placing
    with pytest.raises(RuleBroken):
        run(sold_out)
    assert f"sold out: products/{identity('product', 8)}" in capsys.readouterr().out

    session = client.session()
    placed = session.commands.PlaceOrder(place_order(170, customer=8))
    asyncio.run(run(listing)["show"](identity("customer", 8), session.token))
    assert f"{placed.order_id} 1999" in capsys.readouterr().out

    known = session.queries.GetOrderDetails(queries.GetOrderDetailsRequest(order_id=placed.order_id)).order_details
    confirmed = run(paying)["pay"](session, known)
    assert confirmed.status == OrderStatus.ORDER_STATUS_PAID
    assert capsys.readouterr().out.split() == ["2", "2"]

    session.commands.ShipOrder(commands.ShipOrderRequest(request_id=str(uuid.uuid4()), order_id=placed.order_id))
    session.commands.DeliverOrder(commands.DeliverOrderRequest(order_id=placed.order_id))
    functions = run(following)
    functions["wait_for_delivery"](session, placed.order_id)

    class Enough(Exception):
        pass

    def stop_at_delivery(position: int, kind: str) -> None:
        seen.append(kind)
        if kind == "order_delivered":
            raise Enough

    seen: list[str] = []
    functions["print"] = stop_at_delivery
    with pytest.raises(Enough):
        functions["follow"](session, placed.receipt.consistency_token)
    assert seen == ["order_paid", "order_shipped", "order_delivered"]
