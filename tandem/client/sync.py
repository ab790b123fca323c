"""The client for threads. `tandem.client.aio` is its asyncio twin; `tandem.client.session` has what both do."""

import time
from collections.abc import Callable, Iterator
from typing import Any, Self

import grpc

from tandem.client.call import Outgoing
from tandem.client.errors import CallFailed
from tandem.client.session import BaseClient, BaseSession, BaseStub, Method, SessionT, StubT, TypedCall


class Client(BaseClient[SessionT]):
    """Connections to a domain's services, to be shared by a process's threads; each caller has a session."""

    _insecure_channel = staticmethod(grpc.insecure_channel)
    _secure_channel = staticmethod(grpc.secure_channel)

    def close(self) -> None:
        """Ends the connections and every call under way."""
        for channel in self._channels.values():
            channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Stub(BaseStub[StubT]):
    """A service of a session's: `commands = Stub(CommandServiceStub)`."""

    def __init__(self, kind: Callable[[grpc.Channel], StubT]) -> None:
        super().__init__(kind)


class _UnaryUnary(Method):
    """As grpc.UnaryUnaryMultiCallable."""

    def __call__(self, request: Any, timeout: float | None = None, **options: Any) -> Any:
        """Raises CallFailed. timeout: in seconds, for all tries together."""
        return self.with_call(request, timeout, **options)[0]

    def with_call(self, request: Any, timeout: float | None = None, **options: Any) -> tuple[Any, grpc.Call]:
        """The response, and the call with its metadata. Raises CallFailed."""
        outgoing = Outgoing(self.rpc, request, options | {"timeout": timeout})
        while True:
            try:
                response, call = self.callable.with_call(outgoing.request, **outgoing.options)
            except grpc.RpcError as error:
                time.sleep(outgoing.pause_after(error))
            else:
                outgoing.answered(response)
                return response, call

    def future(self, request: Any, timeout: float | None = None, **options: Any) -> "_Future":
        """The call, under way. The session repeats none."""
        outgoing = Outgoing(self.rpc, request, options | {"timeout": timeout})
        return _Future(self.callable.future(outgoing.request, **outgoing.options), outgoing)


class _Future(TypedCall):
    """As grpc.Future and grpc.Call."""

    def result(self, timeout: float | None = None) -> Any:
        """Raises CallFailed; grpc.FutureTimeoutError when it is not there within so many seconds, and the call goes on;
        grpc.FutureCancelledError after `cancel`.
        """
        try:
            response = self._call.result(timeout)
        except grpc.RpcError as error:
            raise self._outgoing.failure(error) from error
        self._outgoing.answered(response)
        return response

    def exception(self, timeout: float | None = None) -> CallFailed | None:
        """As `result`, with the error returned."""
        try:
            self.result(timeout)
        except CallFailed as error:
            return error
        return None

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._call.add_done_callback(lambda _: callback(self))


class _UnaryStream(Method):
    """As grpc.UnaryStreamMultiCallable."""

    def __call__(self, request: Any, timeout: float | None = None, **options: Any) -> "_Stream":
        """The responses as they come, until the stream is cancelled. timeout: of the whole stream, in seconds."""
        outgoing = Outgoing(self.rpc, request, options | {"timeout": timeout}, stream=True)
        return _Stream(self.callable(outgoing.request, **outgoing.options), outgoing)


class _Stream(TypedCall):
    """As what grpc returns: an iterator and a grpc.Call."""

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        """Raises CallFailed."""
        try:
            response = next(self._call)
        except grpc.RpcError as error:
            raise self._outgoing.failure(error) from error
        self._outgoing.answered(response)
        return response


class Session(BaseSession):
    """One caller: what it has written its queries see. For any number of threads; it is cheap to make one.

    Its services are the generated stubs: every RPC of the contract, with its types. Their calls fail with the errors of
    tandem.client.errors, have a timeout, and are repeated where that is safe; streams are not (tandem.client.streams
    resumes them).
    """

    unary_unary = _UnaryUnary
    unary_stream = _UnaryStream
