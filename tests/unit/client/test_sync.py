"""The client for threads, on fake channels."""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import grpc_testing
import pytest

from commerce.command.v1 import command_service_pb2 as commands
from commerce.feed.v1 import feed_service_pb2 as feed
from commerce.query.v1 import query_service_pb2 as queries
from commerce.type.v1.receipt_pb2 import CommandReceipt
from shop.client import Client, Session
from tandem.client.channel import CallDefaults
from tandem.client.command import command
from tandem.client.errors import (
    CallFailed,
    CursorExpired,
    InvalidRequest,
    OutcomeUnknown,
    RuleBroken,
    Unavailable,
    ViewBehind,
)
from tandem.client.session import NoAddress
from tandem.runtime.errors import InvalidArgument, OutOfRange, PreconditionFailed, Violation
from tandem.runtime.errors import Unavailable as ServerUnavailable
from tandem.testing.scripted import Scripted, served
from tests.support.fake_channel import Answer, FakeService, ending, fake_channel

COMMANDS = commands.DESCRIPTOR.services_by_name["CommandService"]
QUERIES = queries.DESCRIPTOR.services_by_name["QueryService"]
FEED = feed.DESCRIPTOR.services_by_name["FeedService"]
PLACE, GET = COMMANDS.methods_by_name["PlaceOrder"], QUERIES.methods_by_name["GetOrderDetails"]
PLACED = commands.PlaceOrderResponse(order_id="7", receipt=CommandReceipt(consistency_token="1token", position=3))
FOUND = queries.GetOrderDetailsResponse(as_of="1later")
STOPPING = ServerUnavailable("the server is stopping", reason="STOPPING")


@pytest.fixture
def channel() -> grpc_testing.Channel:
    return fake_channel([COMMANDS, QUERIES, FEED])


@pytest.fixture
def session(channel: grpc_testing.Channel) -> Session:
    return Session(commands=channel, queries=channel, feed=channel)


def in_turn(*answers: Answer) -> Callable[[object], Answer]:
    left = iter(answers)
    return lambda _: next(left)


def test_a_query_after_a_command_carries_its_token(channel: grpc_testing.Channel, session: Session) -> None:
    placing = FakeService(channel, PLACE, in_turn(PLACED))
    assert session.commands.PlaceOrder(commands.PlaceOrderRequest(customer_id="1")) == PLACED
    assert placing.requests[0].request_id
    getting = FakeService(channel, GET, in_turn(FOUND))
    assert session.queries.GetOrderDetails(queries.GetOrderDetailsRequest(order_id="7")) == FOUND
    assert getting.requests[0].consistency.at_least_as_fresh == session.token == "1token"


def test_sessions_of_one_channel_know_nothing_of_each_other(channel: grpc_testing.Channel) -> None:
    one, other = (Session(commands=channel, queries=channel) for _ in range(2))
    FakeService(channel, PLACE, in_turn(PLACED))
    one.commands.PlaceOrder(commands.PlaceOrderRequest())
    assert (one.token, other.token) == ("1token", "")
    other.learn(one.token)
    assert other.token == "1token"


def test_a_refusal_is_raised_as_its_error_with_grpcs_own_as_the_cause(
    channel: grpc_testing.Channel, session: Session
) -> None:
    FakeService(channel, PLACE, in_turn(PreconditionFailed([Violation("products/1", "none left", "OUT_OF_STOCK")])))
    with pytest.raises(RuleBroken, match="PlaceOrder: FAILED_PRECONDITION") as raised:
        session.commands.PlaceOrder(commands.PlaceOrderRequest())
    assert isinstance(raised.value.__cause__, grpc.RpcError)
    assert not isinstance(raised.value.__cause__, CallFailed)


def test_a_command_given_again_is_done_once_and_a_message_is_another_one(
    channel: grpc_testing.Channel, session: Session
) -> None:
    unknown = ServerUnavailable("the connection broke", reason="OUTCOME_UNKNOWN")
    placing = FakeService(channel, PLACE, in_turn(*[unknown] * 4, PLACED), calls=5)
    message = commands.PlaceOrderRequest(customer_id="1")
    request = command(message)
    with pytest.raises(OutcomeUnknown):
        session.commands.PlaceOrder(request)
    session.commands.PlaceOrder(request)
    assert [it.request_id for it in placing.requests] == [request.request_id] * 5
    placing = FakeService(channel, PLACE, in_turn(PLACED, PLACED), calls=2)
    session.commands.PlaceOrder(message)
    session.commands.PlaceOrder(message)
    assert len({it.request_id for it in placing.requests} - {""}) == 2
    assert not message.request_id


def test_a_query_is_repeated_while_servers_come_and_go(channel: grpc_testing.Channel, session: Session) -> None:
    refused = (grpc.StatusCode.UNAVAILABLE, "Connection refused")
    getting = FakeService(channel, GET, in_turn(STOPPING, refused, FOUND), calls=3)
    assert session.queries.GetOrderDetails(queries.GetOrderDetailsRequest()) == FOUND
    assert len(getting.requests) == 3


