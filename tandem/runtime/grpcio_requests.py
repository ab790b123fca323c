"""What grpcio hands over: which handler a call gets, and its request, bounded, unpacked and decoded by us.

Both transports have a server of grpcio's: one is it, the other has one for health, reflection and unknown methods.
"""

import asyncio
import contextlib
import time
import zlib
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any, NoReturn

import grpc
from google.protobuf.message import Message
from google.rpc.status_pb2 import Status
from grpc import aio

from tandem.runtime.call import CODES, Context, Guard, Metadata, Servicer, Servicers, decoded, trailers_of
from tandem.runtime.errors import (
    InvalidArgument,
    Overloaded,
    TandemError,
    TooLarge,
    UnknownMethod,
    Violation,
    to_status,
)
from tandem.runtime.settings import ServerSettings

# Calls whose requests are not all here, of which one connection may have as many as are free: at first all that grpcio
# hands over at once. A call's objects take 18 kB, and what has come of its request.
_MAX_UNFINISHED = 8_000
# What begins so is compressed with gzip: grpcio does not say it, and no message of Protobuf begins with these bytes.
_GZIPPED = b"\x1f\x8b"


class Handlers(grpc.GenericRpcHandler):
    """By path: of ours, of servicers, and of what is neither. Without deserialisers: grpcio's own way to call one tells
    a caller of malformed bytes what the inside raised.
    """

    def __init__(
        self,
        own: Mapping[str, Any],
        servicers: Servicers,
        requests: "Requests",
        guard_of: Callable[[str], Guard | None],
    ) -> None:
        """guard_of: a path."""
        self._handlers = {**own, **{path: _servicer(it, requests) for path, it in servicers.items()}}
        self._guard_of = guard_of

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        path = handler_call_details.method
        return self._handlers.get(path) or _unknown(path, self._guard_of(path))


def _unknown(path: str, guard: Guard | None) -> Any:
    async def refuse(_requests: object, context: aio.ServicerContext[Any, Any]) -> None:
        error: TandemError = UnknownMethod(path)
        try:
            _check(guard, context)
        except TandemError as refusal:
            error = refusal
        await abort(context, to_status(error))

    return grpc.stream_stream_rpc_method_handler(refuse)


def _servicer(servicer: Servicer, requests: "Requests") -> Any:
    async def answer(_requests: object, context: aio.ServicerContext[Any, Any]) -> None:
        try:
            _check(servicer.guard, context)
            async with contextlib.aclosing(requests.messages(servicer.request_class, context)) as messages:
                await servicer.answer(messages, context)
        except TandemError as error:
            await abort(context, to_status(error))

    return grpc.stream_stream_rpc_method_handler(answer, response_serializer=lambda it: it.SerializeToString())


def _check(guard: Guard | None, context: aio.ServicerContext[Any, Any]) -> None:
    """Raises TandemError."""
    if guard is not None:
        guard.check(Received(context))


class Received(Context):
    """What grpcio says of a call."""

    def __init__(self, context: aio.ServicerContext[Any, Any]) -> None:
        self.came_at = time.monotonic()
        self._context = context
        # Now: asked later it says less.
        self._remaining = context.time_remaining()

    def metadata(self) -> Metadata:
        return tuple(self._context.invocation_metadata() or ())

    def certificate_subject(self) -> str:
        """The SPIFFE id, and the distinguished name where there is none."""
        said = self._context.auth_context()
        return b"".join(said.get("peer_spiffe_id") or said.get("x509_subject") or ()).decode()

    def _time_remaining(self) -> float | None:
        return self._remaining


class Requests:
    """Reads the requests of calls; bounds those that are not all here, in number and in time.

    grpcio's own way to do so never answers a call that ends without a message, waits for ever for the rest of one, and
    refuses one that is too large or wrongly compressed without details. So all RPCs are, for grpcio, of the kind that
    takes a stream, and it hands over what came as it came.
    """

    def __init__(self, settings: ServerSettings, take: Callable[[str, int], None]) -> None:
        """take: is told of each request, its peer and its bytes as they came."""
        self._take = take
        self._seconds = settings.request_seconds
        self._most_bytes = settings.max_request_bytes
        self._by_peer: defaultdict[str, int] = defaultdict(int)
        self._all = 0

    async def first(self, context: aio.ServicerContext[Any, Any]) -> bytes:
        """The bytes of a call's request. Raises TandemError. A caller may have as many unfinished ones as are free."""
        peer = context.peer()
        by_peer = self._by_peer
        if by_peer.get(peer, 0) >= _MAX_UNFINISHED - self._all:
            raise Overloaded("too many requests are not finished")
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
            raise _malformed(f"the call ended, or {self._seconds:g} s passed, without a request")
        self._take(peer, len(payload))
        return unpacked(payload, self._most_bytes)

    async def messages(
        self, request_class: type[Message], context: aio.ServicerContext[Any, Any]
    ) -> AsyncGenerator[Message, None]:
        """All that a caller sends. Raises TandemError."""
        yield decoded(request_class, await self.first(context))
        while (payload := await context.read()) is not aio.EOF:
            yield decoded(request_class, unpacked(payload, self._most_bytes))


def unpacked(payload: bytes, most: int) -> bytes:
    """A request of at most so many bytes, as its caller wrote it. Raises TandemError."""
    if payload.startswith(_GZIPPED):
        unpacking = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        try:
            payload = unpacking.decompress(payload, most + 1)
        except zlib.error:
            raise _malformed("the request is compressed wrongly") from None
        if len(payload) > most:
            raise TooLarge("the request, unpacked,", None, most)
        if not unpacking.eof:
            raise _malformed("the request is compressed, and ends before its end")
    if len(payload) > most:
        raise TooLarge("the request", len(payload), most)
    return payload


def _malformed(problem: str) -> InvalidArgument:
    return InvalidArgument([Violation("", problem, "MALFORMED")])


async def abort(context: aio.ServicerContext[Any, Any], status: Status) -> NoReturn:
    """Ends a call of grpcio's with an error."""
    await context.abort(CODES[status.code], status.message, trailers_of(status))
    raise AssertionError("abort() returned")
