"""A service that does what a test says, really served, in the test's own event loop."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from google.protobuf.descriptor import ServiceDescriptor
from tandem.runtime.process import Application, RunningApplication, Service

from tandem.runtime.settings import ServerSettings


class Scripted:
    """Answers each RPC with the behaviour of its name; an RPC without one is never called.

    A behaviour gets the request and returns the response or raises a refusal; for a stream it is an async generator.
    """

    def __init__(self, service: ServiceDescriptor, **behaviours: Callable[[Any], Any]) -> None:
        self.service = service
        self.requests: list[Any] = []
        for method in service.methods:
            behaviour = behaviours.get(method.name, _never)
            setattr(self, method.name, (self._stream if method.server_streaming else self._unary)(behaviour))

    def _unary(self, behaviour: Callable[[Any], Any]) -> Any:
        async def answer(request: Any, _: object) -> Any:
            self.requests.append(request)
            return behaviour(request)

        return answer

    def _stream(self, behaviour: Callable[[Any], Any]) -> Any:
        async def answer(request: Any, _: object) -> AsyncIterator[Any]:
            self.requests.append(request)
            async for response in behaviour(request):
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
        services=[Service(it.service, it) for it in services],
        ready=ready,
    )
    running = RunningApplication(application)
    await running.start()
    try:
        yield f"127.0.0.1:{running.port}"
    finally:
        await running.stop()
