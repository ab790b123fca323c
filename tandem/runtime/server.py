"""A service's process: the gRPC server, health, reflection, what runs beside them, and a stop that loses nothing."""

import asyncio
import contextlib
import ctypes
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import uvloop
from google.protobuf import message_factory
from google.protobuf.descriptor import ServiceDescriptor
from prometheus_client import start_http_server

from tandem.runtime.call import Method, Servicers, StreamHandler, StreamMethod, StreamMethods, Streams
from tandem.runtime.grpcio import GrpcioTransport
from tandem.runtime.guards import Guards
from tandem.runtime.health import LIVENESS, Health, status_of
from tandem.runtime.native import NativeTransport
from tandem.runtime.settings import UNIX_SOCKET, ServerSettings, SettingsError
from tandem.runtime.supervised import supervise, what_is_down, what_stands_still
from tandem.runtime.telemetry import LOOP_DELAY, SERVING, log, note_process
from tandem.runtime.worker import Worker, Workers

# How often readiness is asked again. Orchestrators probe every few seconds; a store's return should not wait for more.
_READINESS_SECONDS = 1.0
# A check that takes longer is a no, until it has ended: what it asks does not answer.
_CHECK_SECONDS = 2.0
# Until a transport's threads have written what they were given: they take microseconds, on a busy machine more.
_FLUSH_SECONDS = 0.1
# A socket is its user's and its group's, whatever the umask of the process is.
_SOCKET_UMASK = 0o007
# malloc.h
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


