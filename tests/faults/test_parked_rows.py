"""G9: a row that cannot take an event in, from the command to its answers and back, and `tandem parked`."""

import json
from collections.abc import Callable

import grpc
import psycopg
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from typer.testing import CliRunner

from commerce.command.v1 import command_service_pb2 as commands
from commerce.query.v1 import query_service_pb2 as queries
from commerce.type.v1.consistency_pb2 import Consistency
from commerce.type.v1.order_status_pb2 import OrderStatus
from shop.cli import app
from tandem.testing.stack import up_to, wait_until
from tests.support.builders import add_product, identity, place_order, register_customer
from tests.support.stack import Stack

ORDER, OTHER = identity("order", 1), identity("order", 2)


def tandem(stack: Stack, *arguments: str, command: str = "parked", code: int = 0) -> str:
    done = CliRunner().invoke(app, [command, *arguments, "--projector-address", stack.projector.address])
    assert done.exit_code == code, done.output
    return done.output


def the_operators_log_has_it(stack: Stack) -> None:
    [logged] = json.loads(tandem(stack, "order_summary", "--json", command="operations"))
    assert (logged["action"], logged["actor"], logged["reason"]) == ("drop", "ops", "a test")
    everything = tandem(stack, command="operations").splitlines()
    assert [line.split()[2] for line in everything[1:]] == ["drop", "redrive", "redrive"], "the latest first"
    assert "1 stay parked" in everything[-1]
    of_key = tandem(stack, "--key", ORDER, "--limit", "1", command="operations").splitlines()
    assert len(of_key) == 2
    assert "redrive" in of_key[1]
    assert "key: must be a UUID" in tandem(stack, "--key", "x", command="operations", code=1)


def test_one_row_is_parked_seen_redriven_and_dropped_while_all_others_go_on(new_stack: Callable[..., Stack]) -> None:
    # The auditor would make a parked row right as soon as that can be done, before it is redriven.
    stack = new_stack(cache_nodes=up_to(1), settings={"PROJECTOR": {"AUDIT__SHARE": "0"}})
    stack.commands.RegisterCustomer(register_customer(1), timeout=20)
    stack.commands.AddProduct(add_product(1, stock=100), timeout=20)
    for number in (1, 2):
        placed = stack.commands.PlaceOrder(place_order(number, customer=1, lines={1: 1}), timeout=20)

    def pay(order_id: str) -> str:
        paying = commands.PayOrderRequest(order_id=order_id, payment_reference="p")
        return stack.commands.PayOrder(paying, timeout=20).receipt.consistency_token

    def read(order_id: str, token: str = "") -> queries.GetOrderDetailsResponse:
        fresh = Consistency(at_least_as_fresh=token) if token else None
        return stack.queries.GetOrderDetails(
            queries.GetOrderDetailsRequest(order_id=order_id, consistency=fresh), timeout=20
        )

    for _ in range(2):
        assert read(ORDER, placed.receipt.consistency_token).order_details.version == 1, "cached from then on"
    with psycopg.connect(stack.read_url, autocommit=True) as connection:
        connection.execute(
            "ALTER TABLE tandem_read.order_details"
            f" ADD CONSTRAINT poison CHECK (key <> '{ORDER}' OR position < {placed.receipt.position + 1}) NOT VALID"
        )
        token = pay(ORDER)
        with pytest.raises(grpc.RpcError) as raised:
            read(ORDER, token)
        info = error_details_pb2.ErrorInfo()
        status = rpc_status.from_call(raised.value)
        assert status is not None
        assert status.details[0].Unpack(info)
        assert (info.reason, info.metadata["key"]) == ("PARKED", ORDER.replace("-", ""))
        as_it_was = read(ORDER)
        assert (as_it_was.order_details.version, as_it_was.parked_since) == (1, placed.receipt.position + 1)
        paid = read(OTHER, pay(OTHER))
        assert (paid.order_details.status, paid.parked_since) == (OrderStatus.ORDER_STATUS_PAID, 0)

        [listed] = json.loads(tandem(stack, "list", "--json"))
        assert (listed["view"], listed["key"]) == ("order_details", ORDER)
        assert "order_paid" in tandem(stack, "show", "order_details", ORDER)
        assert "1 rows stay parked" in tandem(stack, "redrive", "order_details", ORDER, code=1)
        addresses = [
            f"--{name}-address={service.address}"
            for name, service in (
                ("command", stack.command_server),
                ("query", stack.query_server),
                ("projector", stack.projector),
            )
        ]
        seen = CliRunner().invoke(app, ["status", "--json", *addresses])
        report = json.loads(seen.output)
        assert (seen.exit_code, report["well"]) == (0, True), "the view goes on"
        assert {it["name"]: it["parked_keys"] for it in report["views"] if it["parked_keys"]} == {"order_details": 1}

        connection.execute("ALTER TABLE tandem_read.order_details DROP CONSTRAINT poison")
        assert "1 events taken in" in tandem(stack, "redrive", "order_details", "--all")
        for _ in range(2):
            assert read(ORDER, token).order_details.status == OrderStatus.ORDER_STATUS_PAID
        assert "nothing is parked" in tandem(stack, "list")
        wait_until(lambda: stack.projector.metric("tandem_projection_parked_keys") == 0, "the gauge is 0 again")

        # Dropped, with a reason.
        connection.execute(
            f"ALTER TABLE tandem_read.order_summary ADD CONSTRAINT no CHECK (key <> '{OTHER}') NOT VALID"
        )
        shipped = commands.ShipOrderRequest(order_id=OTHER, carrier="c", tracking_number="t")
        token = stack.commands.ShipOrder(shipped, timeout=20).receipt.consistency_token
        wait_until(lambda: "order_summary" in tandem(stack, "list"), "it is parked")
        page = queries.ListRecentOrdersRequest(customer_id=identity("customer", 1))
        assert stack.queries.ListRecentOrders(page, timeout=20).parked_rows == 1
        tandem(stack, "drop", "order_summary", OTHER, "--reason", "a test", "--yes", "--actor", "ops")
        page.consistency.at_least_as_fresh = token
        assert stack.queries.ListRecentOrders(page, timeout=20).parked_rows == 0
        the_operators_log_has_it(stack)
    assert "nothing is parked" in tandem(stack, "list", "order_summary")
    assert "must be one of" in tandem(stack, "list", "no_view", code=1)
