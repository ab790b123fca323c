"""The table of commands: for each request, what it touches, how it is checked and which rule decides it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message

from command_server import validation
from command_server.aggregates import Aggregates, Id, Keys, id_of
from command_server.command import Command
from command_server.decide import customers, orders, products, subscriptions
from command_server.validation import Checker
from commerce.command.v1 import command_service_pb2 as commands
from commerce.internal.v1 import stored_pb2


@dataclass(frozen=True)
class CommandKind:
    """One kind of command.

    response: None for a command that a command server gives itself: no RPC takes it.
    subject: the field with the id of what the command creates or changes; `creates` says which.
    validate: names every wrong field to the Checker.
    keys: adds the aggregates that the rule may read or change, beside those that only the loaded ones tell.
    decide: the rule; typed by the request, which is why it is Any here.
    """

    response: type[Message] | None
    subject: str
    creates: bool
    validate: Callable[[Any, Checker], None]
    keys: Callable[[Any, Id, Keys], None]
    decide: Callable[[Any, Command, Aggregates], list[Message]]


def _order_keys(_request: Message, subject: Id, keys: Keys) -> None:
    keys.orders.add(subject)


def _order_and_customer_keys(_request: Message, subject: Id, keys: Keys) -> None:
    keys.orders.add(subject)
    keys.with_customer.add(subject)


def _order_and_lines_keys(_request: Message, subject: Id, keys: Keys) -> None:
    keys.orders.add(subject)
    keys.with_lines.add(subject)


def _customer_keys(_request: Message, subject: Id, keys: Keys) -> None:
    keys.customers.add(subject)


def _whole_customer_keys(_request: Message, subject: Id, keys: Keys) -> None:
    keys.customers.add(subject)
    keys.whole_customers.add(subject)


def _product_keys(_request: Message, subject: Id, keys: Keys) -> None:
    keys.products.add(subject)


def _subscription_keys(_request: Message, subject: Id, keys: Keys) -> None:
    keys.subscriptions.add(subject)


def _start_subscription_keys(request: commands.StartSubscriptionRequest, subject: Id, keys: Keys) -> None:
    keys.subscriptions.add(subject)
    keys.customers.add(id_of(request.customer_id))


def _place_order_keys(request: commands.PlaceOrderRequest, subject: Id, keys: Keys) -> None:
    keys.orders.add(subject)
    keys.customers.add(id_of(request.customer_id))
    keys.products.update([id_of(line.product_id) for line in request.lines])


CATALOGUE: dict[type[Message], CommandKind] = {
    commands.RegisterCustomerRequest: CommandKind(
        commands.RegisterCustomerResponse, "customer_id", True,
        validation.register_customer, _customer_keys, customers.register_customer,
    ),
    commands.RenameCustomerRequest: CommandKind(
        commands.RenameCustomerResponse, "customer_id", False,
        validation.rename_customer, _customer_keys, customers.rename_customer,
    ),
    commands.UpdateAddressRequest: CommandKind(
        commands.UpdateAddressResponse, "customer_id", False,
        validation.update_address, _customer_keys, customers.update_address,
    ),
    commands.RemoveAddressRequest: CommandKind(
        commands.RemoveAddressResponse, "customer_id", False,
        validation.remove_address, _customer_keys, customers.remove_address,
    ),
    commands.EraseCustomerRequest: CommandKind(
        commands.EraseCustomerResponse, "customer_id", False,
        validation.nothing_more, _whole_customer_keys, customers.erase_customer,
    ),
    commands.AddProductRequest: CommandKind(
        commands.AddProductResponse, "product_id", True,
        validation.add_product, _product_keys, products.add_product,
    ),
    commands.ChangePriceRequest: CommandKind(
        commands.ChangePriceResponse, "product_id", False,
        validation.change_price, _product_keys, products.change_price,
    ),
    commands.AdjustStockRequest: CommandKind(
        commands.AdjustStockResponse, "product_id", False,
        validation.adjust_stock, _product_keys, products.adjust_stock,
    ),
    commands.DiscontinueProductRequest: CommandKind(
        commands.DiscontinueProductResponse, "product_id", False,
        validation.nothing_more, _product_keys, products.discontinue_product,
    ),
    commands.ReviseProductRequest: CommandKind(
        commands.ReviseProductResponse, "product_id", False,
        validation.revise_product, _product_keys, products.revise_product,
    ),
    commands.PlaceOrderRequest: CommandKind(
        commands.PlaceOrderResponse, "order_id", True,
        validation.place_order, _place_order_keys, orders.place_order,
    ),
    commands.PayOrderRequest: CommandKind(
        commands.PayOrderResponse, "order_id", False,
        validation.pay_order, _order_keys, orders.pay_order,
    ),
    commands.ShipOrderRequest: CommandKind(
        commands.ShipOrderResponse, "order_id", False,
        validation.ship_order, _order_keys, orders.ship_order,
    ),
    commands.DeliverOrderRequest: CommandKind(
        commands.DeliverOrderResponse, "order_id", False,
        validation.deliver_order, _order_keys, orders.deliver_order,
    ),
    commands.ChangeShippingAddressRequest: CommandKind(
        commands.ChangeShippingAddressResponse, "order_id", False,
        validation.change_shipping_address, _order_and_customer_keys, orders.change_shipping_address,
    ),
    commands.CancelOrderRequest: CommandKind(
        commands.CancelOrderResponse, "order_id", False,
        validation.cancel_order, _order_and_lines_keys, orders.cancel_order,
    ),
    commands.StartSubscriptionRequest: CommandKind(
        commands.StartSubscriptionResponse, "subscription_id", True,
        validation.start_subscription, _start_subscription_keys, subscriptions.start_subscription,
    ),
    commands.ChangeSubscriptionPlanRequest: CommandKind(
        commands.ChangeSubscriptionPlanResponse, "subscription_id", False,
        validation.change_subscription_plan, _subscription_keys, subscriptions.change_subscription_plan,
    ),
    commands.RenewSubscriptionRequest: CommandKind(
        commands.RenewSubscriptionResponse, "subscription_id", False,
        validation.nothing_more, _subscription_keys, subscriptions.renew_subscription,
    ),
    commands.CancelSubscriptionRequest: CommandKind(
        commands.CancelSubscriptionResponse, "subscription_id", False,
        validation.cancel_subscription, _subscription_keys, subscriptions.cancel_subscription,
    ),
    commands.ResumeSubscriptionRequest: CommandKind(
        commands.ResumeSubscriptionResponse, "subscription_id", False,
        validation.nothing_more, _subscription_keys, subscriptions.resume_subscription,
    ),
    stored_pb2.EndSubscriptionRequest: CommandKind(
        None, "subscription_id", False,
        validation.nothing_more, _subscription_keys, subscriptions.end_subscription,
    ),
}  # fmt: skip