@pytest.mark.parametrize(
    "answer",
    [
        STOPPING,
        ServerUnavailable("away", reason="OUTCOME_UNKNOWN"),
        (grpc.StatusCode.UNAVAILABLE, "Connection refused"),
        (grpc.StatusCode.INTERNAL, "Received RST_STREAM with error code 1"),
    ],
    ids=["stopping", "unknown", "no connection", "broke"],
)
def test_a_command_is_repeated_with_its_request_id(
    channel: grpc_testing.Channel, session: Session, answer: Answer
) -> None:
    placing = FakeService(channel, PLACE, in_turn(answer, PLACED), calls=2)
    assert session.commands.PlaceOrder(commands.PlaceOrderRequest()) == PLACED
    first, second = (it.request_id for it in placing.requests)
    assert first == second != ""


def test_a_command_whose_caller_has_gone_is_not_repeated(channel: grpc_testing.Channel, session: Session) -> None:
    placing = FakeService(channel, PLACE, in_turn((grpc.StatusCode.CANCELLED, "Channel closed!")))
    with pytest.raises(CallFailed):
        session.commands.PlaceOrder(commands.PlaceOrderRequest())
    assert len(placing.requests) == 1


def test_a_query_is_repeated_so_often_and_no_more(channel: grpc_testing.Channel, session: Session) -> None:
    getting = FakeService(channel, GET, lambda _: STOPPING, calls=4)
    with pytest.raises(Unavailable):
        session.queries.GetOrderDetails(queries.GetOrderDetailsRequest())
    assert len(getting.requests) == 4


@pytest.mark.parametrize(
    ("refusal", "error"),
    [
        # It has waited already, for as long as it was to.
        (ServerUnavailable("3 behind", reason="PROJECTION_LAG"), ViewBehind),
        (PreconditionFailed([Violation("x", "y", "TOO_MANY_CURRENCIES")]), RuleBroken),
        # The server asks for a longer pause than the call has time.
        (ServerUnavailable("away", reason="STORE_UNAVAILABLE", retry_after=60), Unavailable),
    ],
    ids=["view behind", "rule broken", "no time"],
)
def test_a_query_is_not_repeated_where_that_does_not_help(
    channel: grpc_testing.Channel, session: Session, refusal: Answer, error: type[CallFailed]
) -> None:
    getting = FakeService(channel, GET, in_turn(refusal))
    with pytest.raises(error):
        session.queries.GetOrderDetails(queries.GetOrderDetailsRequest())
    assert len(getting.requests) == 1


async def test_a_future_is_typed_too_waited_for_as_grpcs_are_and_cancelled_for_good() -> None:
    """At a real server: a fake channel's futures are others than grpc's."""
    go, begun = threading.Event(), threading.Event()

    def place(request: commands.PlaceOrderRequest) -> commands.PlaceOrderResponse:
        if request.order_id == "refused":
            raise PreconditionFailed([Violation("x", "y", "OUT_OF_STOCK")])
        begun.set()
        go.wait(20)
        return PLACED

    def call(address: str) -> None:
        with Client(commands=address) as client:
            session = client.session()
            stub: Any = session.commands.PlaceOrder
            cancelled = stub.future(commands.PlaceOrderRequest())
            assert begun.wait(20)
            cancelled.cancel()
            with pytest.raises(grpc.FutureCancelledError):
                cancelled.result(timeout=20)
            assert cancelled.cancelled()
            placed = stub.future(commands.PlaceOrderRequest())
            with pytest.raises(grpc.FutureTimeoutError):
                placed.result(timeout=0.01)
            with pytest.raises(grpc.FutureTimeoutError):
                placed.exception(timeout=0.01)
            go.set()
            assert placed.result(timeout=20) == PLACED
            assert placed.code() == grpc.StatusCode.OK
            assert session.token == "1token"
            refused = stub.future(commands.PlaceOrderRequest(order_id="refused"))
            assert isinstance(refused.exception(timeout=20), RuleBroken)
            with pytest.raises(RuleBroken):
                refused.result()

    async with served(Scripted(COMMANDS, PlaceOrder=place)) as address:
        await asyncio.to_thread(call, address)


@pytest.mark.parametrize("others", ["", "~1good"])
def test_a_cookie_with_a_bad_token_costs_one_try(channel: grpc_testing.Channel, others: str) -> None:
    def answer(request: queries.GetOrderDetailsRequest) -> Answer:
        fields = ["at_least_as_fresh", *(f"tokens[{it}]" for it in range(len(request.consistency.tokens)))]
        tokens = [request.consistency.at_least_as_fresh, *request.consistency.tokens]
        if "spoilt" not in tokens:
            return FOUND
        field = f"consistency.{fields[tokens.index('spoilt')]}"
        return InvalidArgument([Violation(field, "must be a token", "MALFORMED")])

    getting = FakeService(channel, GET, answer, calls=2)
    session = Session(token="spoilt" + others, queries=channel)
    assert session.queries.GetOrderDetails(queries.GetOrderDetailsRequest()) == FOUND
    assert len(getting.requests) == 2
    assert session.token == others.removeprefix("~")


