"""The client for asyncio. `tandem.client.sync` is its twin for threads."""

import asyncio
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import grpc
from grpc import aio

from commerce.command.v1.command_service_pb2_grpc import CommandServiceStub
from commerce.feed.v1.feed_service_pb2_grpc import FeedServiceStub
from commerce.query.v1.query_service_pb2_grpc import QueryServiceStub
from tandem.client.call import NoAddress, Rpc, Tries
from tandem.client.channel import CallDefaults, options_for
from tandem.client.errors import CallFailed
from tandem.client.horizon import Horizon

if TYPE_CHECKING:
    # The stubs alone know them.
    from commerce.command.v1.command_service_pb2_grpc import CommandServiceAsyncStub
    from commerce.feed.v1.feed_service_pb2_grpc import FeedServiceAsyncStub
    from commerce.query.v1.query_service_pb2_grpc import QueryServiceAsyncStub


class Client:
    """Connections to Tandem's services, to be shared by an event loop's tasks; each caller has a session.

    >>> async with Client(commands="127.0.0.1:50051", queries="127.0.0.1:50052") as client:  # doctest: +SKIP
    ...     session = client.session()
    ...     placed = await session.commands.PlaceOrder(PlaceOrderRequest(...))
    ...     answer = await session.queries.GetOrderDetails(GetOrderDetailsRequest(order_id=placed.order_id))
    """

    def __init__(
        self,
        *,
        commands: str = "",
        queries: str = "",
        feed: str = "",
        credentials: grpc.ChannelCredentials | None = None,
        defaults: CallDefaults | None = None,
        options: Sequence[tuple[str, Any]] = (),
    ) -> None:
        """To be made where the event loop runs. The arguments are those of tandem.client.sync.Client."""

        def connect(address: str) -> aio.Channel:
            if credentials is None:
                return aio.insecure_channel(address, options_for(address, options))
            return aio.secure_channel(address, credentials, options_for(address, options))

        self._channels = {address: connect(address) for address in {commands, queries, feed} - {""}}
        self._commands, self._queries, self._feed = map(self._channels.get, (commands, queries, feed))
        self._defaults = defaults or CallDefaults()

    def session(self, token: str = "", *, monotonic_reads: bool = False) -> "Session":
        """A caller that sees its own writes. token and monotonic_reads: as Session's."""
        return Session(
            commands=self._commands,
            queries=self._queries,
            feed=self._feed,
            token=token,
            monotonic_reads=monotonic_reads,
            defaults=self._defaults,
        )

    async def close(self) -> None:
        """Ends the connections and every call under way."""
        for channel in self._channels.values():
            await channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


class Session:
    """One caller: what it has written its queries see. As tandem.client.sync.Session, for any number of tasks."""

    def __init__(
        self,
        *,
        commands: aio.Channel | None = None,
        queries: aio.Channel | None = None,
        feed: aio.Channel | None = None,
        token: str = "",
        monotonic_reads: bool = False,
        defaults: CallDefaults | None = None,
    ) -> None:
        """The arguments are those of tandem.client.sync.Session."""
        self._horizon = Horizon(token, monotonic_reads=monotonic_reads)

        def belonging(channel: aio.Channel | None) -> Any:
            return channel and _SessionChannel(channel, self._horizon, defaults or CallDefaults())

        self._commands, self._queries, self._feed = map(belonging, (commands, queries, feed))
        self._stubs: dict[type[Any], Any] = {}

    @property
    def commands(self) -> "CommandServiceAsyncStub":
        stub: CommandServiceAsyncStub = self._stub(CommandServiceStub, self._commands)
        return stub

    @property
    def queries(self) -> "QueryServiceAsyncStub":
        stub: QueryServiceAsyncStub = self._stub(QueryServiceStub, self._queries)
        return stub

    @property
    def feed(self) -> "FeedServiceAsyncStub":
        stub: FeedServiceAsyncStub = self._stub(FeedServiceStub, self._feed)
        return stub

    @property
    def token(self) -> str:
        """Stands for what the session has written: as tandem.client.sync.Session.token."""
        return self._horizon.token

    def learn(self, token: str) -> None:
        """Sees from now on what another has written: a session's or a receipt's token, an `as_of`, a cursor."""
        self._horizon.learn(token)

    def _stub(self, kind: type[Any], channel: Any) -> Any:
        if channel is None:
            name = kind.__name__.removesuffix("Stub")
            raise NoAddress(f"the client was not told where {name} is: Client(commands=…, queries=…, feed=…)")
        if kind not in self._stubs:
            self._stubs[kind] = kind(channel)
        return self._stubs[kind]


