"""What is missing in the description of a domain, or said twice, is an error when the server is built."""

from typing import Any

import pytest
from google.protobuf.message import Message

from command_server import customers, orders, products, subscriptions
from command_server.app import DOMAIN
from commerce.command.v1 import command_service_pb2 as commands
from commerce.event.v1 import event_pb2
from shop.events import EVENTS
from tandem.commands.domain import Command, CommandKind, Domain, change, change_fields, rule
from tandem.commands.write_model import Aggregate, States

LOADS: list[Aggregate[Any]] = [orders.ORDERS, subscriptions.SUBSCRIPTIONS, customers.CUSTOMERS, products.PRODUCTS]


@pytest.fixture
def another() -> Aggregate[Any]:
    """An aggregate with a rule of its own, where the products are looked for."""
    return Aggregate("product", products.product_table, of_row=products.Product._make)


def described(*loads: Aggregate[Any]) -> Domain:
    return Domain(service=DOMAIN.service, events=EVENTS, loads=loads)


def without(aggregate: Aggregate[Any], message: type[Message]) -> Aggregate[Any]:
    """The same aggregate, where nobody has written the rule for this request, or what this event changes."""
    other = Aggregate(aggregate.name, aggregate.table, of_row=aggregate.state_of)
    other.kinds = [it for it in aggregate.kinds if it.request is not message]
    other.changes = [it for it in aggregate.changes if it[0] is not message]
    return other


def test_an_rpc_without_a_rule_is_named_and_where_rules_are() -> None:
    with pytest.raises(ValueError, match=r"ChangePriceRequest is among the RPCs .* 'command_server\.products'"):
        described(*LOADS[:-1], without(products.PRODUCTS, commands.ChangePriceRequest))


def test_an_aggregate_that_nothing_loads_has_no_rules() -> None:
    with pytest.raises(ValueError, match="AddProductRequest is among the RPCs"):
        described(*LOADS[:-1])


def test_a_rule_that_is_there_twice_is_named(another: Aggregate[Any]) -> None:
    @rule(another)
    def change_price(request: commands.ChangePriceRequest, command: Command, states: States) -> list[Message]:
        return []

    with pytest.raises(ValueError, match="ChangePriceRequest is twice"):
        described(*LOADS, another)


def test_an_event_that_changes_nothing_is_named_and_where_changes_are() -> None:
    with pytest.raises(ValueError, match=r"order_paid is among the events .* 'command_server\.orders'"):
        described(without(orders.ORDERS, event_pb2.OrderPaid), *LOADS[1:])


def test_an_event_that_two_aggregates_change_is_named(another: Aggregate[Any]) -> None:
    change_fields(another, event_pb2.OrderPaid)
    with pytest.raises(ValueError, match="order_paid is twice"):
        described(*LOADS, another)


def test_a_command_that_no_rpc_takes_must_say_what_answers_it() -> None:
    with pytest.raises(ValueError, match=r"no RPC takes commerce\.event\.v1\.OrderPaid"):
        CommandKind(orders.ORDERS, event_pb2.OrderPaid, orders.pay_order)


def test_what_a_function_is_for_is_what_its_parameter_is_typed_as(another: Aggregate[Any]) -> None:
    def by_name(request: "commands.ChangePriceRequest", command: Command, states: States) -> list[Message]:
        return []

    def untyped(request, command, states):  # type: ignore[no-untyped-def]
        return []

    assert rule(another)(by_name) is by_name
    assert [(it.request, it.decide) for it in another.kinds] == [(commands.ChangePriceRequest, by_name)]
    with pytest.raises(TypeError, match=r"untyped: type request as a message of the contract"):
        rule(another)(untyped)
    with pytest.raises(TypeError, match=r"untyped: type command as a message of the contract"):
        change(another)(untyped)  # type: ignore[type-var]
    with pytest.raises(TypeError, match="has 1 parameters, and needs 2"):
        change(another)(lambda states: None)  # type: ignore[type-var]
