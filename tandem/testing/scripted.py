"""A service that does what a test says, really served, in the test's own event loop."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from google.protobuf.descriptor import ServiceDescriptor

from tandem.runtime.call import Call, StreamCall, StreamHandler
from tandem.runtime.errors import TandemError
from tandem.runtime.server import Application, RunningApplication, Service
from tandem.runtime.settings import ServerSettings
from tandem.runtime.worker import Worker


class Scripted:
    """Answers each RPC with the behaviour of its name; an RPC without one is never called.

    A behaviour gets the request and returns the response or raises a refusal; for a stream it is an async generator.
    """

    def __init__(self, service: ServiceDescriptor, **behaviours: Callable[[Any], Any]) -> None:
        self.service = service
        self.requests: list[Any] = []
        self._behaviours = {method.name: behaviours.get(method.name, _never) for method in service.methods}
        self.worker = Worker("scripted", [self._answer], max_batch=16, max_waiting=1000)

    def served(self) -> Service:
        unary = {it.name: self.worker for it in self.service.methods if not it.server_streaming}
        streams = {it.name: self._stream(it.name) for it in self.service.methods if it.server_streaming}
        return Service(self.service, workers=unary, streams=streams)

    def _answer(self, calls: Sequence[Call]) -> None:
        for call in calls:
            self.requests.append(call.request)
            try:
                call.reply(self._behaviours[call.method.name](call.request))
            except TandemError as refusal:
                call.fail(refusal)

    def _stream(self, name: str) -> StreamHandler:
        async def answer(request: Any, _: StreamCall) -> AsyncGenerator[Any, None]:
            self.requests.append(request)
            async for response in self._behaviours[name](request):
                yield response

        return answer


def _never(request: Any) -> Any:
    raise AssertionError(f"not expected: {request}")


@asynccontextmanager
async def served(*services: Scripted, port: int = 0) -> AsyncIterator[str]:
    """Serves them at one address, which it gives; port: 0 for any."""

    async def ready() -> bool:
        return True

    application = Application(
        name="scripted",
        server=ServerSettings(port=port, transport="grpcio", drain_seconds=0),
        services=[it.served() for it in services],
        components=[it.worker for it in services],
        ready=ready,
    )
    running = RunningApplication(application)
    await running.start()
    try:
        yield f"127.0.0.1:{running.port}"
    finally:
        await running.stop()
