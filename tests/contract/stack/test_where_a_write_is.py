"""`tandem why` and `tandem history`: an operator asks a running stack."""

import json
from collections.abc import Iterator
from typing import Any

import grpc
import psycopg
import pytest
from typer.testing import CliRunner, Result

from commerce.command.v1 import command_service_pb2 as commands
from commerce.query.v1 import query_service_pb2 as queries
from commerce.type.v1.consistency_pb2 import Consistency
from shop.cli import app
from shop.views import VIEWS
from tandem.testing.stack import wait_until
from tests.support.builders import add_product, identity, place_order, register_customer
from tests.support.stack import Stack

ACTOR = (("tandem-actor", "clerk-7"),)


def run(stack: Stack, *words: str) -> Result:
    addresses = ["--projector-address", stack.projector.address]
    if words[0] == "why":
        addresses += ["--command-address", stack.command_server.address]
    return CliRunner().invoke(app, [*words, *addresses], env={"COLUMNS": "200"})


def why(stack: Stack, what: str) -> Any:
    return json.loads(run(stack, "why", what, "--json").stdout)


def test_a_write_is_found_by_what_its_caller_has_of_it(stack: Stack, numbers: Iterator[int]) -> None:
    n = next(numbers)
    stack.commands.RegisterCustomer(register_customer(n))
    stack.commands.AddProduct(add_product(n, stock=1))
    order, pay = identity("order", n), identity("pay", n)
    stack.commands.PlaceOrder(place_order(n, customer=n, lines={n: 1}), metadata=ACTOR)
    receipt = stack.commands.PayOrder(commands.PayOrderRequest(request_id=pay, order_id=order)).receipt
    fresh = Consistency(at_least_as_fresh=receipt.consistency_token)
    stack.queries.GetOrderDetails(queries.GetOrderDetailsRequest(order_id=order, consistency=fresh))

    for what in (receipt.consistency_token, str(receipt.position), pay.upper(), order):
        found = why(stack, what)
        assert found["explained"]["event"]["position"] == str(receipt.position), what
        [details] = [it for it in found["explained"]["views"] if it["view"] == "order_details"]
        assert (details["included"], details["keys"]) == (True, [order])
        assert (found["receipt"] is not None) == (what == pay.upper())
    shown = run(stack, "why", pay)
    assert shown.exit_code == 0
    assert f"event {receipt.position} order_paid, stored at" in shown.stdout
    assert "order_details" in shown.stdout
    assert "product_card" not in shown.stdout, "the event does not concern it"

    refused = identity("refused", n)
    with pytest.raises(grpc.RpcError):
        stack.commands.PayOrder(commands.PayOrderRequest(request_id=refused, order_id=order))
    assert why(stack, refused)["receipt"]["refusal"]["reason"] == "ORDER_NOT_PLACED"
    assert "refused at" in run(stack, "why", refused).stdout
    for unknown in (identity("nobody", n), "x", "99999999999"):
        assert run(stack, "why", unknown).exit_code == 1

    lines = run(stack, "history", "order", order, "--json")
    assert lines.exit_code == 0, (lines.stderr, lines.exception)
    placed, paid = map(json.loads, lines.stdout.splitlines())
    assert (placed["event"]["type"], placed["event"]["envelope"]["actor"]) == ("order_placed", "clerk-7")
    assert (placed["row"]["status"], paid["row"]["status"]) == ("ORDER_STATUS_PLACED", "ORDER_STATUS_PAID")
    told = run(stack, "history", "order", order).stdout
    assert "by clerk-7" in told
    assert "status: ORDER_STATUS_PLACED → ORDER_STATUS_PAID" in told
    before = run(stack, "history", "order_details", order, "--at", str(receipt.position - 1))
    assert '"status": "ORDER_STATUS_PLACED"' in before.stdout
    assert run(stack, "history", "order", identity("nobody", n)).exit_code == 1
    assert "must be one of" in run(stack, "history", "nothing", order).stderr


def test_a_row_that_is_parked_says_so_with_its_error_and_what_mends_it(stack: Stack, numbers: Iterator[int]) -> None:
    """The row is not there: its first event is parked."""
    n = next(numbers)
    customer, request = identity("customer", n), identity("change", n)
    with psycopg.connect(stack.read_url, autocommit=True) as connection:
        table = "ALTER TABLE tandem_read.customer_profile"
        connection.execute(f"{table} ADD CONSTRAINT poison CHECK (key <> '{customer}') NOT VALID".encode())
        first = stack.commands.RegisterCustomer(register_customer(n)).receipt
        renaming = commands.RenameCustomerRequest(request_id=request, customer_id=customer, name="Mira Vasquez")
        last = stack.commands.RenameCustomer(renaming).receipt

        def parked(what: str) -> Any:
            """Those of the event's views that have parked rows, by name."""
            found = why(stack, what)
            assert found["explained"]["event"]["position"] == str(last.position), what
            return {it["view"]: it for it in found["explained"]["views"] if it["parked_keys"]}

        def is_passed(what: str) -> bool:
            return any(it["waiting_for"] == "a redrive of what is parked" for it in parked(what).values())

        wait_until(lambda: is_passed(last.consistency_token), "the view has passed it")
        for what in (last.consistency_token, request, customer):
            [view] = parked(what).values()
            [it] = view["parked_keys"]
            assert (view["view"], view["included"]) == ("customer_profile", False)
            assert (it["key"], it["since"], it["waiting_events"]) == (customer, str(first.position), "2")
            assert it["error"].startswith("CheckViolation: ")
            assert it["parked_at"]
        shown = " ".join(run(stack, "why", customer).stdout.split())
        assert "no, rows parked: 1" in shown
        assert f"customer_profile {customer} is parked since event {first.position}" in shown
        assert "2 events wait" in shown
        redrive = ("parked", "redrive", "customer_profile", customer)
        assert f"tandem {' '.join(redrive)} CheckViolation: " in shown

        connection.execute(f"{table} DROP CONSTRAINT poison".encode())
    assert run(stack, *redrive).exit_code == 0
    assert parked(customer) == {}
    assert [it["included"] for it in why(stack, request)["explained"]["views"]] == [True] * len(VIEWS)
