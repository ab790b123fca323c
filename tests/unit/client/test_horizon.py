import uuid
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from commerce.command.v1.command_service_pb2 import PlaceOrderRequest, PlaceOrderResponse
from commerce.query.v1.query_service_pb2 import (
    GetOrderDetailsRequest,
    GetOrderDetailsResponse,
    WatchOrderDetailsRequest,
    WatchOrderDetailsResponse,
)
from commerce.type.v1.consistency_pb2 import Consistency
from commerce.type.v1.receipt_pb2 import CommandReceipt
from tandem.client.command import command
from tandem.client.errors import Details, InvalidRequest, TokenOutdated, ViewBehind, Violation
from tandem.client.horizon import EVERYTHING, MOST_TOKENS, Horizon, Sent


def token(position: int) -> str:
    return f"1at{position}"


def receipt(position: int, *, replayed: bool = False) -> PlaceOrderResponse:
    return PlaceOrderResponse(
        receipt=CommandReceipt(consistency_token=token(position), position=position, replayed=replayed)
    )


def sent_command(horizon: Horizon) -> Sent:
    return horizon.prepare(PlaceOrderRequest())


def query(horizon: Horizon, consistency: Consistency | None = None) -> Sent:
    return horizon.prepare(GetOrderDetailsRequest(order_id="7", consistency=consistency))


def answer(as_of: str) -> GetOrderDetailsResponse:
    return GetOrderDetailsResponse(as_of=as_of)


def asked(horizon: Horizon, consistency: Consistency | None = None) -> Consistency:
    requested: Consistency = query(horizon, consistency).request.consistency
    return requested


def tokens_of(consistency: Consistency) -> set[str]:
    """All that a query asks for; each once."""
    found = [*filter(None, [consistency.at_least_as_fresh]), *consistency.tokens]
    assert len(set(found)) == len(found)
    return set(found)


def held(horizon: Horizon) -> set[str]:
    return tokens_of(asked(horizon))


def test_a_message_that_is_sent_twice_is_two_commands_unless_it_was_made_one() -> None:
    request = PlaceOrderRequest(customer_id="1")
    first, second = (Horizon().prepare(request).request.request_id for _ in range(2))
    assert uuid.UUID(first).version == uuid.UUID(second).version == 7
    assert first != second
    assert request == PlaceOrderRequest(customer_id="1")
    one = command(request)
    assert one.request_id
    assert Horizon().prepare(one).request == Horizon().prepare(command(one)).request == one
    own = PlaceOrderRequest(request_id="mine")
    assert Horizon().prepare(own).request.request_id == "mine"


def test_a_query_asks_for_nothing_before_the_first_command() -> None:
    request = GetOrderDetailsRequest(order_id="7")
    assert Horizon().prepare(request).request is request
    assert not request.HasField("consistency")


def test_a_query_asks_for_the_latest_receipt_and_the_callers_own_message_stays() -> None:
    horizon = Horizon()
    # Sent side by side: their answers come in any order.
    sent = [sent_command(horizon) for _ in range(3)]
    for it, position in zip(sent, (1, 300, 20), strict=True):
        horizon.answered(it, receipt(position))
    request = GetOrderDetailsRequest(order_id="7")
    # Where servers of the release before look for it.
    assert horizon.prepare(request).request.consistency == Consistency(at_least_as_fresh=token(300))
    assert not request.HasField("consistency")


def test_what_the_caller_asks_for_itself_is_never_weakened() -> None:
    horizon = Horizon(token(20))
    assert tokens_of(asked(horizon, Consistency(at_least_as_fresh=token(21)))) == {token(20), token(21)}
    assert tokens_of(asked(horizon, Consistency(at_least_as_fresh=token(20)))) == {token(20)}
    assert tokens_of(asked(horizon, Consistency(tokens=[token(1), token(2)]))) == {token(20), token(1), token(2)}
    assert asked(horizon, Consistency(fully_consistent=True)) == Consistency(fully_consistent=True)
    assert asked(horizon, Consistency(minimize_latency=True)) == Consistency(minimize_latency=True)
    patient = Consistency()
    patient.max_wait.FromSeconds(9)
    prepared = asked(horizon, patient)
    assert (prepared.at_least_as_fresh, prepared.max_wait.seconds) == (token(20), 9)


