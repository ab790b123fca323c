"""One order, as a collector of traces is told of it by three services."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import psycopg
import pytest
from opentelemetry.sdk.trace import TracerProvider

from commerce.command.v1.command_service_pb2 import PayOrderRequest
from commerce.command.v1.receipt_service_pb2 import GetReceiptRequest
from commerce.command.v1.receipt_service_pb2_grpc import ReceiptServiceStub
from commerce.feed.v1.feed_service_pb2 import SubscribeRequest
from commerce.feed.v1.feed_service_pb2_grpc import FeedServiceStub
from commerce.projection.v1.projection_service_pb2 import (
    DropGenerationRequest,
    GenerationState,
    ListGenerationsRequest,
    ListProjectionsRequest,
    RedriveParkedKeysRequest,
    StartRebuildRequest,
)
from commerce.query.v1.query_service_pb2 import (
    BatchGetOrderDetailsRequest,
    GetOrderDetailsRequest,
    ListRecentOrdersRequest,
    SearchProductsRequest,
    WatchOrderDetailsRequest,
)
from commerce.type.v1.consistency_pb2 import Consistency
from shop.client import Client
from shop.views import CACHED_VIEWS, VIEWS
from tandem.cli.embedded import Memcached, memcached_path
from tandem.read_store.tables import other_of
from tandem.testing.ports import free_port
from tandem.testing.stack import end_node, wait_until
from tests.support.builders import add_product, identity, place_order, register_customer
from tests.support.otlp import Collector, Span
from tests.support.stack import Databases, Stack

# What the caller's own tracing says: it is in this span of this trace, which is sampled.
CALLER = "00f067aa0ba902b7"


def said(trace: str, flags: str = "01") -> tuple[tuple[str, str], ...]:
    return (("traceparent", f"00-{trace}-{CALLER}-{flags}"),)


def spans_until(collector: Collector, trace: str, *names: str) -> dict[str, Span]:
    """Of a trace, by name, once those are there."""

    def found() -> dict[str, Span]:
        spans = {it.name: it for it in collector.spans(trace)}
        return spans if set(names) <= spans.keys() else {}

    return wait_until(found, f"{names} in the trace")


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    it = Collector()
    it.start()
    yield it
    it.stop()


@pytest.fixture(scope="module")
def stack(databases: Databases, tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Stack]:
    over_grpc = {"TRACE__ENDPOINT": collector.grpc_endpoint, "TRACE__RATIO": "0"}
    over_http = {"TRACE__ENDPOINT": collector.http_endpoint, "TRACE__PROTOCOL": "http/protobuf", "TRACE__RATIO": "0"}
    nodes = [Memcached(free_port())] if memcached_path() else []
    for node in nodes:
        node.start()
    # The auditor would make a parked row right as soon as that can be done, before it is redriven.
    projector = {**over_grpc, "AUDIT__SHARE": "0"}
    settings = {"COMMAND": over_grpc, "PROJECTOR": projector, "QUERY": over_http}
    it = Stack(databases, tmp_path_factory.mktemp("stack"), nodes=nodes, settings=settings)
    it.start()
    it.commands.RegisterCustomer(register_customer(1), timeout=20)
    it.commands.AddProduct(add_product(1, stock=1000), timeout=20)
    yield it
    it.stop()
    for node in nodes:
        end_node(node)


def test_a_trace_follows_an_order_to_the_read_that_waited_for_it(stack: Stack, collector: Collector) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    order = place_order(1, customer=1, lines={1: 1})

    def read(token: str) -> None:
        request = GetOrderDetailsRequest(order_id=order.order_id, consistency=Consistency(at_least_as_fresh=token))
        stack.queries.GetOrderDetails(request, metadata=said(trace), timeout=20)

    read(stack.commands.PlaceOrder(order, metadata=said(trace), timeout=20).receipt.consistency_token)

    spans: dict[tuple[str, str], Span] = {}
    wanted = {
        ("command_server", "PlaceOrder"),
        ("command_server", "command batch"),
        ("command_server", "commit"),
        ("projector", "projection batch"),
        *(("projector", f"project {view}") for view in VIEWS),
        *(("projector", f"cache {view}") for view in CACHED_VIEWS if stack.nodes),
        ("projector", "announce"),
        ("query_server", "GetOrderDetails"),
    }

    def all_came() -> bool:
        spans.update({(it.service, it.name): it for it in collector.spans(trace)})
        return wanted <= spans.keys()

    wait_until(all_came, "all spans of the order")
    parents = {it.id: it.name for it in spans.values()} | {CALLER: "the caller"}
    assert {name: parents[it.parent] for (_, name), it in spans.items()} == {
        "PlaceOrder": "the caller",
        "command batch": "PlaceOrder",
        "commit": "command batch",
        "projection batch": "PlaceOrder",
        **{
            name: "projection batch"
            for service, name in wanted
            if service == "projector" and name != "projection batch"
        },
        "GetOrderDetails": "the caller",
        **({"wait": "GetOrderDetails"} if ("query_server", "wait") in spans else {}),
    }
    assert all(it.began <= it.ended for it in spans.values())
    commit, project = spans["command_server", "commit"], spans["projector", "project order_details"]
    announce, read_it = spans["projector", "announce"], spans["query_server", "GetOrderDetails"]
    assert commit.began <= project.ended <= announce.ended
    assert project.ended <= read_it.ended
    assert spans["command_server", "PlaceOrder"].attributes["rpc.response.status_code"] == "OK"
    assert not any(it.failed for it in spans.values())


def test_a_read_that_waits_says_for_how_long(stack: Stack, collector: Collector) -> None:
    trace = "5bf92f3577b34da6a3ce929d0e0e4736"
    stack.commands.PlaceOrder(place_order(2, customer=1, lines={1: 1}), timeout=20)
    token = stack.commands.PlaceOrder(place_order(3, customer=1, lines={1: 1}), timeout=20).receipt.consistency_token
    stack.projector.stop()
    order = place_order(4, customer=1, lines={1: 1})
    token = stack.commands.PlaceOrder(order, timeout=20).receipt.consistency_token
    request = GetOrderDetailsRequest(order_id=order.order_id, consistency=Consistency(at_least_as_fresh=token))
    request.consistency.max_wait.FromSeconds(20)
    with ThreadPoolExecutor(1) as threads:
        reading = threads.submit(stack.queries.GetOrderDetails, request, metadata=said(trace), timeout=20)
        wait_until(lambda: stack.query_server.metric("tandem_freshness_waiters") == 1, "the read waits")
        stack.projector.launch()
        assert reading.result().order_details.order_id == order.order_id

    spans = spans_until(collector, trace, "wait", "GetOrderDetails")
    assert spans["wait"].parent == spans["GetOrderDetails"].id
    assert spans["wait"].attributes["view"] == "order_details"
    assert spans["GetOrderDetails"].began <= spans["wait"].began <= spans["wait"].ended


def test_calls_that_are_stored_together_have_one_batch_that_is_linked_to_all(
    stack: Stack, collector: Collector
) -> None:
    traces = [f"{number:032x}" for number in range(1, 33)]
    orders = [place_order(100 + number, customer=1, lines={1: 1}) for number in range(len(traces))]
    with ThreadPoolExecutor(len(traces)) as threads:
        calls = [
            threads.submit(stack.commands.PlaceOrder, order, metadata=said(trace), timeout=20)
            for order, trace in zip(orders, traces, strict=True)
        ]
        assert len({it.result().receipt.position for it in calls}) == len(traces)

    def ids() -> set[str]:
        return {it.id for trace in traces for it in collector.spans(trace) if it.name == "PlaceOrder"}

    def in_batches() -> set[str]:
        batches = [it for trace in traces for it in collector.spans(trace) if it.name == "command batch"]
        return {one for it in batches for one in (it.parent, *it.links)}

    wait_until(lambda: len(ids()) == len(traces) and ids() == in_batches(), "each call is of a batch")


def test_what_the_caller_does_not_sample_is_not_told(stack: Stack, collector: Collector) -> None:
    quiet, loud = "6bf92f3577b34da6a3ce929d0e0e4736", "7bf92f3577b34da6a3ce929d0e0e4736"
    nobody = GetOrderDetailsRequest(order_id=identity("no order"))
    for trace, flags in ((quiet, "00"), (loud, "01")):
        with pytest.raises(grpc.RpcError):
            stack.queries.GetOrderDetails(nobody, metadata=said(trace, flags), timeout=20)
    [span] = wait_until(lambda: collector.spans(loud), "what came after it was told")
    assert span.attributes["rpc.response.status_code"] == "NOT_FOUND"
    assert not span.failed, "the caller's error is not the server's"
    assert collector.spans(quiet) == []


def test_a_caller_of_any_rpc_sees_it_in_its_trace(stack: Stack, collector: Collector) -> None:
    trace = "8bf92f3577b34da6a3ce929d0e0e4736"
    order = place_order(200, customer=1, lines={1: 1})
    token = stack.commands.PlaceOrder(order, timeout=20).receipt.consistency_token
    fresh = Consistency(at_least_as_fresh=token)
    traced: dict[str, Any] = {"metadata": said(trace), "timeout": 20}
    queries = stack.queries
    queries.BatchGetOrderDetails(BatchGetOrderDetailsRequest(order_ids=[order.order_id], consistency=fresh), **traced)
    queries.ListRecentOrders(ListRecentOrdersRequest(customer_id=order.customer_id), **traced)
    queries.SearchProducts(SearchProductsRequest(query="product"), **traced)
    streams: list[Any] = [
        queries.WatchOrderDetails(WatchOrderDetailsRequest(order_id=order.order_id), **traced),
        FeedServiceStub(stack.channel(stack.projector)).Subscribe(SubscribeRequest(from_beginning=True), **traced),
    ]
    for stream in streams:
        next(stream)
        stream.cancel()
    stack.projections.ListProjections(ListProjectionsRequest(), **traced)
    receipts = ReceiptServiceStub(stack.channel(stack.command_server))
    receipts.GetReceipt(GetReceiptRequest(request_id=order.request_id), **traced)
    names = ["BatchGetOrderDetails", "ListRecentOrders", "SearchProducts", "WatchOrderDetails", "Subscribe"]
    spans = spans_until(collector, trace, *names, "ListProjections", "GetReceipt")
    assert {it.parent for name, it in spans.items() if name != "wait"} == {CALLER}
    assert {spans[it].attributes["rpc.response.status_code"] for it in names[:3]} == {"OK"}


def test_a_client_sends_the_span_that_it_is_called_in(stack: Stack, collector: Collector) -> None:
    tracer = TracerProvider().get_tracer("a shop's page")
    client = Client(commands=stack.command_server.address, queries=stack.query_server.address)
    with client, tracer.start_as_current_span("a page") as page:
        session = client.session()
        placed = session.commands.PlaceOrder(place_order(201, customer=1, lines={1: 1}))
        session.queries.GetOrderDetails(GetOrderDetailsRequest(order_id=placed.order_id))
    own = page.get_span_context()
    spans = spans_until(collector, f"{own.trace_id:032x}", "PlaceOrder", "GetOrderDetails", "announce")
    assert spans["PlaceOrder"].parent == spans["GetOrderDetails"].parent == f"{own.span_id:016x}"


def test_what_is_redriven_is_in_the_trace_of_its_event(stack: Stack, collector: Collector) -> None:
    trace = "9bf92f3577b34da6a3ce929d0e0e4736"
    order = place_order(202, customer=1, lines={1: 1})
    placed = stack.commands.PlaceOrder(order, timeout=20).receipt.position
    request = RedriveParkedKeysRequest(view="order_details", key=order.order_id)
    with psycopg.connect(stack.read_url, autocommit=True) as connection:
        constraint = f"ADD CONSTRAINT poison CHECK (key <> '{order.order_id}' OR position <= {placed}) NOT VALID"
        connection.execute(f"ALTER TABLE tandem_read.order_details {constraint}")
        paying = PayOrderRequest(order_id=order.order_id, payment_reference="p")
        stack.commands.PayOrder(paying, metadata=said(trace), timeout=20)
        wait_until(lambda: stack.projector.metric("tandem_projection_parked_keys") == 1, "it is parked")
        before = spans_until(collector, trace, "PayOrder", "projection batch", "announce")
        connection.execute("ALTER TABLE tandem_read.order_details DROP CONSTRAINT poison")
    stack.projections.RedriveParkedKeys(request, timeout=20)
    spans = spans_until(collector, trace, "redrive order_details")
    redriven = spans["redrive order_details"]
    assert redriven.parent == before["PayOrder"].id
    assert redriven.attributes["events"] == 1
    assert redriven.began >= before["announce"].ended


def test_events_that_a_view_is_made_anew_of_are_not_traced_again(stack: Stack, collector: Collector) -> None:
    old, new = "abf92f3577b34da6a3ce929d0e0e4736", "bbf92f3577b34da6a3ce929d0e0e4736"
    stack.commands.PlaceOrder(place_order(203, customer=1, lines={1: 1}), metadata=said(old), timeout=20)
    spans_until(collector, old, "announce")
    stack.projections.StartRebuild(StartRebuildRequest(view="order_summary"), timeout=20)

    def is_ready() -> bool:
        listed = stack.projections.ListGenerations(ListGenerationsRequest(), timeout=20).generations
        return [it.state for it in listed] == [GenerationState.GENERATION_STATE_READY]

    wait_until(is_ready, "the other generation is filled")
    stack.commands.PlaceOrder(place_order(204, customer=1, lines={1: 1}), metadata=said(new), timeout=20)
    # From here on both generations take in what is new.
    of_the_other = f"project {other_of('order_summary')}"
    assert of_the_other in spans_until(collector, new, "announce")
    assert {it.trace for it in collector.named(of_the_other)} == {new}
    stack.projections.DropGeneration(DropGenerationRequest(view="order_summary"), timeout=20)
