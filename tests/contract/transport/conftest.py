"""A worker that does what a test says, served as every service is: on each transport, inline and from its queue."""

import asyncio
import queue
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import grpc
import pytest
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from google.rpc import status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from commerce.projection.v1 import projection_service_pb2 as projection
from tandem.runtime.call import Call, StreamCall, settle
from tandem.runtime.server import Application, Component, RunningApplication, Service
from tandem.runtime.settings import UNIX_SOCKET, ServerSettings
from tandem.runtime.worker import Handler, Worker, one_by_one
from tests.support.metrics import sample

Transport = Literal["native", "grpcio"]

SERVICE = projection.DESCRIPTOR.services_by_name["ProjectionService"]
METHOD = f"/{SERVICE.full_name}/ListProjections"
UNARY = [it.name for it in SERVICE.methods if not it.server_streaming]
STREAMING = [it.name for it in SERVICE.methods if it.server_streaming]
PATIENCE = 20.0
"""Seconds until a test that waits for something gives up."""
ANSWER = projection.ListProjectionsResponse(feed_head=7)


@one_by_one
def answer(call: Call) -> Message:
    return ANSWER


def raw(channel: grpc.aio.Channel, method: str = METHOD) -> "grpc.aio.UnaryUnaryMultiCallable[bytes, Any]":
    """The method, for requests that are bytes already."""
    return channel.unary_unary(
        method,
        request_serializer=bytes,
        response_deserializer=projection.ListProjectionsResponse.FromString,
    )


def counted(code: str) -> float:
    """How many calls ended with the code."""
    return sample("tandem_calls_total", method="ListProjections", code=code) or 0.0


def timed() -> float:
    """How many calls were timed."""
    return sample("tandem_call_seconds_count", method="ListProjections") or 0.0


def worker(*handlers: Handler, inline: Handler | None = None, max_batch: int = 64, max_waiting: int = 10_000) -> Worker:
    return Worker("test", handlers, inline=inline, max_batch=max_batch, max_waiting=max_waiting)


class Parked:
    """A handler that parks calls until the test takes one, or releases all; it lets go of those whose caller has gone.

    It parks as Call.when_gone says.
    """

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.cancelled = threading.Event()
        self.count = 0
        self._lock = threading.Lock()
        self._parked: set[Call] = set()
        self._order: queue.SimpleQueue[Call] = queue.SimpleQueue()
        self._released = False

    def __call__(self, calls: Sequence[Call]) -> None:
        for call in calls:
            call.next = self

    def put_all(self, calls: Sequence[Call]) -> None:
        for call in calls:
            with self._lock:
                self._parked.add(call)
                self.count += 1
            call.when_gone = self._let_go
            if call.gone:
                self._let_go(call)
            if self._released:
                self.reply(call)
            self._order.put(call)
        self.entered.set()

    def reply(self, call: Call, response: Message | bytes = ANSWER) -> None:
        if self._take(call):
            call.reply(response)
            settle([call])

    def fail(self, call: Call, error: Exception) -> None:
        if self._take(call):
            call.fail(error)
            settle([call])

    def release(self) -> None:
        """Answers all that are here and all that come."""
        self._released = True
        for call in list(self._parked):
            self.reply(call)

    async def next(self) -> Call:
        """The next that was parked."""
        return await asyncio.to_thread(self._order.get, timeout=PATIENCE)

    def _let_go(self, call: Call) -> None:
        if self._take(call):
            call.drop()
            settle([call])
            self.cancelled.set()

    def _take(self, call: Call) -> bool:
        with self._lock:
            here = call in self._parked
            self._parked.discard(call)
            return here


