"""The grpcio transport: grpc.aio, for networks and TLS. Workers answer its calls as they do the native transport's."""

import asyncio
import ssl
import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, NoReturn

import grpc
from google.rpc.status_pb2 import Status
from grpc import aio

from tandem.runtime.call import (
    CODES,
    AddServicers,
    Admission,
    Context,
    Metadata,
    Method,
    RemoteCall,
    StreamCall,
    StreamMethod,
    StreamMethods,
    trailers_of,
)
from tandem.runtime.connections import COUNTED_BYTES, Connections, Sent
from tandem.runtime.errors import InvalidArgument, Overloaded, UnknownMethod, Violation, to_status
from tandem.runtime.settings import ServerSettings, SettingsError, TlsSettings, grpc_options
from tandem.runtime.worker import Worker, Workers

# Calls whose requests are not all here, of which one connection may have as many as are free: at first all that grpcio
# hands over at once. A call's objects take 18 kB, and what has come of its request.
_MAX_UNFINISHED = 8_000


class GrpcioTransport:
    """Listens from when it is made, and takes calls from `start` on. Made on the event loop."""

    def __init__(self, address: str, settings: ServerSettings, admission: Admission) -> None:
        """Raises OSError for an address that is taken, SettingsError for wrong certificates."""
        self._admission = admission
        self._connections = Connections(settings)
        self._unfinished = _Unfinished(self._connections, settings.request_seconds)
        self._server = aio.server(options=grpc_options(settings))
        credentials = _credentials(settings.tls) if settings.tls is not None else None
        try:
            self.port: int = (
                self._server.add_insecure_port(address)
                if credentials is None
                else self._server.add_secure_port(address, credentials)
            )
        except RuntimeError as error:
            raise OSError(str(error)) from error

    async def start(self, workers: Workers, streams: StreamMethods, add_servicers: AddServicers) -> None:
        handlers: dict[str, Any] = {
            path: grpc.stream_unary_rpc_method_handler(_unary(method, worker, self._admission, self._unfinished))
            for path, (method, worker) in workers.items()
        }
        for path, stream in streams.items():
            handlers[path] = grpc.stream_stream_rpc_method_handler(_stream(stream, self._unfinished))
        self._server.add_generic_rpc_handlers((_Handlers(handlers),))
        add_servicers(self._server)
        await self._server.start()
        self._connections.start(self.port)

    async def stop(self, grace: float) -> None:
        await asyncio.to_thread(self._connections.stop)
        await self._server.stop(grace)


class _Handlers(grpc.GenericRpcHandler):
    """By path. Without serialisers: bytes come and bytes go."""

    def __init__(self, handlers: Mapping[str, Any]) -> None:
        self._handlers = handlers

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return self._handlers.get(handler_call_details.method)


def refuse_others(server: aio.Server) -> None:
    """Answers methods that nobody has added so far, with details as all errors have them. To be called last."""
    server.add_generic_rpc_handlers((_Unknown(),))


class _Unknown(grpc.GenericRpcHandler):
    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        status = to_status(UnknownMethod(handler_call_details.method))

        async def refuse(_requests: object, context: aio.ServicerContext[Any, Any]) -> None:
            await abort(context, status)

        return grpc.stream_stream_rpc_method_handler(refuse)


class _Received(Context):
    """What grpcio says of a call."""

    def __init__(self, context: aio.ServicerContext[Any, Any]) -> None:
        self.came_at = time.monotonic()
        self._context = context
        # Now: asked later it says less.
        self._remaining = context.time_remaining()

    def metadata(self) -> Metadata:
        return tuple(self._context.invocation_metadata() or ())

    def _time_remaining(self) -> float | None:
        return self._remaining


class _Call(_Received, RemoteCall):
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


class _Unfinished:
    """Reads the one request of each call; bounds those that are not all here, in number and in time.

    grpcio's own way to do so never answers a call that ends without a message, and waits for ever for the rest of one.
    So all RPCs are, for grpcio, of the kind that takes a stream.
    """

    def __init__(self, connections: Connections, seconds: float) -> None:
        self.connections = connections
        self._seconds = seconds
        self._by_peer: defaultdict[str, int] = defaultdict(int)
        self._all = 0

    async def request(self, context: aio.ServicerContext[Any, Any]) -> bytes:
        """Ends the call, for grpcio, where there is none. A caller may have as many of these as are free."""
        peer = context.peer()
        by_peer = self._by_peer
        if by_peer.get(peer, 0) >= _MAX_UNFINISHED - self._all:
            await abort(context, to_status(Overloaded("too many requests are not finished")))
        by_peer[peer] += 1
        self._all += 1
        try:
            async with asyncio.timeout(self._seconds):
                payload: Any = await context.read()
        except TimeoutError:
            payload = aio.EOF
        finally:
            self._all -= 1
            by_peer[peer] -= 1
            if not by_peer[peer]:
                del by_peer[peer]
        if payload is aio.EOF:
            wrong = Violation("", f"the call ended, or {self._seconds:g} s passed, without a request", "MALFORMED")
            await abort(context, to_status(InvalidArgument([wrong])))
        connection = self.connections.of(peer)
        connection.calls += 1
        connection.requests += len(payload)
        request: bytes = payload
        return request


def _unary(method: Method, worker: Worker, admission: Admission, unfinished: _Unfinished) -> Any:
    async def answer(_requests: object, context: aio.ServicerContext[Any, Any]) -> bytes:
        payload = await unfinished.request(context)
        call = _Call(method, payload, context)
        worker.put_all(admission.admit([call]))
        try:
            outcome = await call.outcome
        except asyncio.CancelledError:
            call.caller_left()
            raise
        if not isinstance(outcome, bytes):
            await abort(context, outcome)
        if len(outcome) > COUNTED_BYTES:
            unfinished.connections.give(context.peer(), len(outcome))
        return outcome

    return answer


class _StreamCall(_Received, StreamCall):
    pass


def _stream(method: StreamMethod, unfinished: _Unfinished) -> Any:
    async def answer(_requests: object, context: aio.ServicerContext[Any, Any]) -> None:
        payload = await unfinished.request(context)
        sent = Sent(unfinished.connections, context.peer())

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


async def abort(context: aio.ServicerContext[Any, Any], status: Status) -> NoReturn:
    """Ends a call of grpcio's with an error."""
    await context.abort(CODES[status.code], status.message, trailers_of(status))
    raise AssertionError("abort() returned")


def _credentials(tls: TlsSettings) -> grpc.ServerCredentials:
    """Raises SettingsError: grpcio would say of a bad certificate what it says of a port in use."""
    try:
        pair = (tls.key_file.read_bytes(), tls.certificate_file.read_bytes())
        client_ca = tls.client_ca_file.read_bytes() if tls.client_ca_file else None
    except OSError as error:
        raise SettingsError(f"tls: {error}") from error
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # Without the password OpenSSL would ask the terminal for one.
        context.load_cert_chain(tls.certificate_file, tls.key_file, password=lambda: "")
    except ssl.SSLError as error:
        raise SettingsError(f"tls: {tls.certificate_file} and {tls.key_file} are no pair: {error}") from error
    try:
        if tls.client_ca_file:
            context.load_verify_locations(tls.client_ca_file)
    except ssl.SSLError as error:
        raise SettingsError(f"tls: {tls.client_ca_file} is no certificate: {error}") from error
    return grpc.ssl_server_credentials([pair], client_ca, require_client_auth=client_ca is not None)
