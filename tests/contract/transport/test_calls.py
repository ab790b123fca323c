"""What a caller sees of an answer, a refusal, a bug and a limit, whichever transport serves."""

import asyncio
import gzip
from itertools import count
from typing import NoReturn

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from structlog.testing import capture_logs

from commerce.projection.v1.projection_service_pb2 import ListProjectionsResponse, Projection
from tandem.runtime.call import Call
from tandem.runtime.errors import Conflict, InvalidArgument, NotFound, Overloaded, TandemError, Unavailable, Violation
from tandem.runtime.worker import one_by_one
from tandem.testing.stack import until
from tests.contract.transport.conftest import (
    ANSWER,
    METHOD,
    PATIENCE,
    Parked,
    Serve,
    answer,
    counted,
    detail,
    in_thread,
    raw,
    status_of,
    timed,
)
from tests.support.http2 import RawConnection, message

REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


async def until_counted(code: str, calls: float) -> None:
    """A call is counted after its answer was sent."""

    async def is_counted() -> bool:
        return counted(code) == calls

    await until(is_counted, f"{calls} calls are counted as {code}")


async def test_an_answer_arrives(serve: Serve) -> None:
    before = counted("OK"), timed()
    served = await serve(answer)
    assert (await served.call()).feed_head == 7
    await until_counted("OK", before[0] + 1)

    async def is_timed() -> bool:
        return timed() == before[1] + 1

    await until(is_timed, "the call is timed")


async def test_an_answer_of_bytes_arrives_as_the_message_that_they_are(serve: Serve) -> None:
    @one_by_one
    def as_bytes(call: Call) -> bytes:
        return ListProjectionsResponse(feed_head=8).SerializeToString()

    served = await serve(as_bytes)
    assert (await served.call()).feed_head == 8


