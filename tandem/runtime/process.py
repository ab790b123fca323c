"""A service's process: the gRPC server, health, reflection, what runs beside them, and a stop that loses nothing."""

import asyncio
import contextlib
import gc
import signal
import ssl
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import grpc
import uvloop
from google.protobuf.descriptor import ServiceDescriptor
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from tandem.runtime.calls import Admission, AnswerAtOnce, AnswerLater, Streams
from tandem.runtime.health import Health
from tandem.runtime.native import NativeServer
from tandem.runtime.rpc import add_service
from tandem.runtime.settings import ServerSettings, SettingsError, TlsSettings
from tandem.runtime.telemetry import log, serve_metrics

# How often readiness is asked again. Orchestrators probe every few seconds; a store's return should not wait for more.
_READINESS_SECONDS = 1.0
# Clients that keep idle connections open ping; the default minimum of 5 minutes would close them (too_many_pings).
_MIN_PING_MILLISECONDS = 10_000
# A connection that is gone without a word (a power cut, a network that drops packets) is found out after this and its
# streams end. They would stay for as long as TCP repeats, a quarter of an hour, or for ever when nothing is sent.
_PING_MILLISECONDS = 60_000
_PING_TIMEOUT_MILLISECONDS = 20_000
# Far above what a process serves: past our own limits a caller gets a status, past this one its calls wait in silence.
_MAX_STREAMS_PER_CONNECTION = 100_000
# Calls that came in and that grpcio has not handed over yet. Past its own limit of 1,000 it drops some of them with a
# bare CANCELLED: a thousand watchers that come back at once after a failover are as many.
_MAX_PENDING_CALLS = 100_000
# Until a transport's threads have written what they were given: they take microseconds, on a busy machine more.
_FLUSH_SECONDS = 0.1


class Component(Protocol):
    """Something that runs beside the server: started before it, in order, and stopped after it, in reverse."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


Readiness = Callable[[], Awaitable[bool]]


@dataclass(frozen=True)
class Service:
    """A service of the contract and the object that has a method for each of its RPCs.

    ready: whether this one's calls can be answered now; None where the application's own readiness says it.
    shortcuts: of RPCs that can often be answered at once, by name. later: of RPCs that are answered from threads.
    """

    descriptor: ServiceDescriptor
    servicer: object
    ready: Readiness | None = None
    shortcuts: Mapping[str, AnswerAtOnce] = field(default_factory=dict)
    later: Mapping[str, AnswerLater] = field(default_factory=dict)


@dataclass(frozen=True)
class Application:
    """A service, wired. `build(settings)` of each service makes one and that is all the wiring there is."""

    name: str
    server: ServerSettings
    services: Sequence[Service]
    ready: Readiness
    """Whether calls can be answered now: its stores are there and their schema is the one this program needs."""
    components: Sequence[Component] = field(default_factory=tuple)
    new_objects: int = 20_000
    """More objects than before, after which the garbage collector looks at the new ones; Python's own number is 700."""


class PortInUse(Exception):
    """The port to listen on is taken; the message names it."""


