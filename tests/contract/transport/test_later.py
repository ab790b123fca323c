"""Calls that are answered by a thread of the servicer's: taken on the native transport's receiving thread."""

import asyncio
import queue
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any, NamedTuple

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from commerce.projection.v1.projection_service_pb2 import ListProjectionsResponse
from tandem.runtime.calls import AnswerLater, Call, Reply
from tandem.runtime.errors import PreconditionFailed, Violation
from tests.contract.transport.conftest import PATIENCE, Served, application, detail, native_settings, start

LATER = ListProjectionsResponse(feed_head=3)

pytestmark = pytest.mark.asyncio


class Taken(NamedTuple):
    request: Message
    call: Call
    reply: Reply


class Takes:
    """Takes calls, and keeps them until the test asks for one."""

    def __init__(self) -> None:
        self._taken: queue.SimpleQueue[Taken] = queue.SimpleQueue()

    def __call__(self, request: Message, call: Call, reply: Reply) -> None:
        self._taken.put(Taken(request, call, reply))

    async def next(self) -> Taken:
        return await asyncio.to_thread(self._taken.get, timeout=PATIENCE)


ServeLater = Callable[..., Awaitable[Served]]


async def not_asked(request: Message, call: Call) -> Message:
    raise AssertionError("the call was taken, and its method asked all the same")


@pytest.fixture
async def serve() -> AsyncIterator[ServeLater]:
    async with AsyncExitStack() as exits:

        async def serve_it(later: AnswerLater, **settings: Any) -> Served:
            base = application(not_asked, native_settings(**settings))
            [service] = base.services
            return await start(exits, replace(base, services=(replace(service, later={"ListProjections": later}),)))

        yield serve_it


@pytest.fixture
def taken() -> Takes:
    return Takes()


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, {"method": "ListProjections", **labels}) or 0


async def test_another_thread_answers_with_a_message_or_its_bytes(serve: ServeLater, taken: Takes) -> None:
    served = await serve(taken)
    for answer in (LATER, LATER.SerializeToString()):
        call = served.call()
        await asyncio.to_thread((await taken.next()).reply, answer)
        assert await call == LATER


async def test_each_call_of_a_burst_gets_its_own_answer(serve: ServeLater) -> None:
    def at_once(request: Message, call: Call, reply: Reply) -> None:
        reply(ListProjectionsResponse(feed_head=len(call.reference())))

    served = await serve(at_once)
    calls = [served.call(metadata=(("x-request-id", "x" * number),)) for number in range(1, 101)]
    assert [(await it).feed_head for it in calls] == list(range(1, 101))


async def test_a_refusal_names_what_is_wrong(serve: ServeLater, taken: Takes) -> None:
    served = await serve(taken)
    call = served.call()
    (await taken.next()).reply(PreconditionFailed([Violation("orders/1", "is shipped", "SHIPPED")]))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert detail(refused.value, error_details_pb2.PreconditionFailure).violations[0].type == "SHIPPED"


@pytest.mark.parametrize("raised", [True, False])
async def test_a_bug_is_logged_once_and_the_caller_gets_its_reference(serve: ServeLater, raised: bool) -> None:
    def broken(request: Message, call: Call, reply: Reply) -> None:
        if raised:
            raise RuntimeError("a bug")
        reply(RuntimeError("a bug"))

    served = await serve(broken)
    with capture_logs() as logs:
        error = await served.refusal(metadata=(("x-request-id", "abc-1"),))
    assert error.code() == grpc.StatusCode.INTERNAL
    assert "a bug" not in str(error.details())
    assert [(it["event"], it["reference"]) for it in logs if it["log_level"] == "error"] == [("call failed", "abc-1")]