def test_a_bad_token_of_the_callers_own_is_its_error(channel: grpc_testing.Channel, session: Session) -> None:
    refusal = InvalidArgument([Violation("consistency.at_least_as_fresh", "must be a token", "MALFORMED")])
    FakeService(channel, GET, in_turn(refusal))
    request = queries.GetOrderDetailsRequest()
    request.consistency.at_least_as_fresh = "spoilt"
    with pytest.raises(InvalidRequest):
        session.queries.GetOrderDetails(request)


def test_a_stream_gives_its_messages_and_ends_with_a_typed_error(
    channel: grpc_testing.Channel, session: Session
) -> None:
    # The fake channel forgets what was not taken when the call ends.
    taken = threading.Event()
    with ThreadPoolExecutor(1) as pool:

        def serve() -> Any:
            _, request, call = channel.take_unary_stream(FEED.methods_by_name["Subscribe"])
            call.send_initial_metadata(())
            call.send_response(feed.SubscribeResponse(cursor="1a"))
            taken.wait()
            call.terminate(*ending(OutOfRange("gone", reason="CURSOR_EXPIRED")))
            return request

        serving = pool.submit(serve)
        stream = session.feed.Subscribe(feed.SubscribeRequest(from_beginning=True))
        assert next(stream).cursor == "1a"
        taken.set()
        with pytest.raises(CursorExpired):
            next(stream)
        assert serving.result().from_beginning


def test_a_service_without_an_address_is_named() -> None:
    session = Client(commands="127.0.0.1:1").session()
    assert session.commands
    with pytest.raises(NoAddress, match="QueryService"):
        _ = session.queries


class Recording:
    """A channel's method that keeps the options of its calls."""

    def __init__(self) -> None:
        self.options: list[dict[str, Any]] = []

    def with_call(self, request: Any, **options: Any) -> tuple[Any, None]:
        self.options.append(options)
        return FOUND, None

    def __call__(self, request: Any, **options: Any) -> None:
        self.options.append(options)


class RecordingChannel:
    def __init__(self) -> None:
        self.method = Recording()

    def unary_unary(self, *args: Any, **kwargs: Any) -> Recording:
        return self.method

    unary_stream = unary_unary


def test_every_call_has_a_deadline_and_a_query_time_for_its_wait() -> None:
    channel: Any = RecordingChannel()
    session = Session(queries=channel, defaults=CallDefaults(timeout=4, wait_for_ready=True))
    patient = queries.GetOrderDetailsRequest()
    patient.consistency.max_wait.FromSeconds(30)
    session.queries.GetOrderDetails(queries.GetOrderDetailsRequest())
    session.queries.GetOrderDetails(patient)
    session.queries.GetOrderDetails(patient, timeout=1, wait_for_ready=False)
    assert channel.method.options == [
        {"timeout": 4, "wait_for_ready": True},
        {"timeout": 34, "wait_for_ready": True},
        {"timeout": 1, "wait_for_ready": False},
    ]


def test_a_stream_has_no_deadline_and_waits_for_a_connection_as_calls_do() -> None:
    channel: Any = RecordingChannel()
    for defaults in (CallDefaults(timeout=4), CallDefaults(wait_for_ready=True)):
        session = Session(feed=channel, defaults=defaults)
        session.feed.Subscribe(feed.SubscribeRequest())
        session.feed.Subscribe(feed.SubscribeRequest(), timeout=1, wait_for_ready=False)
    given = {"timeout": 1, "wait_for_ready": False}
    assert channel.method.options == [{"timeout": None}, given, {"timeout": None, "wait_for_ready": True}, given]


def test_a_further_try_has_the_time_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    channel: Any = RecordingChannel()
    answer = channel.method.with_call

    class Refused(grpc.RpcError):
        def code(self) -> grpc.StatusCode:
            return grpc.StatusCode.UNAVAILABLE

        def details(self) -> str:
            return "away"

        def trailing_metadata(self) -> tuple[Any, ...]:
            return ()

    def first_refused(request: Any, **options: Any) -> Any:
        nonlocal now
        result = answer(request, **options)
        now += 3
        if len(channel.method.options) == 1:
            raise Refused
        return result

    channel.method.with_call = first_refused
    Session(queries=channel).queries.GetOrderDetails(queries.GetOrderDetailsRequest())
    first, second = (it["timeout"] for it in channel.method.options)
    assert first == 10
    assert 6.9 < second <= 7
