"""The client for threads. `tandem.client.aio` is its asyncio twin."""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from types import TracebackType
from typing import Any, Self

import grpc

from commerce.command.v1.command_service_pb2_grpc import CommandServiceStub
from commerce.feed.v1.feed_service_pb2_grpc import FeedServiceStub
from commerce.query.v1.query_service_pb2_grpc import QueryServiceStub
from tandem.client.call import NoAddress, Rpc, Tries
from tandem.client.channel import CallDefaults, options_for
from tandem.client.errors import CallFailed
from tandem.client.horizon import Horizon


class Client:
    """Connections to Tandem's services, to be shared by a process's threads; each caller has a session.

    >>> with Client(commands="127.0.0.1:50051", queries="127.0.0.1:50052") as client:  # doctest: +SKIP
    ...     session = client.session()
    ...     placed = session.commands.PlaceOrder(PlaceOrderRequest(...))
    ...     order = session.queries.GetOrderDetails(GetOrderDetailsRequest(order_id=placed.order_id)).order_details
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
        """commands, queries, feed: where each service is, as "host:port" or any other name that gRPC resolves, such as
        "dns:///tandem-query:50052", whose servers share the calls. One that is not called needs none; behind a gateway
        they are all the same.

        credentials: of the connections; None for plaintext, as behind a mesh. defaults: of calls that say nothing
        themselves. options: of the channels, in place of those in CHANNEL_OPTIONS.
        """

        def connect(address: str) -> grpc.Channel:
            if credentials is None:
                return grpc.insecure_channel(address, options_for(address, options))
            return grpc.secure_channel(address, credentials, options_for(address, options))

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

    def close(self) -> None:
        """Ends the connections and every call under way."""
        for channel in self._channels.values():
            channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class Session:
    """One caller: what it has written its queries see. For any number of threads; it is cheap to make one.

    `commands`, `queries` and `feed` are the generated stubs: every RPC of the contract, with its types. Their calls
    fail with the errors of tandem.client.errors, have a timeout, and are repeated where that is safe; streams are not
    (tandem.client.streams resumes them).
    """

    def __init__(
        self,
        *,
        commands: grpc.Channel | None = None,
        queries: grpc.Channel | None = None,
        feed: grpc.Channel | None = None,
        token: str = "",
        monotonic_reads: bool = False,
        defaults: CallDefaults | None = None,
    ) -> None:
        """The channels may be any, a test's fake one too; Client.session() makes those that fit the servers.

        token: what the caller has seen elsewhere, such as the `token` of its session in the request before.
        monotonic_reads: whether queries also see what earlier ones showed. A view that is behind makes more of them
        wait.
        """
        self._horizon = Horizon(token, monotonic_reads=monotonic_reads)

        def belonging(channel: grpc.Channel | None) -> grpc.Channel | None:
            return channel and _SessionChannel(channel, self._horizon, defaults or CallDefaults())

        self._commands, self._queries, self._feed = map(belonging, (commands, queries, feed))
        self._stubs: dict[type[Any], Any] = {}

    @property
    def commands(self) -> CommandServiceStub:
        stub: CommandServiceStub = self._stub(CommandServiceStub, self._commands)
        return stub

    @property
    def queries(self) -> QueryServiceStub:
        stub: QueryServiceStub = self._stub(QueryServiceStub, self._queries)
        return stub

    @property
    def feed(self) -> FeedServiceStub:
        stub: FeedServiceStub = self._stub(FeedServiceStub, self._feed)
        return stub

    @property
    def token(self) -> str:
        """Stands for what the session has written: URL-safe ASCII, about 30 characters, empty before the first command.

        Keep it in a cookie or hand it on in a message; a session that begins with it, or learns it, sees the same
        writes.
        """
        return self._horizon.token

    def learn(self, token: str) -> None:
        """Sees from now on what another has written: a session's or a receipt's token, an `as_of`, a cursor."""
        self._horizon.learn(token)

    def _stub(self, kind: type[Any], channel: grpc.Channel | None) -> Any:
        if channel is None:
            name = kind.__name__.removesuffix("Stub")
            raise NoAddress(f"the client was not told where {name} is: Client(commands=…, queries=…, feed=…)")
        if kind not in self._stubs:
            self._stubs[kind] = kind(channel)
        return self._stubs[kind]


class _SessionChannel(grpc.Channel):
    """A channel whose calls belong to a session. It is the client's, and is closed by it."""

    def __init__(self, channel: grpc.Channel, horizon: Horizon, defaults: CallDefaults) -> None:
        self._channel = channel
        self._horizon = horizon
        self._defaults = defaults

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        rpc = Rpc(method, self._horizon, self._defaults)
        return _UnaryUnary(lambda: self._channel.unary_unary(method, *args, **kwargs), rpc)

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        rpc = Rpc(method, self._horizon, self._defaults)
        return _UnaryStream(lambda: self._channel.unary_stream(method, *args, **kwargs), rpc)

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        return self._channel.stream_unary(*args, **kwargs)

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._channel.stream_stream(*args, **kwargs)

    def subscribe(self, callback: Callable[..., Any], try_to_connect: bool = False) -> None:
        self._channel.subscribe(callback, try_to_connect)

    def unsubscribe(self, callback: Callable[..., Any]) -> None:
        self._channel.unsubscribe(callback)

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


