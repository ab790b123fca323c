"""Streams behave alike on both transports: order, errors, slow callers, callers that vanish, a stop."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2

from commerce.query.v1 import query_service_pb2 as queries
from tandem.runtime.call import Call, StreamCall, StreamHandler, stopping_error
from tandem.runtime.errors import Conflict
from tandem.runtime.server import Application, RunningApplication, Service
from tandem.runtime.settings import ServerSettings
from tandem.runtime.worker import one_by_one
from tandem.testing.stack import until
from tests.contract.transport.conftest import PATIENCE, Transport, detail, worker
from tests.support.http2 import RawConnection
from tests.support.metrics import sample
from tests.support.proxy import CuttingProxy

SERVICE = queries.DESCRIPTOR.services_by_name["QueryService"]
METHOD = "WatchOrderDetails"
# A client whose windows do not grow, up to 16 MiB a stream, with the speed that it finds: the limits are the server's.
STEADY = (("grpc.http2.bdp_probe", 0),)
Stream = grpc.aio.UnaryStreamCall[bytes, queries.WatchOrderDetailsResponse]


def message(number: int, size: int = 0) -> queries.WatchOrderDetailsResponse:
    return queries.WatchOrderDetailsResponse(as_of="x" * size, skipped_versions=number)


@one_by_one
def empty(call: Call) -> bytes:
    return b""


class Served:
    def __init__(self, running: RunningApplication, channel: grpc.aio.Channel) -> None:
        self.running = running
        self.channel = channel

    def stream(self, channel: grpc.aio.Channel | None = None, *, timeout: float | None = PATIENCE) -> Stream:
        method: Any = (channel or self.channel).unary_stream(
            f"/{SERVICE.full_name}/{METHOD}",
            request_serializer=bytes,
            response_deserializer=queries.WatchOrderDetailsResponse.FromString,
        )
        call: Stream = method(b"", timeout=timeout)
        return call

    async def get(self) -> bytes:
        method: Any = self.channel.unary_unary(f"/{SERVICE.full_name}/GetProduct")
        return bytes(await method(b"", timeout=PATIENCE))


Serve = Callable[..., Any]


@pytest.fixture
async def serve(transport: Transport) -> AsyncIterator[Serve]:
    async with AsyncExitStack() as exits:

        async def start(behaviour: StreamHandler, **server: Any) -> Served:
            async def ready() -> bool:
                return True

            settings = ServerSettings(**{"port": 0, "transport": transport, "drain_seconds": 0, **server})
            others = worker(empty)
            workers = {method.name: others for method in SERVICE.methods if method.name != METHOD}
            service = Service(SERVICE, workers, {METHOD: behaviour})
            running = RunningApplication(Application("test_server", settings, (service,), ready, (others,)))
            await running.start()
            exits.push_async_callback(running.stop)
            channel = await exits.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{running.port}", STEADY))
            return Served(running, channel)

        yield start


class Endless:
    """A stream of messages of `size` bytes without an end; notes how many were asked for, and who is inside."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.asked = 0
        self.inside = 0

    async def __call__(self, request: Any, call: StreamCall) -> AsyncGenerator[Any, None]:
        self.inside += 1
        try:
            while True:
                self.asked += 1
                yield message(self.asked, self.size)
                await asyncio.sleep(0)
        finally:
            self.inside -= 1


class Silent:
    """A stream that sends one message and then waits for the stop."""

    def __init__(self) -> None:
        self.inside = 0

    async def __call__(self, request: Any, call: StreamCall) -> AsyncGenerator[Any, None]:
        self.inside += 1
        stopping = asyncio.Event()
        call.when_stopping(stopping.set)
        try:
            yield message(1)
            await stopping.wait()
            assert call.stopping
            yield message(2)
            raise stopping_error()
        finally:
            self.inside -= 1


def opened() -> float:
    return sample("tandem_streams_open", method=METHOD) or 0


