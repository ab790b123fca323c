"""What a person does first: the real grpcurl against the running services, with nothing but reflection."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.builders import identity
from tests.support.stack import Stack

COMMANDS = "commerce.command.v1.CommandService"
QUERIES = "commerce.query.v1.QueryService"


def grpcurl(address: str, *words: str, request: dict[str, Any] | None = None) -> subprocess.CompletedProcess[str]:
    program = shutil.which("grpcurl", path=str(Path(sys.executable).parent))
    assert program is not None, "grpcurl comes with the development packages"
    body = ["-d", json.dumps(request)] if request is not None else []
    return subprocess.run(
        [program, "-plaintext", "-format-error", *body, address, *words], capture_output=True, text=True, check=False
    )


def answer(address: str, method: str, request: dict[str, Any]) -> dict[str, Any]:
    result = grpcurl(address, method, request=request)
    assert result.returncode == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.mark.parametrize("transport", ["native", "grpcio"])
def test_a_newcomer_lists_places_reads_back_and_learns_all_that_is_wrong(
    new_stack: Callable[..., Stack], transport: str
) -> None:
    stack = new_stack(transport=transport)
    commands, queries = stack.command_server.address, stack.query_server.address

    assert COMMANDS in grpcurl(commands, "list").stdout.split()
    assert QUERIES in grpcurl(queries, "list").stdout.split()
    assert "commerce.projection.v1.ProjectionService" in grpcurl(stack.projector.address, "list").stdout.split()
    assert "PlaceOrder" in grpcurl(commands, "describe", COMMANDS).stdout
    assert "rpc PlaceOrder" in grpcurl(commands, "describe", f"{COMMANDS}.PlaceOrder").stdout
    newest = "commerce.query.v1.ProductSort.PRODUCT_SORT_NEWEST"
    assert "PRODUCT_SORT_NEWEST = 4" in grpcurl(queries, "describe", newest).stdout

    customer = answer(
        commands,
        f"{COMMANDS}/RegisterCustomer",
        {"name": "Ada", "address": {"street": "Obere Str. 57", "city": "Berlin", "countryCode": "DE"}},
    )
    product = answer(
        commands,
        f"{COMMANDS}/AddProduct",
        {"name": "Tea", "price": {"minorUnits": 450, "currencyCode": "EUR"}, "initialStock": 10},
    )
    placed = answer(
        commands,
        f"{COMMANDS}/PlaceOrder",
        {"customerId": customer["customerId"], "lines": [{"productId": product["productId"], "quantity": 2}]},
    )
    token = placed["receipt"]["consistencyToken"]
    read = answer(
        queries,
        f"{QUERIES}/GetOrderDetails",
        {"orderId": placed["orderId"], "consistency": {"atLeastAsFresh": token}},
    )
    details = read["orderDetails"]
    assert details["orderId"] == placed["orderId"]
    assert details["customerName"] == "Ada"
    assert details["lines"][0]["productName"] == "Tea"
    assert details["total"] == {"minorUnits": "900", "currencyCode": "EUR"}
    assert read["asOf"]


def test_a_bad_order_gets_all_its_violated_fields_in_one_answer(new_stack: Callable[..., Stack]) -> None:
    stack = new_stack()
    bad = {
        "requestId": "no uuid",
        "customerId": identity("customer", 1),
        "lines": [{"productId": "", "quantity": 0}, {"productId": identity("p"), "discountBasisPoints": 10_001}],
        "shippingFee": {"minorUnits": -1, "currencyCode": "euro"},
    }
    result = grpcurl(stack.command_server.address, f"{COMMANDS}/PlaceOrder", request=bad)
    assert result.returncode != 0
    error = json.loads(result.stderr)
    assert error["code"] == 3, "INVALID_ARGUMENT"
    violations = next(it for it in error["details"] if it["@type"].endswith("BadRequest"))["field_violations"]
    assert {it["field"] for it in violations} == {
        "request_id",
        "lines[0].product_id",
        "lines[0].quantity",
        "lines[1].quantity",
        "lines[1].discount_basis_points",
        "shipping_fee.minor_units",
        "shipping_fee.currency_code",
    }
