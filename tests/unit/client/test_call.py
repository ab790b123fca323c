"""Whether a call is tried again, and after what pause."""

import random

import grpc
import pytest

from tandem.client.call import Tries
from tandem.client.errors import CallFailed, Details, EventUnreadable, Overloaded, Unavailable, ViewBehind

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
