"""Who may call what: every RPC of the contract by every kind of caller, on the shop's own policy, in real processes."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from commerce.audit.v1 import audit_service_pb2 as audit
from commerce.command.v1 import command_service_pb2 as commands
from commerce.command.v1 import reaction_service_pb2 as reactions
from commerce.command.v1 import receipt_service_pb2 as receipts
from commerce.command.v1.command_service_pb2_grpc import CommandServiceStub
from commerce.feed.v1 import feed_service_pb2 as feed
from commerce.feed.v1.feed_service_pb2_grpc import FeedServiceStub
from commerce.projection.v1 import projection_service_pb2 as projection
from commerce.projection.v1.projection_service_pb2_grpc import ProjectionServiceStub
from commerce.query.v1 import query_service_pb2 as queries
from commerce.query.v1.query_service_pb2_grpc import QueryServiceStub
from commerce.type.v1.consistency_pb2 import Consistency
from commerce.type.v1.subscription_status_pb2 import SubscriptionStatus
from tandem.cli.embedded import Memcached
from tandem.runtime import forwarded
from tandem.testing.ports import free_port
from tandem.testing.stack import end_node, up_to, wait_until
from tests.support.access import DENIED, ME, NOT_FOUND, OK, ORDER, POLICY, PRODUCT, RPCS, VIEW_AND_KEY
from tests.support.builders import add_product, identity, place_order, register_customer, start_subscription
from tests.support.issuer import AUDIENCE, ISSUER, Issuer, bearer, claims_of
from tests.support.stack import Databases, Stack

OTHER, UNKNOWN = identity("customer", 2), identity("customer", 99)
OTHERS_ORDER, NO_ORDER = identity("order", 2), identity("order", 99)
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED

SERVICES: list[tuple[str, ServiceDescriptor]] = [
    (server, service)
    for server, file in {
        "command_server": commands,
        "command_server ": receipts,
        "command_server  ": reactions,
        "query_server": queries,
        "projector": projection,
        "projector ": feed,
        "projector  ": audit,
    }.items()
    for service in file.DESCRIPTOR.services_by_name.values()
]
METHODS = {f"{service.name}/{it.name}": (server.strip(), it) for server, service in SERVICES for it in service.methods}


class Shop(NamedTuple):
    """A stack that asks who calls. token: of all that was done at the start. by_sidecar: whether it verifies tokens."""

    stack: Stack
    issuer: Issuer
    policy: Path
    token: str
    by_sidecar: bool

    def caller(self, roles: str, customer: str = ME, **claims: Any) -> tuple[tuple[str, str], ...]:
        """Metadata that says who calls."""
        token = self.issuer.token("user-7", roles=roles.split(), customer_id=customer, **claims)
        return ((forwarded.CLAIMS, claims_of(token, owner_claim="customer_id")),) if self.by_sidecar else bearer(token)

    def outcome(self, rpc: str, request: Any, metadata: tuple[tuple[str, str], ...]) -> grpc.StatusCode:
        """How a call ends; of a stream, its first message. A batch that has nothing is NOT_FOUND, too."""
        server, method = METHODS[rpc]
        try:
            answer = self._ask(server, method, request, metadata)
        except grpc.RpcError as error:
            return error.code()
        if rpc == "QueryService/BatchGetOrderDetails" and not answer.order_details:
            assert list(answer.missing_order_ids) == list(request.order_ids)
            return NOT_FOUND
        return OK

    def _ask(self, server: str, method: MethodDescriptor, request: Message, metadata: Any) -> Any:
        channel: Any = self.stack.channel(getattr(self.stack, server))
        path = f"/{method.containing_service.full_name}/{method.name}"
        coding: dict[str, Any] = {
            "request_serializer": type(request).SerializeToString,
            "response_deserializer": GetMessageClass(method.output_type).FromString,
        }
        if not method.server_streaming:
            return channel.unary_unary(path, **coding)(request, metadata=metadata, timeout=20)
        stream = channel.unary_stream(path, **coding)(request, metadata=metadata, timeout=20)
        try:
            return next(stream)
        finally:
            stream.cancel()

    def logged(self, server: str, event: str) -> list[dict[str, Any]]:
        """The lines of a service's log about an event."""
        lines = [json.loads(it) for it in getattr(self.stack, server).log.read_text().splitlines() if event in it]
        return [it for it in lines if it.get("event") == event]


