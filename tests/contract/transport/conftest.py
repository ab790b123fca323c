"""A servicer that does what a test says, served as every service is, on each transport."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from commerce.projection.v1 import projection_service_pb2 as projection
from tandem.runtime.calls import Call
from tandem.runtime.process import Application, Component, RunningApplication, Service
from tandem.runtime.settings import ServerSettings

Transport = Literal["native", "grpcio"]
Behaviour = Callable[[Any, Call], Awaitable[Message | bytes]]

SERVICE = projection.DESCRIPTOR.services_by_name["ProjectionService"]
METHOD = f"/{SERVICE.full_name}/ListProjections"
PATIENCE = 20.0
"""Seconds until a test that waits for something gives up."""


async def answer(request: Message, call: Call) -> Message:
    return projection.ListProjectionsResponse(feed_head=7)


def raw(channel: grpc.aio.Channel, method: str = METHOD) -> "grpc.aio.UnaryUnaryMultiCallable[bytes, Any]":
    """The method, for requests that are bytes already."""
    return channel.unary_unary(
        method,
        request_serializer=bytes,
        response_deserializer=projection.ListProjectionsResponse.FromString,
    )


class Waiting:
    """A behaviour that waits until it is released, and says when it was cancelled instead."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.release = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def __call__(self, request: Message, call: Call) -> Message:
        self.entered.set()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return await answer(request, call)


@pytest.fixture
async def waiting() -> Waiting:
    return Waiting()


async def reached(event: asyncio.Event) -> None:
    async with asyncio.timeout(PATIENCE):
        await event.wait()


async def in_thread(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, PATIENCE)


class Servicer:
    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour

    async def ListProjections(self, request: Message, call: Call) -> Message | bytes:
        return await self.behaviour(request, call)


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
        self, behaviour: Behaviour = answer, *, components: tuple[Component, ...] = (), **server: Any
    ) -> Served: ...


@pytest.fixture(params=["native", "grpcio"])
def transport(request: pytest.FixtureRequest) -> Transport:
    chosen: Transport = request.param
    return chosen


def application(
    behaviour: Behaviour,
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
        services=(Service(SERVICE, Servicer(behaviour)),),
        ready=ready or always,
        components=components,
    )


async def start(exits: AsyncExitStack, application: Application, ready: asyncio.Event | None = None) -> Served:
    """Serves it until `exits` does, with a channel to it."""
    running = RunningApplication(application)
    await running.start()
    exits.push_async_callback(running.stop)
    channel = await exits.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{running.port}"))
    return Served(running, channel, ready or asyncio.Event())


def native_settings(**server: Any) -> ServerSettings:
    return ServerSettings(**{"port": 0, "transport": "native", "drain_seconds": 0, **server})


@pytest.fixture
async def serve(transport: Transport) -> AsyncIterator[Serve]:
    """Serves a behaviour on the transport until the test ends; takes ServerSettings by name."""
    async with AsyncExitStack() as exits:

        async def serve_it(
            behaviour: Behaviour = answer, *, components: tuple[Component, ...] = (), **server: Any
        ) -> Served:
            settings = ServerSettings(**{"port": 0, "transport": transport, "drain_seconds": 0, **server})
            ready = asyncio.Event()
            ready.set()

            async def is_ready() -> bool:
                return ready.is_set()

            return await start(exits, application(behaviour, settings, components=components, ready=is_ready), ready)

        yield serve_it
