"""Calls that are answered on the thread that receives them: the native transport's. grpcio queues them."""

import asyncio
from collections.abc import Sequence

import grpc
import pytest
from structlog.testing import capture_logs

from commerce.projection.v1.projection_service_pb2 import ListProjectionsResponse
from tandem.runtime.call import Call
from tandem.runtime.worker import Handler, Worker, one_by_one
from tandem.testing.stack import until
from tests.contract.transport.conftest import (
    PATIENCE,
    Held,
    Serve,
    Transport,
    counted,
    in_thread,
    timed,
    worker,
)

INLINE, QUEUED = 1, 2


@pytest.fixture(params=["inline"])
def inline() -> bool:
    return True


# What only the native transport has.
native = pytest.mark.parametrize("transport", ["native"])


@one_by_one
def by_a_thread(call: Call) -> ListProjectionsResponse:
    return ListProjectionsResponse(feed_head=QUEUED)


@one_by_one
def at_once(call: Call) -> ListProjectionsResponse:
    return ListProjectionsResponse(feed_head=INLINE)


def with_inline(handler: Handler) -> Worker:
    return worker(by_a_thread, inline=handler)


async def test_an_inline_handler_answers_where_the_transport_has_a_receiving_thread(
    serve: Serve, transport: Transport
) -> None:
    before = counted("OK"), timed()
    served = await serve(with_inline(at_once))
    answers = [(await served.call()).feed_head for _ in range(3)]
    assert answers == [INLINE if transport == "native" else QUEUED] * 3

    async def all_are_counted() -> bool:
        return (counted("OK"), timed()) == (before[0] + 3, before[1] + 3)

    await until(all_are_counted, "each call is counted and timed")


async def test_each_call_of_a_mixed_burst_gets_its_own_answer(serve: Serve, transport: Transport) -> None:
    inline: list[int] = []

    @one_by_one
    def echo(call: Call) -> ListProjectionsResponse:
        return ListProjectionsResponse(feed_head=len(call.reference()))

    store = worker(echo)

    def every_third(calls: Sequence[Call]) -> None:
        for call in calls:
            number = len(call.reference())
            if number % 3:
                call.next = store
            else:
                inline.append(number)
                call.reply(ListProjectionsResponse(feed_head=number))

    served = await serve(worker(echo, inline=every_third), components=(store,))
    calls = [served.call(metadata=(("x-request-id", "x" * (1 + number % 128)),)) for number in range(500)]
    assert [it.feed_head for it in await asyncio.gather(*calls)] == [1 + number % 128 for number in range(500)]
    # Not all of them, on a busy machine: what comes while the handler is held up is queued.
    assert bool(inline) == (transport == "native")


@native
async def test_a_bug_is_logged_and_the_next_calls_are_answered(serve: Serve) -> None:
    bugs = [RuntimeError("a bug")]

    def broken(calls: Sequence[Call]) -> None:
        if bugs:
            raise bugs.pop()
        at_once(calls)

    served = await serve(with_inline(broken))
    with capture_logs() as logs:
        assert (await served.refusal()).code() == grpc.StatusCode.INTERNAL
    assert [it["event"] for it in logs if it["log_level"] == "error"] == ["call failed"]
    assert (await served.call()).feed_head == INLINE


@native
async def test_a_handler_that_is_held_up_holds_nothing_else_up(serve: Serve, held: Held) -> None:
    served = await serve(with_inline(held))
    first = served.call()
    await in_thread(held.entered)
    # Health, and calls that came later.
    assert await served.health_of() == 1
    assert [(await served.call()).feed_head for _ in range(20)] == [QUEUED] * 20
    assert not first.done()
    held.release.set()
    await first
    # And the receiving thread is back.
    while len(held.batches) == 1:
        await served.call()


@native
async def test_a_caller_that_leaves_one_that_is_held_up_is_counted_as_gone(serve: Serve, held: Held) -> None:
    before = counted("CANCELLED")
    served = await serve(with_inline(held))
    left = served.call()
    await in_thread(held.entered)
    left.cancel()
    [[here]] = held.batches

    async def is_told() -> bool:
        return here.gone

    await until(is_told, "the server knows that the caller has left")
    held.release.set()

    async def counted_as_such() -> bool:
        return counted("CANCELLED") == before + 1

    await until(counted_as_such, "the call counts as cancelled")
    assert (await served.call()).feed_head in (7, QUEUED)


@native
async def test_a_stop_waits_for_the_one_that_is_under_way(serve: Serve, held: Held) -> None:
    served = await serve(with_inline(held), drain_seconds=PATIENCE)
    call = served.call()
    await in_thread(held.entered)
    stopping = asyncio.create_task(served.running.stop())
    # Refused from when the stop has begun, by the thread that stands in.
    while await served.outcome() != grpc.StatusCode.UNAVAILABLE:
        pass
    held.release.set()
    assert (await call).feed_head == 7
    await stopping