class Component(Protocol):
    """Something that runs beside the server: started before it, in order, and stopped after it, in reverse."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


Readiness = Callable[[], Awaitable[bool]]


@dataclass(frozen=True)
class Service:
    """A service of the contract, and who answers each of its RPCs, by name.

    workers: of the unary RPCs; they are among the application's components too. streams: of those that `returns (stream
    …)`. ready: whether this service's calls can be answered now; None where the application's own readiness says it.
    owner_fields: of RPCs about rows that have owners: the field of the request that names the owner; "" where the
    handler looks at the rows, for `call.owner`. audited: whether each call is an operator's, and logged.
    personal_data: RPCs whose answers show it to whoever may call them.
    Raises ValueError unless each RPC is answered by exactly one of them.
    """

    descriptor: ServiceDescriptor
    workers: Mapping[str, Worker]
    streams: Mapping[str, StreamHandler] = field(default_factory=dict)
    ready: Readiness | None = None
    owner_fields: Mapping[str, str] = field(default_factory=dict)
    audited: bool = False
    personal_data: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        methods = self.descriptor.methods
        unary = {it.name for it in methods if not it.client_streaming and not it.server_streaming}
        streamed = {it.name for it in methods if not it.client_streaming and it.server_streaming}
        wrong = {
            "no worker for": unary - self.workers.keys(),
            "no stream for": streamed - self.streams.keys(),
            "a worker for what is no unary RPC": self.workers.keys() - unary,
            "a stream for what is no server-streaming RPC": self.streams.keys() - streamed,
            "clients cannot stream": {it.name for it in methods if it.client_streaming},
        }
        problems = [f"{problem}: {', '.join(sorted(names))}" for problem, names in wrong.items() if names]
        if problems:
            raise ValueError(f"{self.descriptor.full_name}: {'; '.join(problems)}")


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


class Transport(Protocol):
    """What serves calls: `native` or `grpcio`. It listens from when it is made."""

    port: int

    async def start(self, workers: Workers, streams: StreamMethods, servicers: Servicers) -> None: ...

    async def stop(self, grace: float) -> None:
        """Cancels what is under way after `grace` seconds, and closes all connections."""


class RunningApplication:
    """A started application; `port` is the one it listens on."""

    def __init__(self, application: Application) -> None:
        self._application = application
        self._guards = Guards(application.server)
        self._streams = Streams()
        services = [it.descriptor.full_name for it in application.services]
        self._health = Health(services, application.server.max_health_streams, self._is_alive)
        reflection = application.server.reflection
        self._servicers = self._health.servicers(
            self._guards.add,
            with_reflection=not application.server.authenticates if reflection is None else reflection,
        )
        self._readiness: asyncio.Task[None] | None = None
        self._checks: dict[Readiness, asyncio.Future[bool]] = {}
        """Those under way: while one does not end, no other is begun, which would wait for the same."""
        self._stopping = asyncio.Event()
        self._started: list[Component] = []
        self._stop_metrics: Callable[[], None] = lambda: None
        self._transport: Transport | None = None
        self.port = 0

    async def start(self) -> None:
        """Starts components, then the server. Raises PortInUse; what was started is stopped again then."""
        application = self._application
        note_process(application.name, transport_of(application.server))
        try:
            transport = self._transport = _listen(application.server, self._guards)
            self.port = transport.port
            routes = self._routes()
            self._guards.start()
            for component in application.components:
                await component.start()
                self._started.append(component)
            self._stop_metrics = _serve_metrics(_host(application.server), application.server.metrics_port)
            await self._ask_readiness()
            await transport.start(*routes, self._servicers)
        except BaseException:
            # What could not be stopped is in the log; what could not be started is what the caller wants to know.
            if self._transport is not None:
                await self._transport.stop(0)
            await self._stop_components()
            await self._stop_rest()
            raise
        self._readiness = asyncio.create_task(supervise("readiness", self._follow_readiness))
        log.info("serving", host=application.server.host, port=self.port, transport=transport_of(application.server))

    def _routes(self) -> tuple[Workers, StreamMethods]:
        settings = self._application.server
        max_request_bytes, max_response_bytes = settings.max_request_bytes, settings.max_response_bytes
        workers: dict[str, tuple[Method, Worker]] = {}
        streams: dict[str, StreamMethod] = {}
        for service in self._application.services:
            for rpc in service.descriptor.methods:
                path = f"/{service.descriptor.full_name}/{rpc.name}"
                request_class = message_factory.GetMessageClass(rpc.input_type)
                guard = self._guards.add(
                    path,
                    owner_field=service.owner_fields.get(rpc.name),
                    audited=service.audited,
                    personal_data=rpc.name in service.personal_data,
                )
                if rpc.server_streaming:
                    handler = service.streams[rpc.name]
                    streams[path] = StreamMethod(
                        rpc.name, request_class, handler, self._streams, max_request_bytes, max_response_bytes, guard
                    )
                else:
                    method = Method(rpc.name, request_class, self._guards.admission, max_response_bytes, guard)
                    workers[path] = method, service.workers[rpc.name]
        return workers, streams

    async def stop(self) -> None:
        """Says NOT_SERVING, refuses new calls, ends streams, lets calls under way finish, stops the components.

        Raises ExceptionGroup when components fail to stop, after all were asked to.
        """
        settings = self._application.server
        self._stopping.set()
        log.info("stopping")
        try:
            await self._health.enter_graceful_shutdown()
            await asyncio.sleep(settings.drain_delay_seconds)
            self._health.end_watches()
            # The transports' own stop() closes connections as soon as the last handler has returned, some with answers
            # still unwritten: the native one often, grpcio now and then. So calls are waited for before it.
            seconds = settings.drain_seconds
            await asyncio.gather(self._guards.admission.close(seconds), self._streams.close(seconds))
            await asyncio.sleep(_FLUSH_SECONDS)
            assert self._transport is not None, "started"
            await self._transport.stop(_FLUSH_SECONDS)
        finally:
            # A check under way may have a connection of a component's in a thread: it is waited for, within reason.
            if self._readiness is not None:
                checks: set[asyncio.Future[Any]] = {self._readiness, *self._checks.values()}
                _, endless = await asyncio.wait(checks, timeout=_READINESS_SECONDS)
                for check in endless:
                    check.cancel()
            # Whatever happens to the transport: components hold locks and buffers that others wait for.
            failures = await self._stop_components()
            await self._stop_rest()
        if failures:
            raise ExceptionGroup("components failed to stop", failures)
        log.info("stopped")

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

    async def _stop_rest(self) -> None:
        self._stop_metrics()
        await asyncio.to_thread(self._guards.stop)

    async def _follow_readiness(self) -> None:
        while not self._stopping.is_set():
            due = time.monotonic() + _READINESS_SECONDS
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), _READINESS_SECONDS)
                return
            LOOP_DELAY.observe(max(0.0, time.monotonic() - due))
            await self._ask_readiness()

    async def _ask_readiness(self) -> None:
        services = self._application.services
        checks = {"": self._application.ready, **{it.descriptor.full_name: it.ready for it in services if it.ready}}
        ready = dict(zip(checks, await asyncio.gather(*map(self._is_ready, checks.values())), strict=True))
        if down := what_is_down():
            log.error("not serving: a thread does not run", threads=down)
            ready = dict.fromkeys(ready, False)
        if not self._guards.ready:
            # Callers would be asked who they are, and nobody could tell.
            ready = dict.fromkeys(ready, False)
        for name in ("", *(it.descriptor.full_name for it in services)):
            serves = ready.get(name, ready[""])
            SERVING.labels(name or "all").set(serves)
            await self._health.set(name, status_of(serves))
        # For those who watch it.
        await self._health.set(LIVENESS, status_of(self._is_alive()))

    def _is_alive(self) -> bool:
        if still := what_stands_still(self._application.server.still_seconds):
            log.error("not alive: what has something to do does not go on", threads=still)
        return not still

    async def _is_ready(self, ready: Readiness) -> bool:
        check = self._checks.get(ready)
        if check is None:
            check = self._checks[ready] = asyncio.ensure_future(ready())
        await asyncio.wait({check}, timeout=_CHECK_SECONDS)
        if not check.done():
            return False
        self._checks.pop(ready, None)
        try:
            return check.result()
        except Exception:
            # A bug; what it must not do is end the watch and leave the last answer standing for ever.
            log.exception("the readiness check failed")
            return False


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
    if transport_of(application.server) == "native":
        _keep_large_blocks(application.server.max_held_bytes_per_connection)
    running = RunningApplication(application)
    await running.start()
    _collect_seldom(application.new_objects)
    await stop.wait()
    _end_in_time(application.server)
    await running.stop()
    # Stopped well: a second signal, while the interpreter ends, must not make it look like a crash.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _end_in_time(settings: ServerSettings) -> None:
    """One bound for the whole stop, to the interpreter's end: what waits for whatever reason is left behind then."""
    seconds = settings.drain_delay_seconds + settings.drain_seconds + settings.stop_seconds

    def end() -> None:
        log.error(
            "not stopped in time, ending as it is", seconds=seconds, threads=[it.name for it in threading.enumerate()]
        )
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


def _collect_seldom(new_objects: int) -> None:
    """Has the garbage collector look less often, and not at what the program itself is made of.

    A batch makes thousands of objects and leaves no cycles: to look at them took a tenth of the time of an order.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(new_objects)


def _keep_large_blocks(most: int) -> None:
    """Has glibc keep blocks of memory that are free again, up to so many bytes, whatever the size of a block.

    It gives a block of more than 32 MiB back to the kernel at once. A request of 43 MiB that is refused for its size
    then meets 22,000 page faults, and half of them while the interpreter is held: for 30 ms, and 8 ms with this. grpcio
    hands none of that size over.
    """
    allocator = ctypes.CDLL(None)
    # Other C libraries do not have it, and need not.
    if hasattr(allocator, "mallopt"):
        allocator.mallopt(_M_MMAP_MAX, 0)
        allocator.mallopt(_M_TRIM_THRESHOLD, min(most, 2**31 - 1))


def transport_of(settings: ServerSettings) -> Literal["native", "grpcio"]:
    """Which transport serves: native wherever it can and all callers are on this machine."""
    if settings.transport != "auto":
        return settings.transport
    return "native" if settings.tls is None and settings.is_local else "grpcio"


def _listen(settings: ServerSettings, guards: Guards) -> Transport:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    address = settings.host if settings.host.startswith(UNIX_SOCKET) else f"{host}:{settings.port}"
    make = GrpcioTransport if transport_of(settings) == "grpcio" else NativeTransport
    # Of a Unix socket: whoever connects may be believed to be a sidecar.
    before = os.umask(_SOCKET_UMASK) if settings.host.startswith(UNIX_SOCKET) else None
    try:
        return make(address, settings, guards)
    except OSError as error:
        raise PortInUse(
            f"cannot listen on {address}: the port is in use, or the address is not this machine's"
        ) from error
    finally:
        if before is not None:
            os.umask(before)


def _host(settings: ServerSettings) -> str:
    """For metrics, which Prometheus does not read from a Unix socket."""
    return "127.0.0.1" if settings.host.startswith(UNIX_SOCKET) else settings.host


def _serve_metrics(host: str, port: int) -> Callable[[], None]:
    """Serves the metrics on http://host:port/metrics from a thread; returns what stops it. Port 0 serves nothing."""
    if port == 0:
        return lambda: None
    try:
        server, thread = start_http_server(port, addr=host)
    except OSError as error:
        raise PortInUse(f"cannot serve metrics on {host}:{port}: {error.strerror}") from error

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return stop
