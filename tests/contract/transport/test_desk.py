"""Calls that a desk answers: those that wait together are answered together, by threads that may wait."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from structlog.testing import capture_logs

from commerce.projection.v1.projection_service_pb2 import ListProjectionsResponse
from tandem.runtime.desk import AnswerTogether, Desk
from tests.contract.transport.conftest import PATIENCE, Served, answer, application, in_thread, native_settings, start

AT_THE_DESK = ListProjectionsResponse(feed_head=4).SerializeToString()
BY_THE_METHOD = 7

ServeAtDesk = Callable[..., Awaitable[Served]]


class Together:
    """Answers nothing before it is released, and then all that it was given; says how many that were each time."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.release = threading.Event()
        self.sizes: list[int] = []

    def __call__(self, requests: Sequence[Message]) -> Iterator[bytes | None]:
        self.sizes.append(len(requests))
        self.entered.set()
        assert self.release.wait(PATIENCE)
        yield from [AT_THE_DESK] * len(requests)


@pytest.fixture
async def serve() -> AsyncIterator[ServeAtDesk]:
    async with AsyncExitStack() as exits:

        async def serve_it(
            *answers: AnswerTogether, max_batch: int = 64, max_waiting: int = 64, **settings: Any
        ) -> Served:
            desk = Desk("test", answers, max_batch=max_batch, max_waiting=max_waiting)
            base = application(answer, native_settings(**settings), components=(desk,))
            [service] = base.services
            later = {"ListProjections": desk.take}
            return await start(exits, replace(base, services=(replace(service, later=later),)))

        yield serve_it


@pytest.fixture
async def together() -> AsyncIterator[Together]:
    made = Together()
    yield made
    made.release.set()


async def test_calls_that_wait_together_are_answered_together(serve: ServeAtDesk, together: Together) -> None:
    served = await serve(together, max_batch=5)
    first = served.call()
    await in_thread(together.entered)
    others = [served.call() for _ in range(12)]
    # On the same connection: when this is answered, the others have come in.
    await served.health_of()
    together.release.set()
    assert {(await it).feed_head for it in (first, *others)} == {4}
    assert together.sizes == [1, 5, 5, 2]


async def test_what_the_desk_leaves_goes_to_the_method(serve: ServeAtDesk) -> None:
    served = await serve(lambda requests: [None] * len(requests))
    assert [(await served.call()).feed_head for _ in range(3)] == [BY_THE_METHOD] * 3


async def test_a_bug_is_logged_and_the_method_answers_what_was_not_answered(serve: ServeAtDesk) -> None:
    def broken(requests: Sequence[Message]) -> Iterator[bytes | None]:
        raise RuntimeError("a bug")

    served = await serve(broken)
    with capture_logs() as logs:
        assert (await served.call()).feed_head == BY_THE_METHOD
    assert [it["event"] for it in logs if it["log_level"] == "error"] == ["answering together failed"]


async def test_one_that_waits_holds_no_other_thread_up(serve: ServeAtDesk, together: Together) -> None:
    served = await serve(together, lambda requests: [AT_THE_DESK] * len(requests), max_batch=1)
    held: list[Any] = []
    while not together.entered.is_set():
        held.append(served.call())
        await served.health_of()
    assert [(await served.call()).feed_head for _ in range(3)] == [4, 4, 4]
    together.release.set()
    assert {(await it).feed_head for it in held} == {4}


async def test_a_caller_that_leaves_while_it_waits_is_not_answered(serve: ServeAtDesk, together: Together) -> None:
    served = await serve(together, max_batch=1)
    first = served.call()
    await in_thread(together.entered)
    left = served.call()
    await served.health_of()
    left.cancel()
    await served.health_of()
    last = served.call()
    together.release.set()
    assert (await first).feed_head == (await last).feed_head == 4
    assert together.sizes == [1, 1]


async def test_a_stop_answers_what_waits(serve: ServeAtDesk, together: Together) -> None:
    served = await serve(together, drain_seconds=PATIENCE, max_batch=1)
    first = served.call()
    await in_thread(together.entered)
    second = served.call()
    await served.health_of()
    stopping = asyncio.create_task(served.running.stop())
    await asyncio.sleep(0)
    together.release.set()
    assert (await first).feed_head == (await second).feed_head == 4
    await stopping


async def test_past_the_limit_of_those_that_wait_a_call_is_refused(serve: ServeAtDesk, together: Together) -> None:
    served = await serve(together, max_waiting=2)
    first = served.call()
    await in_thread(together.entered)
    waiting = [served.call() for _ in range(2)]
    await served.health_of()
    assert (await served.refusal()).code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    together.release.set()
    assert {(await it).feed_head for it in (first, *waiting)} == {4}