class Held:
    """A handler that holds its thread until it is released, then answers; notes how large its batches were."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.release = threading.Event()
        self.batches: list[list[Call]] = []

    @property
    def sizes(self) -> list[int]:
        return [len(batch) for batch in self.batches]

    def __call__(self, calls: Sequence[Call]) -> None:
        self.batches.append(list(calls))
        self.entered.set()
        assert self.release.wait(PATIENCE)
        for call in calls:
            call.reply(ANSWER)


@pytest.fixture
async def parked() -> Parked:
    return Parked()


@pytest.fixture
async def held() -> AsyncIterator[Held]:
    made = Held()
    yield made
    made.release.set()


async def in_thread(event: threading.Event) -> None:
    """Waits for an event of threads."""
    assert await asyncio.to_thread(event.wait, PATIENCE)


@dataclass
class Served:
    """A running application, and a channel to it."""

    running: RunningApplication
    channel: grpc.aio.Channel
    ready: asyncio.Event

    @property
    def health(self) -> health_pb2_grpc.HealthStub:
        return health_pb2_grpc.HealthStub(self.channel)

    def call(
        self,
        payload: bytes = b"",
        *,
        timeout: float = PATIENCE,
        metadata: tuple[tuple[str, str], ...] = (),
    ) -> "grpc.aio.UnaryUnaryCall[bytes, Any]":
        """A call with the request's bytes as they are."""
        return raw(self.channel)(payload, timeout=timeout, metadata=metadata)

    async def refusal(self, payload: bytes = b"", **options: Any) -> grpc.aio.AioRpcError:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await self.call(payload, **options)
        return raised.value

    async def outcome(self) -> grpc.StatusCode:
        """How a call ends."""
        try:
            await self.call()
        except grpc.aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    async def health_of(self, service: str = "") -> int:
        answer = await self.health.Check(health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE)
        return int(answer.status)


def status_of(error: grpc.aio.AioRpcError) -> status_pb2.Status:
    """The google.rpc.Status behind an error, as any client of gRPC finds it."""
    status = rpc_status.from_call(error)
    assert status is not None
    return status


def detail(error: grpc.aio.AioRpcError, kind: type[Message]) -> Any:
    found = kind()
    assert any(packed.Unpack(found) for packed in status_of(error).details)
    return found


class Serve(Protocol):
    async def __call__(
        self, served: Handler | Worker = answer, *, components: tuple[Component, ...] = (), **server: Any
    ) -> Served: ...


@pytest.fixture(params=["native", "grpcio"])
def transport(request: pytest.FixtureRequest) -> Transport:
    chosen: Transport = request.param
    return chosen


@pytest.fixture(params=["inline", "queued"])
def inline(request: pytest.FixtureRequest) -> bool:
    """Whether the handlers of `serve` answer inline too, where the transport can."""
    return bool(request.param == "inline")


def application(
    served: Worker,
    server: ServerSettings,
    *,
    components: tuple[Component, ...] = (),
    ready: Callable[[], Awaitable[bool]] | None = None,
) -> Application:
    async def always() -> bool:
        return True

    return Application(
        name="test_server",
        server=server,
        services=(service(served),),
        ready=ready or always,
        components=(*components, served),
    )


def service(
    served: Worker, descriptor: ServiceDescriptor = SERVICE, *, ready: Callable[[], Awaitable[bool]] | None = None
) -> Service:
    """One of its RPCs is called, and a service has someone for each."""
    return Service(descriptor, dict.fromkeys(UNARY, served), dict.fromkeys(STREAMING, _nothing), ready=ready)


async def _nothing(_request: Any, _call: StreamCall) -> AsyncGenerator[Any, None]:
    return
    yield


async def _stop(running: RunningApplication) -> None:
    """Unless the test has: a second stop would sit the drain's delay out again."""
    if not running._stopping.is_set():
        await running.stop()


@pytest.fixture
async def serve(transport: Transport, inline: bool) -> AsyncIterator[Serve]:
    """Serves a worker, or one with two threads that have the handler, until the test ends; ServerSettings by name."""
    async with AsyncExitStack() as exits:

        async def serve_it(
            served: Handler | Worker = answer, *, components: tuple[Component, ...] = (), **server: Any
        ) -> Served:
            settings = ServerSettings(**{"port": 0, "transport": transport, "drain_seconds": 0, **server})
            if not isinstance(served, Worker):
                served = worker(served, served, inline=served if inline else None)
            ready = asyncio.Event()
            ready.set()

            async def is_ready() -> bool:
                return ready.is_set()

            running = RunningApplication(application(served, settings, components=components, ready=is_ready))
            await running.start()
            exits.push_async_callback(_stop, running)
            at = settings.host if settings.host.startswith(UNIX_SOCKET) else f"127.0.0.1:{running.port}"
            channel = await exits.enter_async_context(grpc.aio.insecure_channel(at))
            return Served(running, channel, ready)

        yield serve_it
