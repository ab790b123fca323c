"""Who may call what by the shop's policy: a row for every RPC of the contract, for tests/contract/test_access.py.

Commands and queries that have no row of their own get the one that follows from the contract: what has an owner is for
who owns it, whatever the policy says.
"""

import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from command_server.app import DOMAIN
from commerce.audit.v1 import audit_service_pb2 as audit
from commerce.command.v1 import command_service_pb2 as commands
from commerce.command.v1 import reaction_service_pb2 as reactions
from commerce.command.v1 import receipt_service_pb2 as receipts
from commerce.feed.v1 import feed_service_pb2 as feed
from commerce.projection.v1 import projection_service_pb2 as projection
from commerce.query.v1 import query_service_pb2 as queries
from shop.views import OWNERS
from tandem.queries.owners import owner_field
from tandem.runtime.field_checks import rule_of
from tests.support.builders import (
    add_product,
    address,
    identity,
    import_order,
    place_order,
    register_customer,
    revise_product,
    start_subscription,
    usd,
)

QUERIES = queries.DESCRIPTOR.services_by_name["QueryService"]
ME, ORDER = identity("customer", 1), identity("order", 1)
SUBSCRIPTION, PRODUCT = identity("subscription", 1), identity("product", 1)

OK, DENIED, NOT_FOUND = grpc.StatusCode.OK, grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.NOT_FOUND
PASSED = {OK, grpc.StatusCode.ALREADY_EXISTS, grpc.StatusCode.FAILED_PRECONDITION}
"""What is said behind the guards."""


class Row(NamedTuple):
    """role: that may call it. others: what somebody with the role `customer` gets for things of another customer.

    request: about things of customer 1.
    """

    role: str
    others: grpc.StatusCode
    request: Message
    passed: frozenset[grpc.StatusCode] = frozenset(PASSED)


def own(request: Message) -> Row:
    return Row("customer", NOT_FOUND, request)


def only(role: str, request: Message, *passed: grpc.StatusCode) -> Row:
    return Row(role, DENIED, request, frozenset({*PASSED, *passed}))


def for_all(request: Message) -> Row:
    return Row("", OK, request)


POLICY = Path(__file__).parents[2] / "deploy" / "policy.toml"
IDS = {"customer": ME, "order": ORDER, "subscription": SUBSCRIPTION, "product": PRODUCT}


def example(message: type[Message]) -> Message:
    """A request about things of customer 1, with as little as its fields must hold."""
    request = message()
    descriptor: Any = message.DESCRIPTOR
    for field in descriptor.fields:
        rule = rule_of(field)
        if field.name.removesuffix("_id") in IDS:
            setattr(request, field.name, IDS[field.name.removesuffix("_id")])
        elif rule.HasField("min"):
            setattr(request, field.name, max(rule.min, 1))
        elif rule.required and rule.max_length:
            setattr(request, field.name, "x")
    return request


def derived(method: MethodDescriptor, owner: bool) -> Row | None:
    """None where nobody may call it."""
    rpcs = tomllib.loads(POLICY.read_text())["rpcs"].get(method.containing_service.full_name, {})
    roles = rpcs.get(method.name)
    if roles is None:
        return None
    request = example(GetMessageClass(method.input_type))
    if not {"*", "customer", "customer:own"} & {*roles}:
        return only(roles[0], request)
    if owner:
        return own(request)
    return for_all(request) if "*" in roles else Row("customer", OK, request)


def rows_of_contract() -> dict[str, Row]:
    owned = {f"CommandService/{name}" for name in DOMAIN.owner_fields}
    owned |= {f"QueryService/{it.name}" for it in QUERIES.methods if owner_field(it, OWNERS) is not None}
    methods = {f"{it.name}/{method.name}": method for it in (DOMAIN.service, QUERIES) for method in it.methods}
    rows = {rpc: derived(method, rpc in owned) for rpc, method in methods.items()}
    return {rpc: row for rpc, row in rows.items() if row is not None}