class _UnaryUnary:
    """As grpc.UnaryUnaryMultiCallable."""

    def __init__(self, make: Callable[[], Any], rpc: Rpc) -> None:
        self._make = make
        self._rpc = rpc

    @cached_property
    def _call(self) -> Any:
        """Made when it is called first: of a stub's many methods most sessions call a few."""
        return self._make()

    def __call__(self, request: Any, timeout: float | None = None, **options: Any) -> Any:
        """Raises CallFailed. timeout: in seconds, for all tries together."""
        return self.with_call(request, timeout, **options)[0]

    def with_call(self, request: Any, timeout: float | None = None, **options: Any) -> tuple[Any, grpc.Call]:
        """The response, and the call with its metadata. Raises CallFailed."""
        prepared = self._rpc.horizon.prepare(request)
        chosen = self._rpc.options(prepared, options | {"timeout": timeout})
        end = time.monotonic() + chosen["timeout"]
        tries = Tries(waits_for_ready=chosen.get("wait_for_ready", False))
        while True:
            try:
                response, call = self._call.with_call(prepared, **chosen)
            except grpc.RpcError as error:
                failed = self._rpc.failure(prepared, error)
                pause = tries.pause(failed)
                if pause is None:
                    raise failed from error
                chosen["timeout"] = end - time.monotonic() - pause
                if chosen["timeout"] <= 0:
                    raise failed from error
                time.sleep(pause)
            else:
                self._rpc.horizon.answered(response)
                return response, call

    def future(self, request: Any, timeout: float | None = None, **options: Any) -> "_Future":
        """The call, under way. The session repeats none."""
        prepared = self._rpc.horizon.prepare(request)
        future = self._call.future(prepared, **self._rpc.options(prepared, options | {"timeout": timeout}))
        return _Future(future, self._rpc, prepared)


class _Call:
    """A call of grpc's, with typed errors; what is not about errors is the call's own."""

    def __init__(self, call: Any, rpc: Rpc, request: Any) -> None:
        self._call = call
        self._rpc = rpc
        self._request = request

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)


class _Future(_Call):
    """As grpc.Future and grpc.Call."""

    def result(self, *timeout: float | None) -> Any:
        """Raises CallFailed; grpc.FutureTimeoutError when it is not there within so many seconds."""
        try:
            response = self._call.result(*timeout)
        except grpc.RpcError as error:
            raise self._rpc.failure(self._request, error) from error
        self._rpc.horizon.answered(response)
        return response

    def exception(self, *timeout: float | None) -> CallFailed | None:
        try:
            self.result(*timeout)
        except CallFailed as error:
            return error
        return None

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._call.add_done_callback(lambda _: callback(self))


class _UnaryStream:
    """As grpc.UnaryStreamMultiCallable."""

    def __init__(self, make: Callable[[], Any], rpc: Rpc) -> None:
        self._make = make
        self._rpc = rpc

    @cached_property
    def _call(self) -> Any:
        """Made when it is called first: of a stub's many methods most sessions call a few."""
        return self._make()

    def __call__(self, request: Any, timeout: float | None = None, **options: Any) -> "_Stream":
        """The responses as they come, until the stream is cancelled. timeout: of the whole stream, in seconds."""
        prepared = self._rpc.horizon.prepare(request)
        chosen = self._rpc.stream_options(options | {"timeout": timeout})
        return _Stream(self._call(prepared, **chosen), self._rpc, prepared)


class _Stream(_Call):
    """As what grpc returns: an iterator and a grpc.Call."""

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        """Raises CallFailed."""
        try:
            response = next(self._call)
        except grpc.RpcError as error:
            raise self._rpc.failure(self._request, error) from error
        self._rpc.horizon.answered(response)
        return response
