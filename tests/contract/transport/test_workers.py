"""Calls that threads answer: those that wait together are answered together, and go from stage to stage."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from commerce.projection.v1.projection_service_pb2 import ListProjectionsResponse
from tandem.runtime.call import Call
from tandem.runtime.errors import Conflict
from tandem.runtime.worker import one_by_one
from tandem.testing.stack import until
from tests.contract.transport.conftest import (
    ANSWER,
    PATIENCE,
    Held,
    Parked,
    Serve,
    Served,
    answer,
    counted,
    in_thread,
    timed,
    worker,
)


@pytest.fixture(params=["queued"])
def inline() -> bool:
    return False


async def came_in(served: Served) -> None:
    """On the same connection: when this is answered, what was sent before has come in."""
    await served.health_of()


async def until_they_wait(of: Any, calls: int) -> None:
    async def they_wait() -> bool:
        return bool(of.waiting == calls)

    await until(they_wait, f"{calls} calls wait in the queue")


async def test_calls_that_wait_together_are_answered_together(serve: Serve, held: Held) -> None:
    queued = worker(held, max_batch=5)
    served = await serve(queued)
    first = served.call()
    await in_thread(held.entered)
    others = [served.call() for _ in range(12)]
    await until_they_wait(queued, 12)
    held.release.set()
    assert {(await it).feed_head for it in (first, *others)} == {7}
    assert held.sizes == [1, 5, 5, 2]


async def test_one_that_waits_holds_no_other_thread_up(serve: Serve, held: Held) -> None:
    served = await serve(worker(held, answer, max_batch=1))
    calls: list[Any] = []
    while not held.entered.is_set():
        calls.append(served.call())
        await came_in(served)
    assert [(await served.call()).feed_head for _ in range(3)] == [7, 7, 7]
    held.release.set()
    assert {(await it).feed_head for it in calls} == {7}


async def test_what_a_handler_sends_on_is_answered_by_the_next_worker(serve: Serve) -> None:
    @one_by_one
    def second(call: Call) -> ListProjectionsResponse:
        return ListProjectionsResponse(feed_head=call.asked)

    store = worker(second)

    def first(calls: Sequence[Call]) -> None:
        for call in calls:
            call.asked = len(call.reference())
            if call.asked % 2:
                call.reply(ListProjectionsResponse(feed_head=call.asked))
            else:
                call.next = store

    before = counted("OK"), timed()
    served = await serve(first, components=(store,))
    calls = [served.call(metadata=(("x-request-id", "x" * number),)) for number in range(1, 101)]
    assert [(await it).feed_head for it in calls] == list(range(1, 101))

    async def all_are_counted() -> bool:
        return (counted("OK"), timed()) == (before[0] + 100, before[1] + 100)

    await until(all_are_counted, "each call is counted and timed once")


async def test_an_error_is_the_answer_to_those_that_have_none_yet(serve: Serve, held: Held) -> None:
    def answer_one(calls: Sequence[Call]) -> None:
        if not held.entered.is_set():
            held(calls)
            return
        calls[0].reply(ANSWER)
        raise Conflict("the others are too late", reason="VERSION_MISMATCH")

    queued = worker(answer_one)
    served = await serve(queued)
    first = served.call()
    await in_thread(held.entered)
    others = [asyncio.ensure_future(served.outcome()) for _ in range(3)]
    await until_they_wait(queued, 3)
    held.release.set()
    await first
    ok, aborted = grpc.StatusCode.OK, grpc.StatusCode.ABORTED
    assert sorted([await it for it in others], key=str) == [aborted, aborted, ok]


async def test_a_call_that_is_neither_answered_nor_sent_on_is_a_bug(serve: Serve) -> None:
    served = await serve(lambda calls: None)
    with capture_logs() as logs:
        assert (await served.refusal()).code() == grpc.StatusCode.INTERNAL
    assert [it["event"] for it in logs if it["log_level"] == "error"] == ["call failed"]


async def test_a_second_answer_is_not_sent_and_a_bug(serve: Serve) -> None:
    def twice(calls: Sequence[Call]) -> None:
        for call in calls:
            call.reply(ANSWER)
            call.reply(ListProjectionsResponse(feed_head=8))
            call.fail(Conflict("no", reason="VERSION_MISMATCH"))

    before = counted("OK"), counted("ABORTED")
    served = await serve(twice)
    with capture_logs() as logs:
        assert [(await served.call()).feed_head for _ in range(3)] == [7, 7, 7]

        async def counted_once() -> bool:
            return (counted("OK"), counted("ABORTED")) == (before[0] + 3, before[1])

        await until(counted_once, "each call is counted once")
    assert [it["event"] for it in logs if it["log_level"] == "error"] == ["call answered twice"] * 6


async def test_past_the_limit_of_those_that_wait_a_call_is_refused(serve: Serve, held: Held) -> None:
    queued = worker(held, max_waiting=2)
    served = await serve(queued)
    first = served.call()
    await in_thread(held.entered)
    waiting = [served.call() for _ in range(2)]
    await until_they_wait(queued, 2)
    assert (await served.refusal()).code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    held.release.set()
    assert {(await it).feed_head for it in (first, *waiting)} == {7}


async def test_the_deadline_is_the_callers(serve: Serve, parked: Parked) -> None:
    served = await serve(parked)
    call = served.call(timeout=PATIENCE)
    here = await parked.next()
    # On its way a timeout is rounded up, to three digits.
    longest = 1.01 * PATIENCE
    assert PATIENCE / 2 < here.seconds_left() <= longest
    assert here.deadline <= time.monotonic() + longest
    parked.reply(here)
    await call


async def test_a_call_whose_deadline_passed_in_the_queue_is_not_begun(serve: Serve, held: Held) -> None:
    before = counted("DEADLINE_EXCEEDED")
    queued = worker(held, max_batch=1)
    served = await serve(queued)
    first = served.call()
    await in_thread(held.entered)
    # In which the call comes, on a busy machine too.
    refusal = asyncio.ensure_future(served.refusal(timeout=1))
    await until_they_wait(queued, 1)
    assert (await refusal).code() == grpc.StatusCode.DEADLINE_EXCEEDED

    async def has_passed() -> bool:
        return queued._waiting[0].deadline < time.monotonic()

    await until(has_passed, "its deadline has passed here too, where it is rounded up")
    held.release.set()
    await first
    assert (await served.call()).feed_head == 7
    assert held.sizes == [1, 1]
    assert counted("DEADLINE_EXCEEDED") == before + 1


async def test_a_caller_that_leaves_while_it_waits_is_not_answered(serve: Serve, held: Held) -> None:
    before = counted("CANCELLED")
    queued = worker(held, max_batch=1)
    served = await serve(queued)
    first = served.call()
    await in_thread(held.entered)
    left = served.call()
    await until_they_wait(queued, 1)
    left.cancel()

    async def is_told() -> bool:
        return queued._waiting[0].gone

    await until(is_told, "the server knows that the caller has left")
    last = served.call()
    await until_they_wait(queued, 2)
    held.release.set()
    assert (await first).feed_head == (await last).feed_head == 7
    assert held.sizes == [1, 1]
    assert counted("CANCELLED") == before + 1


async def test_a_caller_that_has_left_is_told_of_and_a_late_answer_harms_nobody(serve: Serve, held: Held) -> None:
    before = counted("CANCELLED")
    served = await serve(worker(held, answer, max_batch=1))
    left = served.call()
    await in_thread(held.entered)
    [[here]] = held.batches
    assert not here.gone
    left.cancel()

    async def is_told() -> bool:
        return here.gone

    await until(is_told, "the handler can see that the caller has left")
    held.release.set()
    assert (await served.call()).feed_head == 7

    async def counted_as_such() -> bool:
        return counted("CANCELLED") == before + 1

    await until(counted_as_such, "the call counts as cancelled")


async def test_a_stop_answers_what_waits(serve: Serve, held: Held) -> None:
    queued = worker(held, max_batch=1)
    served = await serve(queued, drain_seconds=PATIENCE)
    first = served.call()
    await in_thread(held.entered)
    second = served.call()
    await until_they_wait(queued, 1)
    stopping = asyncio.create_task(served.running.stop())
    await asyncio.sleep(0)
    held.release.set()
    assert (await first).feed_head == (await second).feed_head == 7
    await stopping


async def test_an_answer_after_the_stop_harms_nobody(serve: Serve, held: Held) -> None:
    """Components stop after the server, and a worker still answers what waits."""
    served = await serve(worker(held))
    call = served.call()
    await in_thread(held.entered)
    [[here]] = held.batches
    stopping = asyncio.create_task(served.running.stop())
    with pytest.raises(grpc.aio.AioRpcError):
        await call

    async def is_told() -> bool:
        return here.gone

    await until(is_told, "the transport has given the call up")
    with capture_logs() as logs:
        held.release.set()
        await stopping
    assert [it["event"] for it in logs if it["log_level"] != "info"] == []
