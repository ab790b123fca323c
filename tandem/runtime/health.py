"""Health and reflection: the libraries' servicers, with limits; their requests are decoded as all others are.

Health answers three questions, by the name that is asked for:

    ""                  readiness: can the server answer calls? Its stores are there, and all its threads run
    a service's name    the same of one service, which may need other stores, or no view that stands
    "liveness"          does it move? No store is asked: where one is away, a new process would be no better
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from tandem.runtime.call import Guard, Servicer, Servicers
from tandem.runtime.errors import NotFound, Overloaded
from tandem.runtime.telemetry import STREAMS_OPEN

_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
LIVENESS = "liveness"
# What of a name that is not known is said again.
_MAX_NAME = 200


class _Descriptors:
    """The program's descriptors, by every name that they have.

    Protobuf's pool finds no method, and a value of an enum by the name of its package alone.
    """

    def __init__(self) -> None:
        self._pool = descriptor_pool.Default()

    def FindFileContainingSymbol(self, name: str) -> FileDescriptor:  # noqa: N802 - as the pool has it
        """Raises KeyError."""
        try:
            return self._pool.FindFileContainingSymbol(name)
        except KeyError:
            holder, _, member = name.rpartition(".")
            file = self._pool.FindFileContainingSymbol(holder)
            service = file.services_by_name.get(holder.removeprefix(f"{file.package}."))
            if service is not None and member in service.methods_by_name:
                return file
            if member in self._pool.FindEnumTypeByName(holder).values_by_name:
                return file
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)


class Health(health.aio.HealthServicer):  # type: ignore[misc]
    """The library's, with a limit, and watches that a stopping server can end: it would wait for them as for calls."""

    def __init__(self, services: Sequence[str], max_streams: int, is_alive: Callable[[], bool]) -> None:
        """max_streams: watches and reflection streams that are open at once. is_alive: whether all that has something
        to do goes on; it must not wait.
        """
        super().__init__()
        self._is_alive = is_alive
        self._services = services
        self._max_streams = max_streams
        self._open = 0
        self._watches: set[asyncio.Task[None]] = set()

    def servicers(self, new_guard: Callable[[str], Guard | None], *, with_reflection: bool) -> Servicers:
        """new_guard: of a path, for reflection. Health is answered to everybody."""
        servicers = {
            f"/{_HEALTH}/Check": Servicer(health_pb2.HealthCheckRequest, self._check),
            f"/{_HEALTH}/Watch": Servicer(health_pb2.HealthCheckRequest, self._watch),
        }
        if with_reflection:
            names = [*self._services, _HEALTH, reflection.SERVICE_NAME]
            library = reflection.aio.ReflectionServicer(names, pool=_Descriptors())

            async def reflect(requests: AsyncIterator[Any], context: Any) -> None:
                with self._one_more("ServerReflectionInfo"):
                    async for response in library.ServerReflectionInfo(requests, context):
                        await context.write(response)

            path = f"/{reflection.SERVICE_NAME}/ServerReflectionInfo"
            servicers[path] = Servicer(reflection_pb2.ServerReflectionRequest, reflect, new_guard(path))
        return servicers

    def end_watches(self) -> None:
        """Ends the streams of those who watch now; they have been told the last state."""
        for watch in self._watches:
            watch.cancel()

    async def _check(self, requests: AsyncIterator[Any], context: Any) -> None:
        request = await anext(requests)
        if request.service == LIVENESS:
            # Also while it stops: it goes on doing so. An event loop that does not go on answers nothing.
            await context.write(health_pb2.HealthCheckResponse(status=status_of(self._is_alive())))
            return
        if request.service not in ("", *self._services):
            raise NotFound("service", request.service[:_MAX_NAME])
        await context.write(await self.Check(request, context))

    async def _watch(self, requests: AsyncIterator[Any], context: Any) -> None:
        with self._one_more("Watch"):
            watch = asyncio.create_task(self.Watch(await anext(requests), context))
            self._watches.add(watch)
            try:
                await asyncio.wait({watch})
            finally:
                self._watches.discard(watch)
                watch.cancel()
                await asyncio.wait({watch})
                # Asked for in any case: asyncio logs what nobody has asked for.
                failure = None if watch.cancelled() else watch.exception()
            # To write to a caller that has gone fails, and concerns nobody.
            if failure is not None and not context.cancelled():
                raise failure

    @contextlib.contextmanager
    def _one_more(self, method: str) -> Iterator[None]:
        """Raises Overloaded past the limit."""
        if self._open >= self._max_streams:
            raise Overloaded(f"{self._open} such streams are open already")
        self._open += 1
        STREAMS_OPEN.labels(method).inc()
        try:
            yield
        finally:
            self._open -= 1
            STREAMS_OPEN.labels(method).dec()


def status_of(well: bool) -> "health_pb2.HealthCheckResponse.ServingStatus":
    return health_pb2.HealthCheckResponse.SERVING if well else health_pb2.HealthCheckResponse.NOT_SERVING
