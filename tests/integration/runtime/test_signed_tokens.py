"""All that the services give away and take back is signed, and nobody's own make is taken."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from commerce.feed.v1.feed_service_pb2 import GetHeadRequest, SubscribeRequest
from commerce.feed.v1.feed_service_pb2_grpc import FeedServiceStub
from commerce.projection.v1.projection_service_pb2 import ExplainRequest
from commerce.query.v1 import query_service_pb2 as queries
from commerce.query.v1.query_service_pb2_grpc import QueryServiceStub
from commerce.type.v1.consistency_pb2 import Consistency
from tandem.feed.token import decode_token, encode_token
from tests.support.builders import add_product, identity, place_order, register_customer
from tests.support.stack import Databases, Stack

OLD, NEW = "the secret that all began with", "the secret that comes after it"


@pytest.fixture(scope="module")
def stack(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("signed")
    (folder / "old").write_text(f"{OLD}\n")
    (folder / "both").write_text(f"{NEW}\n{OLD}\n")
    secret = {"TOKENS__SECRET_FILE": str(folder / "old")}
    stack = Stack(databases, folder, settings={"COMMAND": secret, "PROJECTOR": secret, "QUERY": secret})
    try:
        stack.start()
        yield stack
    finally:
        stack.stop()


@pytest.fixture(scope="module")
def token(stack: Stack) -> str:
    """Of two orders."""
    for request in (register_customer(1), add_product(1), add_product(2)):
        getattr(stack.commands, type(request).__name__.removesuffix("Request"))(request, timeout=20)
    stack.commands.PlaceOrder(place_order(1), timeout=20)
    return stack.commands.PlaceOrder(place_order(2), timeout=20).receipt.consistency_token


def fresh(token: str) -> Consistency:
    return Consistency(at_least_as_fresh=token, max_wait=Duration(seconds=20))


def order(token: str) -> queries.GetOrderDetailsRequest:
    return queries.GetOrderDetailsRequest(order_id=identity("order", 2), consistency=fresh(token))


def orders(token: str, page_token: str = "") -> queries.ListRecentOrdersRequest:
    return queries.ListRecentOrdersRequest(
        customer_id=identity("customer", 1), page_size=1, page_token=page_token, consistency=fresh(token)
    )


def products(token: str, page_token: str = "") -> queries.SearchProductsRequest:
    return queries.SearchProductsRequest(page_size=1, page_token=page_token, consistency=fresh(token))


def plain(token: str) -> str:
    """As somebody makes it who knows how, and has no secret."""
    it = decode_token(token)
    return encode_token(it.epoch, it.position, it.mark, it.generation)


def violations(call: Callable[[], Any]) -> dict[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    status = rpc_status.from_call(caught.value)
    assert status is not None
    assert status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    [detail] = [it for it in status.details if it.Is(error_details_pb2.BadRequest.DESCRIPTOR)]
    bad = error_details_pb2.BadRequest()
    detail.Unpack(bad)
    return {it.field: it.reason for it in bad.field_violations}


def test_what_the_services_gave_away_they_take_back(stack: Stack, token: str) -> None:
    feed = FeedServiceStub(stack.channel(stack.projector))
    head = feed.GetHead(GetHeadRequest(), timeout=10).cursor
    answer = stack.queries.GetOrderDetails(order(token), timeout=30)
    first = stack.queries.ListRecentOrders(orders(token), timeout=30)
    search = stack.queries.SearchProducts(products(token), timeout=30)
    assert all("." in it for it in (token, head, answer.as_of, first.next_page_token, search.next_page_token))
    assert stack.queries.GetOrderDetails(order(answer.as_of), timeout=30).order_details.order_id == identity("order", 2)
    second = stack.queries.ListRecentOrders(orders(token, first.next_page_token), timeout=10)
    assert [it.order_id for it in second.orders] == [identity("order", 1)]
    assert stack.queries.SearchProducts(products(token, search.next_page_token), timeout=10).hits
    with_receipt = next(feed.Subscribe(SubscribeRequest(after_cursor=token), timeout=10))
    assert decode_token(with_receipt.cursor).position == decode_token(head).position
    assert stack.projections.Explain(ExplainRequest(consistency_token=token), timeout=10)


def test_what_others_made_is_refused_where_it_is_and_as_what_is_no_token(stack: Stack, token: str) -> None:
    forged = plain(token)
    feed = FeedServiceStub(stack.channel(stack.projector))
    page = stack.queries.ListRecentOrders(orders(token), timeout=30).next_page_token.partition(".")[0]
    results = stack.queries.SearchProducts(products(token), timeout=30).next_page_token.partition(".")[0]
    watch = queries.WatchOrderDetailsRequest(order_id=identity("order", 2), resume_from=forged)
    several = queries.GetOrderDetailsRequest(order_id=identity("order", 2))
    several.consistency.tokens.extend([token, forged])
    refused: dict[str, Callable[[], Any]] = {
        "consistency.at_least_as_fresh": lambda: stack.queries.GetOrderDetails(order(forged), timeout=10),
        "consistency.tokens[1]": lambda: stack.queries.GetOrderDetails(several, timeout=10),
        "resume_from": lambda: next(stack.queries.WatchOrderDetails(watch, timeout=10)),
        "page_token": lambda: stack.queries.ListRecentOrders(orders(token, page), timeout=10),
        "page_token ": lambda: stack.queries.SearchProducts(products(token, results), timeout=10),
        "after_cursor": lambda: next(feed.Subscribe(SubscribeRequest(after_cursor=forged), timeout=10)),
        "consistency_token": lambda: stack.projections.Explain(ExplainRequest(consistency_token=forged), timeout=10),
    }
    for field, call in refused.items():
        assert violations(call) == {field.strip(): "MALFORMED"}


def test_servers_with_and_without_the_secret_and_with_the_next_one_work_side_by_side(stack: Stack, token: str) -> None:
    folder = Path(stack.query_server.log).parent
    lenient = stack.new_query_server(TOKENS__SECRET_FILE=str(folder / "old"), TOKENS__ACCEPT_UNSIGNED="true")
    rotated = stack.new_query_server(TOKENS__SECRET_FILE=str(folder / "both"))
    for server in (lenient, rotated):
        server.start()
    ask = {it: QueryServiceStub(stack.channel(it)).GetOrderDetails for it in (stack.query_server, lenient, rotated)}
    assert ask[lenient](order(plain(token)), timeout=30).as_of
    assert ask[lenient](order(token), timeout=30).as_of
    by_the_next = ask[rotated](order(token), timeout=30).as_of
    assert ask[rotated](order(by_the_next), timeout=30).as_of
    assert violations(lambda: ask[stack.query_server](order(by_the_next), timeout=10)) == {
        "consistency.at_least_as_fresh": "MALFORMED"
    }