async def test_what_is_no_request_is_refused_and_not_taken(serve: ServeLater, taken: Takes) -> None:
    served = await serve(taken)
    assert (await served.refusal(b"\xff")).code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_calls_past_the_limit_are_refused_until_one_is_answered(serve: ServeLater, taken: Takes) -> None:
    served = await serve(taken, max_concurrent_calls=1)
    first = served.call()
    held = await taken.next()
    assert (await served.refusal()).code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    held.reply(LATER)
    assert await first == LATER
    second = served.call()
    (await taken.next()).reply(LATER)
    assert await second == LATER


async def test_too_large_messages_are_refused_either_way(serve: ServeLater, taken: Takes) -> None:
    served = await serve(taken, max_message_bytes=1024)
    assert (await served.refusal(b"\xf8\x07\x01" * 400)).code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    call = served.call()
    (await taken.next()).reply(b"\xf8\x07\x01" * 400)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_the_deadline_is_the_callers(serve: ServeLater, taken: Takes) -> None:
    served = await serve(taken)
    call = served.call(timeout=PATIENCE)
    held = await taken.next()
    # On its way a timeout is rounded up, to three digits.
    longest = 1.01 * PATIENCE
    assert PATIENCE / 2 < held.call.seconds_left() <= longest
    assert held.call.deadline <= time.monotonic() + longest
    held.reply(LATER)
    await call


async def test_a_caller_that_has_left_is_told_of_and_a_late_answer_harms_nobody(
    serve: ServeLater, taken: Takes
) -> None:
    served = await serve(taken)
    left = served.call()
    held = await taken.next()
    assert not held.call.gone()
    left.cancel()
    # On the same connection: when this has come in, the server knows that the caller has left.
    call = served.call()
    other = await taken.next()
    assert held.call.gone()
    held.reply(LATER)
    other.reply(LATER)
    assert await call == LATER


async def test_calls_are_counted_and_timed(serve: ServeLater, taken: Takes) -> None:
    served = await serve(taken)
    before = counted("tandem_calls_total", code="OK"), counted("tandem_call_seconds_count")
    calls = [served.call() for _ in range(5)]
    for _ in calls:
        (await taken.next()).reply(LATER)
    await asyncio.gather(*calls)
    assert counted("tandem_calls_total", code="OK") == before[0] + 5
    assert counted("tandem_call_seconds_count") == before[1] + 5


async def test_a_stop_waits_for_a_call_under_way_and_refuses_new_ones(serve: ServeLater, taken: Takes) -> None:
    takers: list[AnswerLater] = [taken]

    def hold_the_first(request: Message, call: Call, reply: Reply) -> None:
        if takers:
            takers.pop()(request, call, reply)
        else:
            reply(LATER)

    served = await serve(hold_the_first, drain_seconds=PATIENCE)
    call = served.call()
    held = await taken.next()
    stopping = asyncio.create_task(served.running.stop())
    while (outcome := await served.outcome()) == grpc.StatusCode.OK:
        pass
    assert outcome == grpc.StatusCode.UNAVAILABLE
    assert not stopping.done()
    held.reply(LATER)
    assert await call == LATER
    await stopping


async def test_an_answer_after_the_stop_harms_nobody(serve: ServeLater, taken: Takes) -> None:
    """Components stop after the server, and the executor still stores what waits."""
    served = await serve(taken)
    call = served.call()
    held = await taken.next()
    await served.running.stop()
    with pytest.raises(grpc.aio.AioRpcError):
        await call
    with capture_logs() as logs:
        held.reply(LATER)
    assert not logs


async def test_a_call_that_is_left_because_its_caller_has_gone_is_counted_and_makes_room(
    serve: ServeLater, taken: Takes
) -> None:
    served = await serve(taken, max_concurrent_calls=1)
    before = counted("tandem_calls_total", code="CANCELLED")
    left = served.call()
    held = await taken.next()
    left.cancel()
    # On the same connection: when this is answered, the server knows that the caller has left.
    await served.health_of()
    held.reply(None)
    assert counted("tandem_calls_total", code="CANCELLED") == before + 1
    call = served.call()
    (await taken.next()).reply(LATER)
    assert await call == LATER