@pytest.fixture(scope="module")
def shop(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    with running_shop(databases, tmp_path_factory.mktemp("access")) as shop:
        yield shop


@contextmanager
def running_shop(databases: Databases, folder: Path, *, by_sidecar: bool = False) -> Iterator[Shop]:
    issuer, keys, policy = Issuer(), folder / "keys.json", folder / "policy.toml"
    keys.write_text(issuer.keys())
    policy.write_text(POLICY.read_text())
    verified = {"VERIFIED_BY_SIDECAR": "true"} if by_sidecar else {"KEYS_FILE": str(keys), "OWNER_CLAIM": "customer_id"}
    token = {"ISSUER": ISSUER, "AUDIENCE": AUDIENCE, **verified}
    asking = {f"SERVER__AUTHENTICATION__TOKEN__{name}": value for name, value in token.items()}
    asking["SERVER__POLICY_FILE"] = str(policy)
    nodes = [Memcached(free_port()) for _ in range(up_to(1))]
    for node in nodes:
        node.start()
    sections = dict.fromkeys(("COMMAND", "QUERY", "PROJECTOR"), asking)
    stack = Stack(databases, folder, nodes=nodes, settings=sections)
    made = Shop(stack, issuer, policy, "", by_sidecar)
    try:
        stack.start()
        clerk = made.caller("clerk")
        stub = stack.commands
        for number in (1, 2):
            stub.RegisterCustomer(register_customer(number), metadata=clerk)
        stub.AddProduct(add_product(), metadata=clerk)
        stub.StartSubscription(start_subscription(), metadata=clerk)
        for number in (1, 2):
            placed = stub.PlaceOrder(place_order(number, customer=number), metadata=clerk)
        yield made._replace(token=placed.receipt.consistency_token)
    finally:
        stack.stop()
        for node in nodes:
            end_node(node)


@pytest.mark.parametrize("rpc", RPCS)
def test_an_rpc_is_answered_to_those_whom_the_policy_names(shop: Shop, rpc: str) -> None:
    is_answered_to_those_whom_the_policy_names(shop, rpc)


def test_all_rpcs_are_where_a_sidecar_verifies_tokens(databases: Databases, tmp_path: Path) -> None:
    with running_shop(databases, tmp_path, by_sidecar=True) as shop:
        for rpc in RPCS:
            is_answered_to_those_whom_the_policy_names(shop, rpc)


def is_answered_to_those_whom_the_policy_names(shop: Shop, rpc: str) -> None:
    row = RPCS[rpc]
    request: Any = type(row.request)()
    request.CopyFrom(row.request)
    if "consistency" in request.DESCRIPTOR.fields_by_name:
        request.consistency.at_least_as_fresh = shop.token

    def outcome(metadata: tuple[tuple[str, str], ...]) -> grpc.StatusCode:
        return shop.outcome(rpc, request, metadata)

    assert outcome(()) is UNAUTHENTICATED
    assert outcome(shop.caller(row.role, exp=time.time() - 1000)) is UNAUTHENTICATED
    assert outcome(shop.caller(row.role, aud="others")) is UNAUTHENTICATED
    assert outcome(shop.caller("nobody")) is (DENIED if row.role else OK)
    assert outcome(shop.caller("customer", OTHER)) is row.others
    assert outcome(shop.caller("customer", "")) is (DENIED if row.role else OK), "owns nothing"
    assert outcome(shop.caller(row.role)) in row.passed


def refusal(shop: Shop, call: str, request: Message, **who: str) -> tuple[grpc.StatusCode, str, bytes]:
    """All that a caller sees of it."""
    method = getattr(shop.stack.queries, call)

    def ask() -> None:
        # Of a stream the first message.
        list(method(request, metadata=shop.caller("customer", **who), timeout=20))

    with pytest.raises(grpc.RpcError) as raised:
        ask()
    error: Any = raised.value
    return error.code(), error.details(), dict(error.trailing_metadata())["grpc-status-details-bin"]


@pytest.mark.parametrize("call", ["GetOrderDetails", "WatchOrderDetails"])
def test_somebody_elses_row_looks_like_one_that_is_not_there(shop: Shop, call: str) -> None:
    request: Any = getattr(queries, f"{call}Request")
    fresh = Consistency(at_least_as_fresh=shop.token)
    mine = queries.GetOrderDetailsRequest(order_id=OTHERS_ORDER, consistency=fresh)
    for _ in range(3):  # it is in the cache then
        shop.stack.queries.GetOrderDetails(mine, metadata=shop.caller("customer", OTHER))
    for consistency in (Consistency(), fresh):
        others = refusal(shop, call, request(order_id=OTHERS_ORDER, consistency=consistency))
        nobodys = refusal(shop, call, request(order_id=NO_ORDER, consistency=consistency))
        assert others[0] is NOT_FOUND
        assert others[1] == nobodys[1].replace(NO_ORDER, OTHERS_ORDER)
        assert others[2] == nobodys[2].replace(NO_ORDER.encode(), OTHERS_ORDER.encode())
    assert any(
        it["rpc"] == call and "somebody else's" in it["problem"] for it in shop.logged("query_server", "audit: refused")
    )


def test_a_batch_has_ones_own_rows_and_no_others(shop: Shop) -> None:
    ids = [OTHERS_ORDER, NO_ORDER, ORDER]
    request = queries.BatchGetOrderDetailsRequest(order_ids=ids, consistency=Consistency(at_least_as_fresh=shop.token))
    for consistency in (request.consistency, Consistency()):
        request.consistency.CopyFrom(consistency)
        answer = shop.stack.queries.BatchGetOrderDetails(request, metadata=shop.caller("customer", OTHER.upper()))
        assert [it.order_id for it in answer.order_details] == [OTHERS_ORDER]
        assert list(answer.missing_order_ids) == ids[1:]


def test_a_list_is_of_ones_own_or_of_nobody(shop: Shop) -> None:
    for customer in (OTHER, UNKNOWN):
        code, details, _ = refusal(shop, "ListRecentOrders", queries.ListRecentOrdersRequest(customer_id=customer))
        assert (code, details) == (NOT_FOUND, f"customers/{customer} is not known")
    everybodys = queries.ListSubscriptionsRequest(statuses=[SubscriptionStatus.SUBSCRIPTION_STATUS_ACTIVE])
    assert refusal(shop, "ListSubscriptions", everybodys)[0] is DENIED
    shop.stack.queries.ListSubscriptions(everybodys, metadata=shop.caller("clerk"), timeout=20)


def test_a_command_in_nobodys_name_is_for_those_alone_who_may_give_it_in_any(shop: Shop) -> None:
    request = register_customer(7)
    request.ClearField("customer_id")
    request.ClearField("request_id")
    stub = CommandServiceStub(shop.stack.channel(shop.stack.command_server))
    with pytest.raises(grpc.RpcError) as raised:
        stub.RegisterCustomer(request, metadata=shop.caller("customer"), timeout=20)
    assert raised.value.code() is DENIED
    stub.RegisterCustomer(request, metadata=shop.caller("clerk"), timeout=20)


def test_a_command_about_somebody_elses_thing_is_refused_as_if_it_was_not_there_and_stays_refused(shop: Shop) -> None:
    def cancelled(order_id: str, request_id: str, customer: str) -> tuple[grpc.StatusCode, str]:
        request = commands.CancelOrderRequest(order_id=order_id, request_id=request_id)
        try:
            shop.stack.commands.CancelOrder(request, metadata=shop.caller("customer", customer), timeout=20)
        except grpc.RpcError as error:
            return error.code(), error.details() or ""
        return OK, ""

    request_id = identity("cancel", 2)
    others = cancelled(OTHERS_ORDER, request_id, ME)
    nobodys = cancelled(NO_ORDER, identity("cancel", 99), ME)
    assert others == (NOT_FOUND, nobodys[1].replace(NO_ORDER, OTHERS_ORDER))
    assert cancelled(OTHERS_ORDER, identity("cancel", 3), OTHER)[0] is OK
    assert cancelled(OTHERS_ORDER, identity("cancel", 3), ME)[0] is NOT_FOUND, "the receipt is somebody else's, too"
    # What the caller is not told, the audit is, of what is there.
    logged = [it["problem"] for it in shop.logged("command_server", "audit: refused") if it["rpc"] == "CancelOrder"]
    assert logged.count(f"orders/{OTHERS_ORDER} is somebody else's") == 2
    assert not any(NO_ORDER in it for it in logged)


def test_an_id_that_somebody_else_has_is_taken(shop: Shop) -> None:
    request = place_order(2, customer=1)
    request.request_id = identity("place", 77)
    with pytest.raises(grpc.RpcError) as raised:
        shop.stack.commands.PlaceOrder(request, metadata=shop.caller("customer"), timeout=20)
    assert raised.value.code() is grpc.StatusCode.ALREADY_EXISTS


def followed(shop: Shop, roles: str) -> list[Any]:
    """The events of customers that a follower gets."""
    stub = FeedServiceStub(shop.stack.channel(shop.stack.projector))
    request = feed.SubscribeRequest(from_beginning=True, event_types=["customer_registered"])
    stream = stub.Subscribe(request, metadata=shop.caller(roles), timeout=20)
    try:
        return [it.event.customer_registered for it in next(stream).events]
    finally:
        stream.cancel()


def test_personal_data_in_the_feed_is_for_another_role(shop: Shop) -> None:
    plain, with_it = followed(shop, "follower"), followed(shop, "follower privacy")
    assert [it.customer_id for it in plain] == [it.customer_id for it in with_it]
    assert not any(it.HasField("personal") for it in plain)
    assert any(it.HasField("personal") for it in with_it)
    stub = ProjectionServiceStub(shop.stack.channel(shop.stack.projector))
    position = next(
        it
        for it in range(1, 20)
        if stub.Explain(
            projection.ExplainRequest(position=it), metadata=shop.caller("operator privacy")
        ).event.event.customer_registered.HasField("personal")
    )
    explained = stub.Explain(projection.ExplainRequest(position=position), metadata=shop.caller("operator"))
    assert explained.event.event.customer_registered.customer_id
    assert not explained.event.event.customer_registered.HasField("personal")
    with pytest.raises(grpc.RpcError) as raised:
        next(stub.GetHistory(projection.GetHistoryRequest(**VIEW_AND_KEY), metadata=shop.caller("operator")))
    assert raised.value.code() is DENIED


def test_what_operators_call_is_logged(shop: Shop) -> None:
    stub = ProjectionServiceStub(shop.stack.channel(shop.stack.projector))
    request = projection.DropParkedKeyRequest(**VIEW_AND_KEY, reason="a drill")
    stub.DropParkedKey(request, metadata=(*shop.caller("operator"), ("x-request-id", "the-drill")))
    [line] = [it for it in shop.logged("projector", "audit: called") if it["reference"] == "the-drill"]
    assert (line["subject"], line["rpc"]) == ("user-7", "/commerce.projection.v1.ProjectionService/DropParkedKey")
    assert ORDER in line["request"]
    assert "a drill" in line["request"]


def test_another_policy_is_in_force_within_seconds_and_a_wrong_one_changes_nothing(shop: Shop) -> None:
    product = queries.GetProductRequest(product_id=PRODUCT)
    stub = QueryServiceStub(shop.stack.channel(shop.stack.query_server))
    watch = stub.WatchOrderDetails(
        queries.WatchOrderDetailsRequest(order_id=OTHERS_ORDER, heartbeat_interval=Duration(seconds=1)),
        metadata=shop.caller("customer", OTHER),
        timeout=60,
    )
    next(watch)
    before = shop.policy.read_text()
    wrong = before.replace('GetProduct = ["*"]', 'GetProduct = ["clerk:own"]\nNoSuch = ["clerk"]')
    shop.policy.write_text(wrong + '"x" = "a b"\n')
    wait_until(lambda: shop.logged("query_server", "the policy cannot be used; the one before stays in force"), "loud")
    [line] = shop.logged("query_server", "the policy cannot be used; the one before stays in force")
    assert "NoSuch: there is no such RPC" in line["error"]
    assert "must be a list of roles" in line["error"]
    assert "it is not known whose GetProduct is" in line["error"]
    assert shop.stack.query_server.metric("tandem_policy_outdated") == 1
    stub.GetProduct(product, metadata=shop.caller("customer"), timeout=20)
    shop.policy.write_text(before.replace('["*"]', '["clerk"]').replace('"customer:own"', '"nobody:own"'))

    def is_refused() -> bool:
        return shop.outcome("QueryService/GetProduct", product, shop.caller("customer")) is DENIED

    wait_until(is_refused, "the new policy is in force")
    wait_until(lambda: shop.stack.query_server.metric("tandem_policy_outdated") == 0, "it counts as up to date")
    with pytest.raises(grpc.RpcError) as raised:
        list(watch)
    assert raised.value.code() is DENIED, "a watch ends with the role"
    shop.policy.write_text(before)
    wait_until(lambda: not is_refused(), "the first policy is back")