class RunningApplication:
    """A started application; `port` is the one it listens on."""

    def __init__(self, application: Application) -> None:
        self._application = application
        self._admission = Admission(application.server.max_concurrent_calls)
        self._streams = Streams()
        self._health = Health()
        self._readiness: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._started: list[Component] = []
        self._stop_metrics: Callable[[], None] = lambda: None
        self._server = _new_server(application.server)
        self.port = 0

    async def start(self) -> None:
        """Starts components, then the server. Raises PortInUse; what was started is stopped again then."""
        application = self._application
        try:
            self.port = _bind(self._server, application.server)
            for component in application.components:
                await component.start()
                self._started.append(component)
            for service in application.services:
                add_service(
                    self._server,
                    service.descriptor,
                    service.servicer,
                    admission=self._admission,
                    streams=self._streams,
                    shortcuts=service.shortcuts,
                    later=service.later,
                )
            health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
            if application.server.reflection:
                names = [service.descriptor.full_name for service in application.services]
                reflection.enable_server_reflection(
                    (*names, "grpc.health.v1.Health", reflection.SERVICE_NAME), self._server
                )
            self._stop_metrics = _start_metrics(application.server)
            await self._ask_readiness()
            await self._server.start()
        except BaseException:
            # What could not be stopped is in the log; what could not be started is what the caller wants to know.
            await self._stop_components()
            self._stop_metrics()
            raise
        self._readiness = asyncio.create_task(self._follow_readiness())
        log.info("serving", host=application.server.host, port=self.port, transport=transport_of(application.server))

    async def stop(self) -> None:
        """Says NOT_SERVING, refuses new calls, ends streams, lets calls under way finish, stops the components.

        Raises ExceptionGroup when components fail to stop, after all were told to.
        """
        settings = self._application.server
        self._stopping.set()
        log.info("stopping")
        try:
            await self._health.enter_graceful_shutdown()
            await asyncio.sleep(settings.drain_delay_seconds)
            self._health.end_watches()
            await self._drain()
        finally:
            await self._end_readiness()
            # Whatever happens to the transport: components hold locks and buffers that others wait for.
            failures = await self._stop_components()
            self._stop_metrics()
        if failures:
            raise ExceptionGroup("components failed to stop", failures)
        log.info("stopped")

    async def _drain(self) -> None:
        # The transports' own stop() closes connections as soon as the last handler has returned, some with answers
        # still unwritten: the native one often, grpcio now and then. So calls are waited for before it.
        seconds = self._application.server.drain_seconds
        await asyncio.gather(self._admission.close(seconds), self._streams.close(seconds))
        await asyncio.sleep(_FLUSH_SECONDS)
        await self._server.stop(_FLUSH_SECONDS)

    async def _end_readiness(self) -> None:
        """A check under way may have a connection of a component's in a thread: it is waited for, within reason."""
        if self._readiness is None:
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._readiness, _READINESS_SECONDS)

    async def _stop_components(self) -> list[Exception]:
        """Stops all of them, whatever one of them does, and returns what went wrong."""
        failures = []
        while self._started:
            component = self._started.pop()
            try:
                await component.stop()
            except Exception as error:
                log.exception("a component failed to stop", component=type(component).__name__)
                failures.append(error)
        return failures

    async def _follow_readiness(self) -> None:
        while not self._stopping.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), _READINESS_SECONDS)
                return
            await self._ask_readiness()

    async def _ask_readiness(self) -> None:
        ready = await self._is_ready(self._application.ready)
        await self._set_health("", ready)
        for service in self._application.services:
            own = ready if service.ready is None else await self._is_ready(service.ready)
            await self._set_health(service.descriptor.full_name, own)

    async def _is_ready(self, ready: Readiness) -> bool:
        try:
            return await ready()
        except Exception:
            # A bug; what it must not do is end the watch and leave the last answer standing for ever.
            log.exception("the readiness check failed")
            return False

    async def _set_health(self, name: str, ready: bool) -> None:
        status = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        await self._health.set(name, status)


def run(application: Application) -> int:
    """Runs until SIGTERM or SIGINT; returns the exit code. What stops it early is said on standard error."""
    try:
        uvloop.run(_serve_until_signalled(application))
    except (PortInUse, SettingsError) as error:
        sys.stderr.write(f"{application.name}: {error}\n")
        return 1
    return 0


async def _serve_until_signalled(application: Application) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def ask_to_stop(_number: int, _frame: object) -> None:
        loop.call_soon_threadsafe(stop.set)

    # Not the loop's own handlers: removing those leaves a moment in which a second signal kills.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask_to_stop)
    running = RunningApplication(application)
    await running.start()
    _collect_seldom(application.new_objects)
    await stop.wait()
    await running.stop()
    # Stopped well: a second signal, while the interpreter ends, must not make it look like a crash.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _collect_seldom(new_objects: int) -> None:
    """Has the garbage collector look less often, and not at what the program itself is made of.

    A batch makes thousands of objects and leaves no cycles: to look at them took a tenth of the time of an order.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(new_objects)


def transport_of(settings: ServerSettings) -> Literal["native", "grpcio"]:
    """Which transport serves: native wherever it can."""
    return "grpcio" if settings.transport == "grpcio" or settings.tls is not None else "native"


def _new_server(settings: ServerSettings) -> aio.Server:
    options: list[tuple[str, int]] = [
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        ("grpc.http2.min_ping_interval_without_data_ms", _MIN_PING_MILLISECONDS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.keepalive_time_ms", _PING_MILLISECONDS),
        ("grpc.keepalive_timeout_ms", _PING_TIMEOUT_MILLISECONDS),
        ("grpc.max_concurrent_streams", _MAX_STREAMS_PER_CONNECTION),
        ("grpc.server.max_pending_requests", _MAX_PENDING_CALLS),
        ("grpc.server.max_pending_requests_hard_limit", _MAX_PENDING_CALLS),
        ("grpc.so_reuseport", 0),
    ]
    if transport_of(settings) == "grpcio":
        return aio.server(options=options)
    return NativeServer(options=options, io_threads=settings.io_threads)


def _bind(server: aio.Server, settings: ServerSettings) -> int:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    address = f"{host}:{settings.port}"
    try:
        if settings.tls is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, _credentials(settings.tls))
    except RuntimeError as error:
        raise PortInUse(
            f"cannot listen on {address}: the port is in use, or the address is not this machine's"
        ) from error


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


def _start_metrics(settings: ServerSettings) -> Callable[[], None]:
    try:
        return serve_metrics(settings.host, settings.metrics_port)
    except OSError as error:
        raise PortInUse(f"cannot serve metrics on {settings.host}:{settings.metrics_port}: {error.strerror}") from error