def test_tokens_of_several_writers_are_all_asked_for() -> None:
    horizon = Horizon(token(5))
    horizon.learn("1other")
    horizon.learn("2of a newer server")
    horizon.learn("1other")
    horizon.learn("")
    assert held(horizon) == {token(5), "1other", "2of a newer server"}


def test_a_receipt_stands_for_all_that_was_known_when_its_command_was_sent_and_for_nothing_else() -> None:
    horizon = Horizon(token(5))
    horizon.learn("1other")
    sent = sent_command(horizon)
    horizon.learn("1learned meanwhile")
    horizon.answered(sent, receipt(7))
    assert held(horizon) == {"1learned meanwhile", token(7)}


def test_a_receipt_of_an_earlier_call_stands_for_itself_alone() -> None:
    horizon = Horizon("1other")
    horizon.answered(sent_command(horizon), receipt(7, replayed=True))
    assert held(horizon) == {"1other", token(7)}
    horizon.answered(sent_command(horizon), receipt(9))
    assert held(horizon) == {token(9)}


def test_an_answer_stands_for_several_tokens_that_its_query_carried_and_for_no_other() -> None:
    horizon = Horizon(token(5))
    horizon.answered(query(horizon), answer("1later"))
    assert held(horizon) == {token(5)}, "one token is one token: the later state would have to be waited for"
    horizon.learn("1other")
    sent = query(horizon)
    horizon.learn("1learned meanwhile")
    horizon.answered(sent, answer("1later"))
    assert held(horizon) == {"1learned meanwhile", "1later"}


def test_an_answer_that_comes_late_brings_nothing_back() -> None:
    horizon = Horizon("1one")
    horizon.learn("1other")
    reading = query(horizon)
    horizon.answered(sent_command(horizon), receipt(7))
    horizon.answered(reading, answer("1older than 7"))
    assert held(horizon) == {token(7)}


def test_an_answer_from_the_past_stands_for_no_token_and_a_fully_consistent_one_for_all() -> None:
    horizon = Horizon("1one")
    horizon.learn("1other")
    horizon.answered(query(horizon, Consistency(minimize_latency=True)), answer("1past"))
    assert held(horizon) == {"1one", "1other"}
    horizon.answered(query(horizon, Consistency(fully_consistent=True)), answer("1now"))
    assert held(horizon) == {"1now"}


@pytest.mark.parametrize("monotonic", [False, True])
def test_a_watch_carries_all_tokens_and_its_first_message_stands_for_them(monotonic: bool) -> None:
    horizon = Horizon("1one", monotonic_reads=monotonic)
    horizon.learn("1other")
    sent = horizon.prepare(WatchOrderDetailsRequest(order_id="7"))
    assert tokens_of(sent.request.consistency) == {"1one", "1other"}
    for as_of in ("1first", "1second", "1second", "1third"):
        horizon.answered(sent, WatchOrderDetailsResponse(as_of=as_of))
    assert held(horizon) == {"1third" if monotonic else "1first"}


def test_answers_are_remembered_only_where_reads_are_to_be_monotonic() -> None:
    forgetful, monotonic = Horizon(), Horizon(monotonic_reads=True)
    for horizon in (forgetful, monotonic):
        horizon.answered(query(horizon), answer(token(5)))
    assert forgetful.token == ""
    assert monotonic.token == token(5)
    # Queries that run side by side do not know of each other; the next one asks for what all of them showed.
    sent = [query(monotonic) for _ in range(2)]
    for it, as_of in zip(sent, (token(7), token(6)), strict=True):
        monotonic.answered(it, answer(as_of))
    assert held(monotonic) == {token(7), token(6)}
    monotonic.answered(query(monotonic), answer(token(7)))
    assert held(monotonic) == {token(7)}


def test_the_token_carries_all_of_them_to_another_session_as_text() -> None:
    horizon = Horizon(token(5))
    assert horizon.token == token(5), "a single one as it always was"
    horizon.learn("1other")
    horizon.learn("1_third-")
    text = horizon.token
    assert set(text) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-~"), "safe in a URL and in a cookie"
    assert held(Horizon(text)) == {token(5), "1other", "1_third-"}
    learned = Horizon("1fourth")
    learned.learn(text)
    assert held(learned) == {token(5), "1other", "1_third-", "1fourth"}