async def nobody_is_inside(behaviour: Endless | Silent) -> None:
    async def none() -> bool:
        return behaviour.inside == 0 and opened() == 0

    await until(none, "every stream is closed on the server")


async def refusal_of(stream: Stream) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        async for _ in stream:
            pass
    return raised.value


async def test_messages_come_in_order_and_the_stream_ends_well(serve: Serve) -> None:
    async def count(request: Any, call: StreamCall) -> AsyncGenerator[Any, None]:
        for number in range(1, 1001):
            # A message, or its bytes.
            yield message(number) if number % 2 else message(number).SerializeToString()

    served = await serve(count)
    stream = served.stream()
    assert [it.skipped_versions async for it in stream] == list(range(1, 1001))
    assert await stream.code() == grpc.StatusCode.OK


async def test_an_error_comes_after_the_messages_before_it_with_its_details(serve: Serve) -> None:
    async def fail(request: Any, call: StreamCall) -> AsyncGenerator[Any, None]:
        yield message(1)
        raise Conflict("out of date", reason="VERSION_MISMATCH")

    served = await serve(fail)
    stream = served.stream()
    assert (await anext(aiter(stream))).skipped_versions == 1
    refusal = await refusal_of(stream)
    assert refusal.code() == grpc.StatusCode.ABORTED
    assert detail(refusal, error_details_pb2.ErrorInfo).reason == "VERSION_MISMATCH"


async def test_a_bug_in_a_stream_is_internal_and_leaks_nothing(serve: Serve) -> None:
    async def fail(request: Any, call: StreamCall) -> AsyncGenerator[Any, None]:
        yield message(1)
        raise ValueError("the inside")

    refusal = await refusal_of((await serve(fail)).stream())
    assert refusal.code() == grpc.StatusCode.INTERNAL
    assert "inside" not in (refusal.details() or "")


async def test_an_answer_over_the_size_limit_ends_the_stream_and_its_handler(serve: Serve) -> None:
    endless = Endless(4096)
    refusal = await refusal_of((await serve(endless, max_response_bytes=2048)).stream())
    assert refusal.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    await nobody_is_inside(endless)


async def test_a_request_over_the_size_limit_is_refused(serve: Serve) -> None:
    silent = Silent()
    served = await serve(silent, max_request_bytes=2048)
    method: Any = served.channel.unary_stream(f"/{SERVICE.full_name}/{METHOD}")
    refusal = await refusal_of(method(b"x" * 4096, timeout=PATIENCE))
    assert refusal.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_handler_that_cancels_itself_ends_its_stream(serve: Serve) -> None:
    async def cancel(request: Any, call: StreamCall) -> AsyncGenerator[Any, None]:
        yield message(1)
        raise asyncio.CancelledError

    refusal = await refusal_of((await serve(cancel)).stream())
    assert refusal.code() == grpc.StatusCode.INTERNAL


async def test_a_malformed_request_is_refused(serve: Serve) -> None:
    served = await serve(Silent())
    method: Any = served.channel.unary_stream(f"/{SERVICE.full_name}/{METHOD}")
    refusal = await refusal_of(method(b"\xff\xff", timeout=PATIENCE))
    assert refusal.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_caller_that_leaves_ends_its_stream(serve: Serve) -> None:
    silent = Silent()
    served = await serve(silent)
    stream = served.stream(timeout=None)
    await anext(aiter(stream))
    assert opened() == 1
    stream.cancel()
    await nobody_is_inside(silent)


@pytest.mark.parametrize("size", [0, 10_000])
async def test_a_connection_that_is_cut_ends_its_streams(serve: Serve, size: int) -> None:
    """Idle ones, and ones whose caller did not read."""
    behaviour: Endless | Silent = Endless(size) if size else Silent()
    served = await serve(behaviour)
    proxy = CuttingProxy(("127.0.0.1", served.running.port))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{proxy.port}") as channel:
        streams = [served.stream(channel, timeout=None) for _ in range(20)]
        for stream in streams:
            await anext(aiter(stream))
        assert behaviour.inside == 20
        proxy.close()
        await nobody_is_inside(behaviour)


