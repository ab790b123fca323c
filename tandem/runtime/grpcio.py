"""The grpcio transport: grpc.aio, for networks and TLS. Workers answer its calls as they do the native transport's."""

import asyncio
import time
from typing import Any

import grpc
from google.rpc.status_pb2 import Status
from grpc import aio

from tandem.runtime.call import (
    Guards,
    Method,
    RemoteCall,
    Servicers,
    StreamCall,
    StreamMethod,
    StreamMethods,
)
from tandem.runtime.certificates import Certificates
from tandem.runtime.connections import COUNTED_BYTES, Connections, Sent, connections_of
from tandem.runtime.errors import (
    TandemError,
    code_of,
    to_status,
)
from tandem.runtime.grpcio_requests import Handlers, Received, Requests, abort
from tandem.runtime.settings import ServerSettings, grpc_options
from tandem.runtime.worker import Worker, Workers


class GrpcioTransport:
    """Listens from when it is made, and takes calls from `start` on. Made on the event loop."""

    def __init__(self, address: str, settings: ServerSettings, guards: Guards) -> None:
        """Raises OSError for an address that is taken, SettingsError for wrong certificates."""
        self._guards = guards
        self._connections = connections_of(settings)
        self._requests = Requests(settings, self._connections.take)
        self._server = aio.server(options=[*grpc_options(settings), *_age(settings.max_connection_age_seconds)])
        credentials = Certificates(settings.tls).credentials if settings.tls is not None else None
        try:
            self.port: int = (
                self._server.add_insecure_port(address)
                if credentials is None
                else self._server.add_secure_port(address, credentials)
            )
        except RuntimeError as error:
            raise OSError(str(error)) from error

    async def start(self, workers: Workers, streams: StreamMethods, servicers: Servicers) -> None:
        handlers: dict[str, Any] = {
            path: grpc.stream_unary_rpc_method_handler(
                _unary(method, worker, self._guards, self._requests, self._connections)
            )
            for path, (method, worker) in workers.items()
        }
        for path, stream in streams.items():
            handlers[path] = grpc.stream_stream_rpc_method_handler(_stream(stream, self._requests, self._connections))
        self._server.add_generic_rpc_handlers((Handlers(handlers, servicers, self._requests, self._guards.of),))
        await self._server.start()
        self._connections.start(self.port)

    async def stop(self, grace: float) -> None:
        await asyncio.to_thread(self._connections.stop)
        await self._server.stop(grace)


def _age(seconds: float) -> list[tuple[str, int]]:
    """Options, for connections that callers make: what is under way has no limit, so a watch goes on in an old one."""
    return [("grpc.max_connection_age_ms", round(seconds * 1000))] if seconds else []


class _Call(Received, RemoteCall):
    """Workers answer it from their threads; the coroutine that grpcio runs waits for `outcome` on the loop."""

    def __init__(self, method: Method, payload: bytes, context: aio.ServicerContext[Any, Any]) -> None:
        super().__init__(context)
        self.method = method
        self.payload = payload
        self._loop = asyncio.get_running_loop()
        self.outcome: asyncio.Future[bytes | Status] = self._loop.create_future()

    def _send(self, response: bytes) -> None:
        self._loop.call_soon_threadsafe(self._resolve, response)

    def _send_failure(self, status: Status) -> None:
        self._loop.call_soon_threadsafe(self._resolve, status)

    def _forget(self) -> None:
        """The coroutine was cancelled, and nobody waits any more."""

    def _resolve(self, outcome: bytes | Status) -> None:
        if not self.outcome.done():
            self.outcome.set_result(outcome)


def _unary(method: Method, worker: Worker, guards: Guards, requests: Requests, connections: Connections) -> Any:
    async def answer(_requests: object, context: aio.ServicerContext[Any, Any]) -> bytes:
        came_at = time.monotonic()
        try:
            payload = await requests.first(context)
        except TandemError as error:
            method.count(code_of(error), time.monotonic() - came_at)
            await abort(context, to_status(error))
        call = _Call(method, payload, context)
        worker.put_all(guards.admit([call]))
        try:
            outcome = await call.outcome
        except asyncio.CancelledError:
            call.caller_left()
            raise
        if not isinstance(outcome, bytes):
            await abort(context, outcome)
        if len(outcome) > COUNTED_BYTES:
            connections.give(context.peer(), len(outcome))
        return outcome

    return answer


class _StreamCall(Received, StreamCall):
    pass


def _stream(method: StreamMethod, requests: Requests, connections: Connections) -> Any:
    async def answer(_requests: object, context: aio.ServicerContext[Any, Any]) -> None:
        try:
            payload = await requests.first(context)
        except TandemError as error:
            method.count(code_of(error))
            await abort(context, to_status(error))
        sent = Sent(connections, context.peer())

        async def write(data: bytes) -> None:
            sent.add(len(data))
            await context.write(data)

        try:
            failure = await method.run(_StreamCall(context), payload, write)
        except asyncio.CancelledError:
            sent.drop()
            raise
        if failure is not None:
            await abort(context, failure)

    return answer
