"""Calls that are answered at once: by the native transport's receiving thread; grpcio's go to the method."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace

import grpc
import pytest
from google.protobuf.message import Message
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from commerce.projection.v1.projection_service_pb2 import ListProjectionsResponse
from tandem.runtime.calls import AnswerAtOnce, Call
from tandem.runtime.settings import ServerSettings
from tests.contract.transport.conftest import (
    PATIENCE,
    Behaviour,
    Served,
    Transport,
    answer,
    application,
    in_thread,
    start,
)

AT_ONCE = ListProjectionsResponse(feed_head=1)
BY_THE_METHOD = 7

ServeShort = Callable[..., Awaitable[Served]]


def shortcut(requests: Sequence[bytes]) -> Sequence[bytes | None]:
    """Answers requests that are empty."""
    return [None if request else AT_ONCE.SerializeToString() for request in requests]


# A field that the contract does not know: a request that is right, and not empty.
NOT_EMPTY = b"\xf8\x07\x01"


def numbered(number: int) -> bytes:
    """A request with such a field, and a number in it."""
    return b"\xfd\x07" + number.to_bytes(4, "little")


def number_of(request: bytes) -> int:
    return int.from_bytes(request[-4:], "little")


class HeldUp:
    """A shortcut that waits for a store, until it is released; then it leaves the calls to the method."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.release = threading.Event()

    def __call__(self, requests: Sequence[bytes]) -> Sequence[bytes | None]:
        self.entered.set()
        assert self.release.wait(PATIENCE)
        return [None] * len(requests)


@pytest.fixture
def held_up() -> "HeldUp":
    return HeldUp()


@pytest.fixture
async def serve(transport: Transport) -> AsyncIterator[ServeShort]:
    """As the other tests' `serve`, with a shortcut."""
    async with AsyncExitStack() as exits:

        async def serve_it(
            behaviour: Behaviour = answer, *, at_once: AnswerAtOnce = shortcut, drain_seconds: float = 0
        ) -> Served:
            base = application(behaviour, ServerSettings(port=0, transport=transport, drain_seconds=drain_seconds))
            [service] = base.services
            short = replace(service, shortcuts={"ListProjections": at_once})
            return await start(exits, replace(base, services=(short,)))

        yield serve_it


# What only the native transport has.
native = pytest.mark.parametrize("transport", ["native"])


def counted(code: str = "OK") -> float:
    labels = {"method": "ListProjections", "code": code}
    return REGISTRY.get_sample_value("tandem_calls_total", labels) or 0


async def test_what_the_shortcut_answers_does_not_reach_the_method(serve: ServeShort, transport: Transport) -> None:
    served = await serve()
    answers = [(await served.call()).feed_head for _ in range(3)]
    assert answers == [1 if transport == "native" else BY_THE_METHOD] * 3


async def test_what_the_shortcut_leaves_goes_to_the_method(serve: ServeShort) -> None:
    served = await serve()
    answers = await asyncio.gather(*(served.call(NOT_EMPTY) for _ in range(100)))
    assert {it.feed_head for it in answers} == {BY_THE_METHOD}


async def test_each_call_of_a_mixed_burst_gets_its_own_answer(serve: ServeShort, transport: Transport) -> None:
    at_once: list[int] = []

    def every_third(requests: Sequence[bytes]) -> list[bytes | None]:
        numbers = [number_of(it) for it in requests]
        at_once.extend(it for it in numbers if it % 3 == 0)
        return [None if it % 3 else ListProjectionsResponse(feed_head=it).SerializeToString() for it in numbers]

    async def by_the_method(request: Message, _: Call) -> Message:
        return ListProjectionsResponse(feed_head=number_of(request.SerializeToString()))

    served = await serve(by_the_method, at_once=every_third)
    answers = await asyncio.gather(*(served.call(numbered(number)) for number in range(500)))
    assert [it.feed_head for it in answers] == list(range(500))
    # Not all of them, on a busy machine: what comes while the shortcut is held up goes to the method.
    assert bool(at_once) == (transport == "native")


async def test_calls_are_counted_whoever_answers_them(serve: ServeShort) -> None:
    served = await serve()
    before = counted()
    timed = REGISTRY.get_sample_value("tandem_call_seconds_count", {"method": "ListProjections"}) or 0
    await asyncio.gather(*(served.call(payload) for payload in (b"", NOT_EMPTY) * 20))
    assert counted() == before + 40
    assert REGISTRY.get_sample_value("tandem_call_seconds_count", {"method": "ListProjections"}) == timed + 40


@native
async def test_a_shortcut_with_a_bug_is_logged_and_the_method_answers(serve: ServeShort) -> None:
    def broken(requests: Sequence[bytes]) -> Sequence[bytes | None]:
        raise RuntimeError("a bug")

    served = await serve(at_once=broken)
    with capture_logs() as logs:
        assert (await served.call()).feed_head == BY_THE_METHOD
    assert [it["event"] for it in logs if it["log_level"] == "error"] == ["a shortcut failed"]


@native
async def test_a_shortcut_that_is_held_up_holds_nothing_else_up(serve: ServeShort, held_up: HeldUp) -> None:
    served = await serve(at_once=held_up)
    first = served.call()
    await in_thread(held_up.entered)
    # Health, and calls that came later.
    assert await served.health_of() == 1
    assert (await served.call()).feed_head == BY_THE_METHOD
    assert not first.done()
    held_up.release.set()
    assert (await first).feed_head == BY_THE_METHOD


@native
async def test_a_caller_that_leaves_a_shortcut_is_not_answered_by_the_method(
    serve: ServeShort, held_up: HeldUp
) -> None:
    entered = []

    async def behaviour(request: Message, call: Call) -> Message:
        entered.append(request)
        return await answer(request, call)

    served = await serve(behaviour, at_once=held_up)
    left = served.call()
    await in_thread(held_up.entered)
    left.cancel()
    # On the same connection: when this is answered, the server knows that the caller has left.
    await served.health_of()
    held_up.release.set()
    assert (await served.call()).feed_head == BY_THE_METHOD
    assert len(entered) == 1


@native
async def test_a_stop_waits_for_the_shortcut_that_is_under_way(serve: ServeShort) -> None:
    entered, release = threading.Event(), threading.Event()

    def slow(requests: Sequence[bytes]) -> Sequence[bytes | None]:
        entered.set()
        assert release.wait(PATIENCE)
        return [AT_ONCE.SerializeToString() for _ in requests]

    served = await serve(at_once=slow, drain_seconds=PATIENCE)
    call = served.call()
    await in_thread(entered)
    stopping = asyncio.create_task(served.running.stop())
    # Refused from when the stop has begun, by the method: the shortcut is still at the first call.
    while await served.outcome() != grpc.StatusCode.UNAVAILABLE:
        pass
    release.set()
    assert (await call).feed_head == AT_ONCE.feed_head
    await stopping