class _SessionChannel:
    """A channel whose calls belong to a session: as much of one as the generated stubs ask for."""

    def __init__(self, channel: aio.Channel, horizon: Horizon, defaults: CallDefaults) -> None:
        self._channel = channel
        self._horizon = horizon
        self._defaults = defaults

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        rpc = Rpc(method, self._horizon, self._defaults)
        return _UnaryUnary(lambda: self._channel.unary_unary(method, *args, **kwargs), rpc)

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        rpc = Rpc(method, self._horizon, self._defaults)
        return _UnaryStream(lambda: self._channel.unary_stream(method, *args, **kwargs), rpc)


class _UnaryUnary:
    """As grpc.aio.UnaryUnaryMultiCallable."""

    def __init__(self, make: Callable[[], Any], rpc: Rpc) -> None:
        self._make = make
        self._rpc = rpc

    @cached_property
    def _call(self) -> Any:
        """Made when it is called first: of a stub's many methods most sessions call a few."""
        return self._make()

    def __call__(self, request: Any, *, timeout: float | None = None, **options: Any) -> "_UnaryUnaryCall":
        """The call, under way. timeout: in seconds, for all tries together."""
        prepared = self._rpc.horizon.prepare(request)
        return _UnaryUnaryCall(self._call, self._rpc, prepared, options | {"timeout": timeout})


class _UnaryUnaryCall:
    """As grpc.aio.UnaryUnaryCall. What is not the response is the last try's: cancel(), trailing_metadata(), code()."""

    def __init__(self, call: Any, rpc: Rpc, request: Any, options: dict[str, Any]) -> None:
        self._callable = call
        self._rpc = rpc
        self._request = request
        self._options = rpc.options(request, options)
        self._end = asyncio.get_running_loop().time() + self._options["timeout"]
        self._tries = Tries(waits_for_ready=self._options.get("wait_for_ready", False))
        self._try = call(request, **self._options)

    def __await__(self) -> Generator[Any, None, Any]:
        """Raises CallFailed."""
        return self._answer().__await__()

    async def _answer(self) -> Any:
        while True:
            try:
                response = await self._try
            except grpc.RpcError as error:
                failed = self._rpc.failure(self._request, error)
                if not await self._pause(failed):
                    raise failed from error
                self._try = self._callable(self._request, **self._options)
            else:
                self._rpc.horizon.answered(response)
                return response

    async def _pause(self, failed: CallFailed) -> bool:
        """Waits before the next try; False when there is none."""
        pause = self._tries.pause(failed)
        if pause is None:
            return False
        self._options["timeout"] = self._end - asyncio.get_running_loop().time() - pause
        if self._options["timeout"] <= 0:
            return False
        await asyncio.sleep(pause)
        return True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._try, name)


class _UnaryStream:
    """As grpc.aio.UnaryStreamMultiCallable."""

    def __init__(self, make: Callable[[], Any], rpc: Rpc) -> None:
        self._make = make
        self._rpc = rpc

    @cached_property
    def _call(self) -> Any:
        """Made when it is called first: of a stub's many methods most sessions call a few."""
        return self._make()

    def __call__(self, request: Any, **options: Any) -> "_UnaryStreamCall":
        """The stream, under way. timeout: of all of it, in seconds; none unless given."""
        prepared = self._rpc.horizon.prepare(request)
        return _UnaryStreamCall(self._call(prepared, **self._rpc.stream_options(options)), self._rpc, prepared)


class _UnaryStreamCall:
    """As grpc.aio.UnaryStreamCall; what is not about responses is the call's own."""

    def __init__(self, call: Any, rpc: Rpc, request: Any) -> None:
        self._call = call
        self._rpc = rpc
        self._request = request

    async def __aiter__(self) -> AsyncIterator[Any]:
        """The responses as they come. Raises CallFailed."""
        while (response := await self.read()) is not aio.EOF:
            yield response

    async def read(self) -> Any:
        """The next response, or grpc.aio.EOF. Raises CallFailed."""
        try:
            response = await self._call.read()
        except grpc.RpcError as error:
            raise self._rpc.failure(self._request, error) from error
        if response is not aio.EOF:
            self._rpc.horizon.answered(response)
        return response

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)
