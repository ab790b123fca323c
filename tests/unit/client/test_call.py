"""What is sent with a call, whether it is tried again, and after what pause."""

import random
import sys
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from opentelemetry import trace

from commerce.query.v1.query_service_pb2 import GetProductRequest
from tandem.client.call import Outgoing, Rpc, Tries
from tandem.client.channel import CallDefaults
from tandem.client.errors import CallFailed, Details, EventUnreadable, Overloaded, Unavailable, ViewBehind
from tandem.client.horizon import Horizon

UNAVAILABLE, INTERNAL, CANCELLED = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.CANCELLED
STOPPING = Unavailable(UNAVAILABLE, details=Details(reason="STOPPING", retry_after=7))
AWAY = Unavailable(UNAVAILABLE, details=Details(reason="STORE_UNAVAILABLE"))
BROKE = CallFailed(INTERNAL, "Received RST_STREAM")


@pytest.fixture(autouse=True)
def longest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what is drawn at random."""
    monkeypatch.setattr(random, "uniform", lambda _, longest: longest)


def pauses(error: CallFailed, *, waits_for_ready: bool = False) -> list[float | None]:
    """Of the first five further tries."""
    tries = Tries(waits_for_ready=waits_for_ready)
    return [tries.pause(error) for _ in range(5)]


@pytest.mark.parametrize("error", [STOPPING, AWAY, BROKE], ids=["stopping", "away", "broke"])
def test_a_call_is_tried_four_times_in_all(error: CallFailed) -> None:
    assert pauses(error) == [0.05, 0.15, 0.45, None, None]


@pytest.mark.parametrize(
    "error",
    [
        ViewBehind(UNAVAILABLE, details=Details(reason="PROJECTION_LAG")),
        EventUnreadable(UNAVAILABLE),
        Overloaded(grpc.StatusCode.RESOURCE_EXHAUSTED),
        CallFailed(CANCELLED),
    ],
    ids=lambda error: type(error).__name__,
)
def test_nothing_is_tried_again_where_that_does_not_help(error: CallFailed) -> None:
    assert pauses(error, waits_for_ready=True) == [None] * 5


def test_a_pause_is_as_long_as_the_server_asks_for() -> None:
    assert pauses(Unavailable(UNAVAILABLE, details=Details(retry_after=0.2)))[:3] == [0.2, 0.2, 0.45]


def test_who_waits_for_a_connection_waits_until_the_one_to_a_server_that_stops_has_ended() -> None:
    tries = Tries(waits_for_ready=True)
    assert [tries.pause(STOPPING) for _ in range(20)] == [0.45] * 20
    # These tries are not counted.
    assert tries.pause(BROKE) == 0.05


SAMPLED = trace.TraceFlags(1)
SPAN = trace.SpanContext(0x4BF92F3577B34DA6A3CE929D0E0E4736, 0xF067AA0BA902B7, is_remote=False, trace_flags=SAMPLED)
SAID = ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")


@pytest.fixture
def in_a_span() -> Iterator[None]:
    with trace.use_span(trace.NonRecordingSpan(SPAN)):
        yield


def metadata_of(options: dict[str, Any], **defaults: Any) -> Any:
    rpc = Rpc("/a.Service/GetProduct", Horizon(), CallDefaults(**defaults))
    return Outgoing(rpc, GetProductRequest(), options).options.get("metadata")


@pytest.mark.usefixtures("in_a_span")
def test_a_call_is_a_part_of_its_callers_span_beside_all_that_the_caller_says() -> None:
    actor = ("tandem-actor", "user-42")
    assert metadata_of({}) == (SAID,)
    assert metadata_of({"metadata": [actor]}, token=lambda: "x") == (actor, SAID, ("authorization", "Bearer x"))
    own = ("traceparent", "00-5bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
    assert metadata_of({"metadata": [own]}) == (own,), "what the caller says goes before"


def test_a_call_of_nobodys_span_says_nothing() -> None:
    assert metadata_of({}) is None


@pytest.mark.usefixtures("in_a_span")
def test_a_caller_without_the_library_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "opentelemetry.trace")
    assert metadata_of({}) is None