async def test_a_stream_ends_with_the_callers_deadline(serve: Serve) -> None:
    silent = Silent()
    refusal = await refusal_of((await serve(silent)).stream(timeout=0.2))
    assert refusal.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    await nobody_is_inside(silent)


async def test_callers_that_do_not_read_are_not_sent_more_and_hold_nobody_up(serve: Serve) -> None:
    endless = Endless(10_000)
    served = await serve(endless)
    streams = [served.stream(timeout=None) for _ in range(20)]
    readers = [aiter(stream) for stream in streams]
    first = [await anext(reader) for reader in readers]

    async def stands_still() -> bool:
        asked = endless.asked
        # Others are served meanwhile, also with what needs a thread.
        for _ in range(20):
            await served.get()
            await asyncio.wait_for(asyncio.to_thread(bool), PATIENCE)
        return endless.asked == asked

    await until(stands_still, "the server has stopped making messages")
    asked = endless.asked
    assert asked * endless.size / len(streams) < 10_000_000, "bytes that wait for one caller"
    # And each goes on where it was as soon as it reads.
    for before, reader in zip(first, readers, strict=True):
        assert (await anext(reader)).skipped_versions > before.skipped_versions
    async for _ in streams[0]:
        if endless.asked > asked:
            break
    for stream in streams:
        stream.cancel()
    await nobody_is_inside(endless)


async def test_streams_are_not_counted_among_the_calls_under_way(serve: Serve) -> None:
    served = await serve(Silent(), max_concurrent_calls=1)
    streams = [served.stream(timeout=None) for _ in range(5)]
    for stream in streams:
        await anext(aiter(stream))
    assert await served.get() == b""


async def test_at_a_stop_streams_say_a_last_word_and_new_ones_are_refused(serve: Serve) -> None:
    silent = Silent()
    served = await serve(silent, drain_seconds=PATIENCE)
    streams = [served.stream(timeout=None) for _ in range(20)]
    readers = [aiter(stream) for stream in streams]
    for reader in readers:
        await anext(reader)
    stopping = asyncio.create_task(served.running.stop())
    for stream, reader in zip(streams, readers, strict=True):
        assert (await anext(reader)).skipped_versions == 2
        refusal = await refusal_of(stream)
        assert refusal.code() == grpc.StatusCode.UNAVAILABLE
        assert detail(refusal, error_details_pb2.ErrorInfo).reason == "STOPPING"
    await asyncio.wait_for(stopping, PATIENCE)
    assert silent.inside == 0


async def test_a_caller_that_does_not_read_holds_a_stop_up_no_longer_than_the_drain(serve: Serve) -> None:
    endless = Endless(10_000)
    served = await serve(endless, drain_seconds=0.2)
    stream = served.stream(timeout=None)
    await anext(aiter(stream))
    await asyncio.wait_for(served.running.stop(), PATIENCE)
    assert endless.inside == 0
    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
        async for _ in stream:
            pass
    assert await stream.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


async def test_messages_that_a_caller_does_not_take_count_and_end_in_a_closed_connection(serve: Serve) -> None:
    async def large(request: Any, call: StreamCall) -> AsyncGenerator[queries.WatchOrderDetailsResponse, None]:
        yield message(1, 2**20)

    before = sample("tandem_connections_closed_total") or 0
    served = await serve(large, max_held_bytes_per_connection=4 * 2**20)
    caller = RawConnection(served.running.port, reads=False)
    for _ in range(20):
        caller.call(f"/{SERVICE.full_name}/{METHOD}")

    async def is_closed() -> bool:
        return (sample("tandem_connections_closed_total") or 0) > before and opened() == 0

    await until(is_closed, "the connection is closed, and with it its streams")
    assert await served.get() == b""
    caller.close()