@pytest.mark.parametrize(
    "error",
    [
        InvalidArgument([Violation("name", "ist zu lang für ein Feld", "TOO_LONG"), Violation("sku", "is required")]),
        NotFound("order", "orders/1"),
        Conflict("changed", reason="VERSION_MISMATCH", metadata={"current_version": "3"}),
        Overloaded("full"),
        Unavailable("away", reason="DATABASE_AWAY"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_refusal_arrives_as_a_status_with_details(serve: Serve, error: TandemError) -> None:
    @one_by_one
    def refuse(call: Call) -> NoReturn:
        raise error

    served = await serve(refuse)
    refusal = await served.refusal()
    status = status_of(refusal)
    assert (status.code, status.message) == (refusal.code().value[0], error.message)
    assert refusal.details() == error.message
    assert detail(refusal, error_details_pb2.ErrorInfo).reason == error.reason


async def test_the_largest_refusal_arrives_whole(serve: Serve) -> None:
    @one_by_one
    def refuse(call: Call) -> NoReturn:
        raise InvalidArgument([Violation(f"lines[{number}]", "é" * 500) for number in range(500)])

    served = await serve(refuse)
    refusal = await served.refusal()
    assert refusal.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert detail(refusal, error_details_pb2.BadRequest).field_violations[-1].reason == "MORE_VIOLATIONS"


@pytest.mark.parametrize("answered", ["raises", "not a message"])
async def test_a_bug_leaks_nothing_and_is_logged_once_under_the_reference_that_the_caller_gets(
    serve: Serve, answered: str
) -> None:
    @one_by_one
    def fail(call: Call) -> Message:
        if answered == "raises":
            raise RuntimeError("the password is s3cret")
        return "s3cret"  # type: ignore[return-value]

    served = await serve(fail)
    with capture_logs() as logs:
        refusal = await served.refusal(metadata=(("x-request-id", "order-4711"),))
    assert refusal.code() == grpc.StatusCode.INTERNAL
    assert refusal.details() == "internal error, reference order-4711"
    assert detail(refusal, error_details_pb2.ErrorInfo).metadata["reference"] == "order-4711"
    assert "s3cret" not in str(status_of(refusal)) + str(refusal.trailing_metadata())
    [entry] = [entry for entry in logs if entry["log_level"] == "error"]
    assert (entry["reference"], entry["method"]) == ("order-4711", "ListProjections")
    assert isinstance(entry["exc_info"], Exception)


async def test_a_bug_gets_a_reference_when_the_caller_gives_none(serve: Serve) -> None:
    @one_by_one
    def fail(call: Call) -> Message:
        raise RuntimeError

    served = await serve(fail)
    with capture_logs() as logs:
        refusal = await served.refusal()
    [entry] = [entry for entry in logs if entry["log_level"] == "error"]
    assert entry["reference"] in (refusal.details() or "")
    assert len(entry["reference"]) == 32


async def test_bytes_that_are_no_request_are_an_invalid_argument(serve: Serve) -> None:
    @one_by_one
    def parse(call: Call) -> Message:
        assert call.request.IsInitialized()
        return ANSWER

    served = await serve(parse)
    assert (await served.call()).feed_head == 7
    refusal = await served.refusal(b"\xff\xff")
    assert refusal.code() == grpc.StatusCode.INVALID_ARGUMENT
    [violation] = detail(refusal, error_details_pb2.BadRequest).field_violations
    assert violation.description == "the request is not a commerce.projection.v1.ListProjectionsRequest"


async def test_a_call_ends_at_its_deadline_and_its_work_is_cancelled(serve: Serve, parked: Parked) -> None:
    before = counted("DEADLINE_EXCEEDED")
    served = await serve(parked)
    seconds = 0.3
    # On a busy machine a call may be over before it has come.
    while not parked.entered.is_set():
        refusal = await served.refusal(timeout=seconds)
        assert refusal.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        seconds *= 2
    await in_thread(parked.cancelled)

    async def is_counted() -> bool:
        return counted("DEADLINE_EXCEEDED") > before

    await until(is_counted, "the call is counted")


async def test_the_work_of_a_caller_who_leaves_is_cancelled(serve: Serve, parked: Parked) -> None:
    before = counted("CANCELLED")
    served = await serve(parked)
    call = served.call()
    await in_thread(parked.entered)
    call.cancel()
    await in_thread(parked.cancelled)

    await until_counted("CANCELLED", before + 1)
    with pytest.raises(asyncio.CancelledError):
        await call


@pytest.mark.parametrize(("given", "most"), [(5.0, 60.0), (None, 120.0)])
async def test_a_servicer_knows_how_long_its_caller_waits(serve: Serve, given: float | None, most: float) -> None:
    seen: list[float] = []

    @one_by_one
    def look(call: Call) -> Message:
        seen.append(call.seconds_left())
        return ANSWER

    served = await serve(look)
    await raw(served.channel)(b"", timeout=given)
    assert 0 < seen[0] <= most


async def test_calls_past_the_limit_are_refused_at_once_while_health_answers(serve: Serve, parked: Parked) -> None:
    served = await serve(parked, max_concurrent_calls=1)
    first = served.call()
    await in_thread(parked.entered)
    refusal = await served.refusal()
    assert refusal.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert detail(refusal, error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() > 0
    assert detail(refusal, error_details_pb2.ErrorInfo).reason == "OVERLOADED"
    assert await served.health_of() == 1
    parked.release()
    assert (await first).feed_head == 7

    async def there_is_room() -> bool:
        return await served.outcome() == grpc.StatusCode.OK

    await until(there_is_room, "a call is answered after the first was")


async def test_a_cancelled_call_makes_room_for_another(serve: Serve, parked: Parked) -> None:
    served = await serve(parked, max_concurrent_calls=1)
    first = served.call()
    await in_thread(parked.entered)
    first.cancel()
    await in_thread(parked.cancelled)
    parked.release()

    async def there_is_room() -> bool:
        return await served.outcome() == grpc.StatusCode.OK

    await until(there_is_room, "a call is answered after the first was cancelled")


async def test_a_request_over_the_size_limit_is_refused(serve: Serve) -> None:
    served = await serve(max_request_bytes=2048)
    # A field that this program does not know is part of a message's size.
    padding = ListProjectionsResponse(projections=[Projection(error="x" * 4096)]).SerializeToString()
    refusal = await served.refusal(padding)
    assert refusal.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert detail(refusal, error_details_pb2.ErrorInfo).reason == "MESSAGE_TOO_LARGE"
    assert (await served.call()).feed_head == 7


@pytest.mark.parametrize("transport", ["grpcio"])
async def test_a_request_of_many_times_the_limit_is_not_handed_over(serve: Serve) -> None:
    served = await serve(max_request_bytes=2048)
    before = counted("RESOURCE_EXHAUSTED")
    assert (await served.refusal(b"x" * (16 * 2048 + 1))).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await served.call()).feed_head == 7
    assert counted("RESOURCE_EXHAUSTED") == before


@pytest.mark.parametrize("method", ["/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch", REFLECTION])
@pytest.mark.parametrize(("request_", "reason"), [(b"\xff\xff", "INVALID_REQUEST"), (b"x" * 4096, "MESSAGE_TOO_LARGE")])
async def test_requests_of_health_and_reflection_are_refused_as_all_others(
    serve: Serve, method: str, request_: bytes, reason: str
) -> None:
    served = await serve(max_request_bytes=2048)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await raw(served.channel, method)(request_, timeout=PATIENCE)
    assert detail(raised.value, error_details_pb2.ErrorInfo).reason == reason
    assert "Error" not in (raised.value.details() or ""), "nothing of the inside"
    assert await served.health_of() == 1


async def test_the_health_of_a_service_that_is_not_there_is_not_found(serve: Serve) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await (await serve()).health_of("nobody")
    assert raised.value.code() == grpc.StatusCode.NOT_FOUND
    assert detail(raised.value, error_details_pb2.ErrorInfo).reason == "NOT_FOUND"


GZIP = [("grpc-encoding", "gzip")]
# Behind the native transport, which unpacks by itself what it answers itself, grpcio answers as on its own.
UNPACKED = {"native": "/grpc.health.v1.Health/Check", "grpcio": METHOD}


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (gzip.compress(b""), "0"),
        (gzip.compress(b"x" * 1000)[:-10], "3"),
        (gzip.compress(b"x" * 1000)[:20] + bytes(20), "3"),
        (gzip.compress(bytes(2**26)), "8"),
    ],
    ids=["well", "half", "wrongly", "64 MiB as 64 KiB"],
)
async def test_a_compressed_request_is_unpacked_up_to_the_size_limit(
    serve: Serve, transport: str, request_: bytes, code: str
) -> None:
    served = await serve()
    caller = RawConnection(served.running.port, reads=True)
    stream = caller.open(UNPACKED[transport], headers=GZIP)
    caller.send(stream, message(request_, compressed=True), end=True)

    async def is_answered() -> bool:
        return stream in caller.ended_streams

    await until(is_answered, "the call has ended")
    assert caller.headers[stream]["grpc-status"] == code
    assert ("grpc-status-details-bin" in caller.headers[stream]) == (code != "0")
    caller.close()


async def test_an_answer_over_the_size_limit_is_refused(serve: Serve) -> None:
    @one_by_one
    def much(call: Call) -> Message:
        return ListProjectionsResponse(projections=[Projection(error="x" * 4096)])

    served = await serve(much, max_response_bytes=2048)
    refusal = await served.refusal()
    assert refusal.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert detail(refusal, error_details_pb2.ErrorInfo).reason == "MESSAGE_TOO_LARGE"


@pytest.mark.parametrize("method", ["/commerce.projection.v1.ProjectionService/Nothing", "/nobody/Nothing"])
async def test_what_nobody_serves_is_unimplemented(serve: Serve, method: str) -> None:
    served = await serve()
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await raw(served.channel, method)(b"", timeout=PATIENCE)
    assert raised.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert detail(raised.value, error_details_pb2.ErrorInfo).reason == "UNKNOWN_METHOD"


async def test_each_call_of_a_burst_gets_its_own_answer(serve: Serve) -> None:
    """More than grpcio keeps on its own: it would drop some, with a bare CANCELLED, before anybody here sees them."""
    numbers = count(1)

    @one_by_one
    def number(call: Call) -> Message:
        return ListProjectionsResponse(feed_head=next(numbers))

    served = await serve(number, max_concurrent_calls=5000)
    answers = await asyncio.gather(*(served.call() for _ in range(3500)))
    assert sorted(it.feed_head for it in answers) == list(range(1, 3501))