def test_past_the_contracts_limit_a_query_asks_for_all_that_was_acknowledged() -> None:
    horizon = Horizon()
    for position in range(MOST_TOKENS):
        horizon.learn(token(position))
    assert len(held(horizon)) == MOST_TOKENS
    own = asked(horizon, Consistency(at_least_as_fresh="1own", tokens=["1more"]))
    assert own == Consistency(fully_consistent=True), "with the caller's they would be too many"
    horizon.learn("1too many")
    for it in (horizon, Horizon(horizon.token)):
        assert it.token == EVERYTHING
        it.learn("1another")
        assert asked(it) == Consistency(fully_consistent=True)
        it.answered(query(it), answer("1now"))
        assert held(it) == {"1now"}


def test_past_the_limit_a_command_stands_for_all_that_was_known_too() -> None:
    horizon = Horizon(EVERYTHING)
    horizon.answered(sent_command(horizon), receipt(7))
    assert held(horizon) == {token(7)}


def test_a_token_of_before_a_restore_is_dropped_and_one_that_came_since_is_kept() -> None:
    refused = TokenOutdated(grpc.StatusCode.FAILED_PRECONDITION)
    horizon = Horizon(token(3))
    horizon.learn("1other")
    sent = query(horizon)
    horizon.failed(sent, ViewBehind(grpc.StatusCode.UNAVAILABLE))
    assert held(horizon) == {token(3), "1other"}
    renewed = "1renewed"
    horizon.learn(renewed)
    horizon.failed(sent, refused)
    assert horizon.token == renewed
    horizon.failed(sent, refused)
    assert horizon.token == renewed


def test_of_several_tokens_the_one_that_the_server_names_is_dropped() -> None:
    horizon = Horizon(token(3))
    horizon.learn("1outdated")
    horizon.learn("1third")
    sent = query(horizon)
    number = list(sent.request.consistency.tokens).index("1outdated")
    violation = Violation(f"consistency.tokens[{number}]", "belongs to another feed", "TOKEN_EPOCH_MISMATCH")
    horizon.failed(sent, TokenOutdated(grpc.StatusCode.FAILED_PRECONDITION, details=Details(violations=(violation,))))
    assert held(horizon) == {token(3), "1third"}
    # The caller's own is the caller's to drop.
    sent = query(horizon, Consistency(at_least_as_fresh="1own"))
    violation = Violation("consistency.at_least_as_fresh", "belongs to another feed", "TOKEN_EPOCH_MISMATCH")
    horizon.failed(sent, TokenOutdated(grpc.StatusCode.FAILED_PRECONDITION, details=Details(violations=(violation,))))
    assert held(horizon) == {token(3), "1third"}


def test_threads_that_learn_at_once_lose_nothing() -> None:
    learning, writing = Horizon(), Horizon()

    def learn(position: int) -> None:
        learning.learn(token(position % MOST_TOKENS))
        writing.answered(Sent(PlaceOrderRequest()), receipt(position + 1))

    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(learn, range(2000)):
            pass
    assert held(learning) == {token(position) for position in range(MOST_TOKENS)}
    assert writing.token == token(2000)


def test_what_is_no_token_is_forgotten_by_whoever_finds_it_out() -> None:
    horizon = Horizon("\udcff~two words\n~" + 2000 * "x" + "~1good~not one")
    assert held(horizon) == {"1good", "not one"}, "what no server could take"
    sent = query(horizon, Consistency(tokens=["1own"]))
    fields = ["consistency.at_least_as_fresh", *(f"consistency.tokens[{it}]" for it in range(2))]
    asked_for = [sent.request.consistency.at_least_as_fresh, *sent.request.consistency.tokens]

    def refused(token: str) -> InvalidRequest:
        violation = Violation(fields[asked_for.index(token)], "must be a token", "MALFORMED")
        return InvalidRequest(grpc.StatusCode.INVALID_ARGUMENT, details=Details(violations=(violation,)))

    assert horizon.failed(sent, refused("not one"))
    assert held(horizon) == {"1good"}
    assert not horizon.failed(sent, refused("1own")), "it is the caller's"
    assert held(horizon) == {"1good"}
