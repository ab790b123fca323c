"""One order, as a collector of traces is told of it by three services."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from commerce.query.v1.query_service_pb2 import GetOrderDetailsRequest
from commerce.type.v1.consistency_pb2 import Consistency
from shop.views import CACHED_VIEWS, VIEWS
from tandem.cli.embedded import Memcached, memcached_path
from tests.support.builders import add_product, identity, place_order, register_customer
from tests.support.otlp import Collector, Span
from tests.support.ports import free_port
from tests.support.stack import Databases, Stack, end_node, wait_until

# What the caller's own tracing says: it is in this span of this trace, which is sampled.
CALLER = "00f067aa0ba902b7"


def said(trace: str, flags: str = "01") -> tuple[tuple[str, str], ...]:
    return (("traceparent", f"00-{trace}-{CALLER}-{flags}"),)


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
    settings = {"COMMAND": over_grpc, "PROJECTOR": over_grpc, "QUERY": over_http}
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

    def wait() -> dict[str, Span]:
        spans = {it.name: it for it in collector.spans(trace)}
        return spans if {"wait", "GetOrderDetails"} <= spans.keys() else {}

    spans = wait_until(wait, "the spans of the read")
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
