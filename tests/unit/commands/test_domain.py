"""What is missing in the description of a domain, or said twice, is an error when the server is built."""

from typing import Any

import pytest

from command_server import customers, orders, products, subscriptions
from command_server.app import DOMAIN
from commerce.command.v1 import command_service_pb2 as commands
from commerce.event.v1 import event_pb2
from shop.events import EVENTS
from tandem.commands.domain import CommandKind, Domain

KINDS = [*customers.KINDS, *products.KINDS, *orders.KINDS, *subscriptions.KINDS]
CHANGES = [customers.CHANGES, products.CHANGES, orders.CHANGES, subscriptions.CHANGES]
LOADS = [orders.ORDERS, subscriptions.SUBSCRIPTIONS, customers.CUSTOMERS, products.PRODUCTS]


def described(**changes: Any) -> Domain:
    parts: dict[str, Any] = {
        "service": DOMAIN.service,
        "events": EVENTS,
        "loads": LOADS,
        "kinds": KINDS,
        "changes": CHANGES,
    }
    return Domain(**(parts | changes))


def test_an_rpc_without_a_kind_is_named_and_where_kinds_are() -> None:
    without = [it for it in KINDS if it.request is not commands.ChangePriceRequest]
    with pytest.raises(ValueError, match=r"ChangePriceRequest is among the RPCs .* 'command_server\.products'"):
        described(kinds=without)


def test_a_kind_that_is_said_twice_is_named() -> None:
    with pytest.raises(ValueError, match="RegisterCustomerRequest is twice"):
        described(kinds=[*KINDS, KINDS[0]])


def test_an_event_that_changes_nothing_is_named_and_where_changes_are() -> None:
    without = {event: change for event, change in orders.CHANGES.items() if event is not event_pb2.OrderPaid}
    with pytest.raises(ValueError, match=r"order_paid is among the events .* 'command_server\.orders'"):
        described(changes=[customers.CHANGES, products.CHANGES, without, subscriptions.CHANGES])


def test_an_event_that_two_aggregates_change_is_named() -> None:
    with pytest.raises(ValueError, match="order_paid is twice"):
        described(changes=[*CHANGES, {event_pb2.OrderPaid: orders.order_placed}])


def test_an_aggregate_that_nothing_loads_is_named() -> None:
    with pytest.raises(ValueError, match="product is among the aggregates of commands"):
        described(loads=LOADS[:-1])


def test_a_command_that_no_rpc_takes_must_say_what_answers_it() -> None:
    with pytest.raises(ValueError, match=r"no RPC takes commerce\.event\.v1\.OrderPaid"):
        CommandKind(orders.ORDERS, event_pb2.OrderPaid, orders.pay_order)
