"""The client for asyncio. `tandem.client.sync` is its twin for threads; `tandem.client.session` has what both do."""

import asyncio
from collections.abc import AsyncIterator, Callable, Generator
from typing import Any, Self

import grpc
from grpc import aio

from tandem.client.call import Outgoing
from tandem.client.session import BaseClient, BaseSession, BaseStub, Method, SessionT, StubT, TypedCall


class Client(BaseClient[SessionT]):
    """Connections to a domain's services, to be shared by an event loop's tasks; each caller has a session.

    To be made where the event loop runs.
    """

    _insecure_channel = staticmethod(aio.insecure_channel)
    _secure_channel = staticmethod(aio.secure_channel)

    async def close(self) -> None:
        """Ends the connections and every call under way."""
        for channel in self._channels.values():
            await channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class Stub(BaseStub[StubT]):
    """A service of a session's: `commands = Stub(CommandServiceStub)`, as the class for asyncio."""

    def __init__(self, kind: Callable[[aio.Channel], StubT]) -> None:
        super().__init__(kind)


class _UnaryUnary(Method):
    """As grpc.aio.UnaryUnaryMultiCallable."""

    def __call__(self, request: Any, *, timeout: float | None = None, **options: Any) -> "_UnaryUnaryCall":
        """The call, under way. timeout: in seconds, for all tries together."""
        return _UnaryUnaryCall(self.callable, Outgoing(self.rpc, request, options | {"timeout": timeout}))


class _UnaryUnaryCall(TypedCall):
    """As grpc.aio.UnaryUnaryCall. What is not the response is the last try's: trailing_metadata(), code()."""

    def __init__(self, method: Any, outgoing: Outgoing) -> None:
        super().__init__(method(outgoing.request, **outgoing.options), outgoing)
        self._method = method
        self._cancelled = asyncio.Event()
        self._ended = False

    def cancel(self) -> bool:
        """Ends the call, and no further try is made; who awaits it gets CancelledError. False once it has ended."""
        if self._ended:
            return False
        self._cancelled.set()
        self._call.cancel()
        return True

    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    def __await__(self) -> Generator[Any, None, Any]:
        """Raises CallFailed."""
        return self._answer().__await__()

    async def _answer(self) -> Any:
        try:
            while True:
                try:
                    response = await self._call
                except grpc.RpcError as error:
                    await self._pause(self._outgoing.pause_after(error))
                    self._call = self._method(self._outgoing.request, **self._outgoing.options)
                else:
                    self._outgoing.answered(response)
                    return response
        finally:
            self._ended = True

    async def _pause(self, seconds: float) -> None:
        """Raises CancelledError when the call is cancelled meanwhile, or was before."""
        waiting = asyncio.ensure_future(self._cancelled.wait())
        try:
            await asyncio.wait({waiting}, timeout=seconds)
        finally:
            waiting.cancel()
        if self._cancelled.is_set():
            raise asyncio.CancelledError


class _UnaryStream(Method):
    """As grpc.aio.UnaryStreamMultiCallable."""

    def __call__(self, request: Any, **options: Any) -> "_UnaryStreamCall":
        """The stream, under way. timeout: of all of it, in seconds; none unless given."""
        outgoing = Outgoing(self.rpc, request, options, stream=True)
        return _UnaryStreamCall(self.callable(outgoing.request, **outgoing.options), outgoing)


class _UnaryStreamCall(TypedCall):
    """As grpc.aio.UnaryStreamCall."""

    async def __aiter__(self) -> AsyncIterator[Any]:
        """The responses as they come. Raises CallFailed."""
        while (response := await self.read()) is not aio.EOF:
            yield response

    async def read(self) -> Any:
        """The next response, or grpc.aio.EOF. Raises CallFailed."""
        try:
            response = await self._call.read()
        except grpc.RpcError as error:
            raise self._outgoing.failure(error) from error
        if response is not aio.EOF:
            self._outgoing.answered(response)
        return response


class Session(BaseSession):
    """One caller: what it has written its queries see. As tandem.client.sync.Session, for any number of tasks."""

    unary_unary = _UnaryUnary
    unary_stream = _UnaryStream
