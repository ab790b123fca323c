import uuid
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from commerce.command.v1.command_service_pb2 import PlaceOrderRequest, PlaceOrderResponse
from commerce.query.v1.query_service_pb2 import GetOrderDetailsRequest, GetOrderDetailsResponse
from commerce.type.v1.consistency_pb2 import Consistency
from commerce.type.v1.receipt_pb2 import CommandReceipt
from tandem.client.errors import TokenOutdated, ViewBehind
from tandem.client.horizon import Horizon, newest
from tandem.feed.token import encode_token

EPOCH = uuid.UUID(int=1)


def token(position: int, epoch: uuid.UUID = EPOCH) -> str:
    return encode_token(epoch, position)


def receipt(position: int) -> PlaceOrderResponse:
    return PlaceOrderResponse(receipt=CommandReceipt(consistency_token=token(position), position=position))


def asked(horizon: Horizon, consistency: Consistency | None = None) -> Consistency:
    return horizon.prepare(GetOrderDetailsRequest(order_id="7", consistency=consistency)).consistency


def test_a_command_without_a_request_id_is_given_one_and_keeps_it() -> None:
    request = PlaceOrderRequest(customer_id="1")
    assert Horizon().prepare(request) is request
    given = request.request_id
    assert uuid.UUID(given).version == 4
    Horizon().prepare(request)
    assert request.request_id == given
    own = PlaceOrderRequest(request_id="mine")
    assert Horizon().prepare(own).request_id == "mine"


def test_a_query_asks_for_nothing_before_the_first_command() -> None:
    request = GetOrderDetailsRequest(order_id="7")
    assert Horizon().prepare(request) is request
    assert not request.HasField("consistency")


def test_a_query_asks_for_the_latest_receipt_and_the_callers_own_message_stays() -> None:
    horizon = Horizon()
    for position in (1, 300, 20):
        horizon.answered(receipt(position))
    request = GetOrderDetailsRequest(order_id="7")
    assert horizon.prepare(request).consistency.at_least_as_fresh == token(300)
    assert not request.HasField("consistency")


def test_what_the_caller_asks_for_itself_is_never_weakened() -> None:
    horizon = Horizon(token(20))
    assert asked(horizon, Consistency(at_least_as_fresh=token(21))).at_least_as_fresh == token(21)
    assert asked(horizon, Consistency(at_least_as_fresh=token(19))).at_least_as_fresh == token(20)
    assert asked(horizon, Consistency(fully_consistent=True)) == Consistency(fully_consistent=True)
    assert asked(horizon, Consistency(minimize_latency=True)) == Consistency(minimize_latency=True)
    patient = Consistency()
    patient.max_wait.FromSeconds(9)
    prepared = asked(horizon, patient)
    assert (prepared.at_least_as_fresh, prepared.max_wait.seconds) == (token(20), 9)


def test_answers_are_remembered_only_where_reads_are_to_be_monotonic() -> None:
    answer = GetOrderDetailsResponse(as_of=token(5))
    forgetful, monotonic = Horizon(), Horizon(monotonic_reads=True)
    for horizon in (forgetful, monotonic):
        horizon.answered(answer)
    assert forgetful.token == ""
    assert monotonic.token == token(5)
    monotonic.answered(GetOrderDetailsResponse(as_of=token(4)))
    assert monotonic.token == token(5)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("", "", ""),
        ("", token(1), token(1)),
        (token(1), "", token(1)),
        (token(9), token(10), token(10)),
        (token(10), token(9), token(10)),
        # A restore lies between them: the later one is of the feed that there is now.
        (token(10), token(9, uuid.UUID(int=2)), token(9, uuid.UUID(int=2))),
        # A newer server's form: what came last was learned last.
        (token(10), "2newer", "2newer"),
        ("2newer", token(10), token(10)),
    ],
)
def test_of_two_tokens_the_one_that_includes_the_other_is_kept(first: str, second: str, expected: str) -> None:
    assert newest(first, second) == expected


def test_a_token_of_before_a_restore_is_dropped_and_one_that_came_since_is_kept() -> None:
    refused = TokenOutdated(grpc.StatusCode.FAILED_PRECONDITION)
    horizon = Horizon(token(3))
    sent = horizon.prepare(GetOrderDetailsRequest())
    horizon.failed(sent, ViewBehind(grpc.StatusCode.UNAVAILABLE))
    assert horizon.token == token(3)
    horizon.failed(sent, refused)
    assert horizon.token == ""
    renewed = token(4, uuid.UUID(int=2))
    horizon.learn(renewed)
    horizon.failed(sent, refused)
    assert horizon.token == renewed


def test_threads_that_learn_at_once_lose_nothing() -> None:
    horizon = Horizon()
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(lambda position: horizon.learn(token(position)), range(2000)):
            pass
    assert horizon.token == token(1999)