VIEW_AND_KEY: dict[str, Any] = {"view": "order_details", "key": ORDER}
OWN_ROWS: dict[str, Row] = {
    "CommandService/RegisterCustomer": own(register_customer()),
    "CommandService/RenameCustomer": own(commands.RenameCustomerRequest(customer_id=ME, name="Ada")),
    "CommandService/UpdateAddress": own(
        commands.UpdateAddressRequest(customer_id=ME, address_name="home", address=address())
    ),
    "CommandService/RemoveAddress": own(commands.RemoveAddressRequest(customer_id=ME, address_name="none")),
    "CommandService/PlaceOrder": own(place_order()),
    "CommandService/ChangeShippingAddress": own(
        commands.ChangeShippingAddressRequest(order_id=ORDER, address=address(city="Bonn"))
    ),
    "CommandService/CancelSubscription": own(
        commands.CancelSubscriptionRequest(subscription_id=SUBSCRIPTION, when=commands.CANCELLATION_TIME_AT_PERIOD_END)
    ),
    "CommandService/AddProduct": only("clerk", add_product()),
    "CommandService/ChangePrice": only("clerk", commands.ChangePriceRequest(product_id=PRODUCT, price=usd(1999))),
    "CommandService/AdjustStock": only("clerk", commands.AdjustStockRequest(product_id=PRODUCT, delta=1)),
    "CommandService/ReviseProduct": only("clerk", revise_product(name="Tea")),
    "CommandService/PayOrder": only("clerk", commands.PayOrderRequest(order_id=ORDER, payment_reference="p")),
    "CommandService/ShipOrder": only(
        "clerk", commands.ShipOrderRequest(order_id=ORDER, carrier="c", tracking_number="t")
    ),
    "CommandService/RefundOrder": only("clerk", commands.RefundOrderRequest(order_id=ORDER, amount=usd(1))),
    "CommandService/ImportOrder": only("importer", import_order(9)),
    "CommandService/StartSubscription": only("clerk", start_subscription()),
    "CommandService/ChangeSubscriptionPlan": only(
        "clerk",
        commands.ChangeSubscriptionPlanRequest(
            subscription_id=SUBSCRIPTION, plan="gold", price=usd(2900), period_months=1
        ),
    ),
    "CommandService/RenewSubscription": only("clerk", commands.RenewSubscriptionRequest(subscription_id=SUBSCRIPTION)),
    "CommandService/DiscontinueProduct": only("clerk", commands.DiscontinueProductRequest(product_id=PRODUCT)),
    "QueryService/BatchGetOrderDetails": own(queries.BatchGetOrderDetailsRequest(order_ids=[ORDER])),
    "QueryService/BatchGetProducts": for_all(queries.BatchGetProductsRequest(product_ids=[PRODUCT])),
    "QueryService/SearchProducts": for_all(queries.SearchProductsRequest(query="tea")),
    "QueryService/SuggestProducts": for_all(queries.SuggestProductsRequest(query="te")),
    "QueryService/ExplainSearch": only("clerk", queries.ExplainSearchRequest(query="tea")),
    "QueryService/GetSalesSummary": only("analyst", queries.GetSalesSummaryRequest(start_date="2026-01-31")),
    "FeedService/Subscribe": only("follower", feed.SubscribeRequest(from_beginning=True)),
    "FeedService/GetHead": only("follower", feed.GetHeadRequest()),
    "ReceiptService/GetReceipt": only("operator", receipts.GetReceiptRequest(request_id=identity("register", 1))),
    "ReactionService/ListReactions": only("operator", reactions.ListReactionsRequest()),
    "ReactionService/ListParkedTasks": only("operator", reactions.ListParkedTasksRequest()),
    "ReactionService/RedriveParkedTasks": only(
        "operator", reactions.RedriveParkedTasksRequest(reaction="unpaid_orders")
    ),
    "ReactionService/DropParkedTasks": only(
        "operator", reactions.DropParkedTasksRequest(reaction="unpaid_orders", key=ORDER, reason="r")
    ),
    "ReactionService/ReplayReaction": only("operator", reactions.ReplayReactionRequest(reaction="unpaid_orders")),
    "ProjectionService/ListProjections": only("operator", projection.ListProjectionsRequest()),
    "ProjectionService/Explain": only("operator", projection.ExplainRequest(position=1)),
    "ProjectionService/GetHistory": only("operator privacy", projection.GetHistoryRequest(**VIEW_AND_KEY)),
    "ProjectionService/ListParkedKeys": only("operator", projection.ListParkedKeysRequest()),
    "ProjectionService/GetParkedKey": only("operator", projection.GetParkedKeyRequest(**VIEW_AND_KEY), NOT_FOUND),
    "ProjectionService/RedriveParkedKeys": only("operator", projection.RedriveParkedKeysRequest(view="order_details")),
    "ProjectionService/DropParkedKey": only("operator", projection.DropParkedKeyRequest(**VIEW_AND_KEY, reason="r")),
    "ProjectionService/GetOperation": only("operator", projection.GetOperationRequest(operation_id=ME), NOT_FOUND),
    "ProjectionService/ListOperations": only("operator", projection.ListOperationsRequest()),
    "ProjectionService/ListGenerations": only("operator", projection.ListGenerationsRequest()),
    "ProjectionService/ListCacheNodes": only("operator", projection.ListCacheNodesRequest()),
    "ProjectionService/ListFindings": only("operator", projection.ListFindingsRequest()),
    "ProjectionService/SwitchGeneration": only(
        "operator", projection.SwitchGenerationRequest(view="sales_summary"), NOT_FOUND
    ),
    "ProjectionService/DropGeneration": only(
        "operator", projection.DropGenerationRequest(view="sales_summary"), NOT_FOUND
    ),
    "ProjectionService/StartRebuild": only("operator", projection.StartRebuildRequest(view="sales_summary")),
    "AuditService/Verify": only("operator", audit.VerifyRequest(subjects=["order_details"], keys=[ORDER])),
    # The last: nobody is left then.
    "CommandService/EraseCustomer": own(commands.EraseCustomerRequest(customer_id=ME)),
}
RPCS = {rpc: row for rpc, row in rows_of_contract().items() if rpc not in OWN_ROWS} | OWN_ROWS
