"""What the clients for threads and for asyncio have in common: a domain's services, and sessions on their channels.

A domain declares its services once and has its client:

    class Session(sync.Session):
        commands = sync.Stub(CommandServiceStub)
        queries = sync.Stub(QueryServiceStub)

    client = sync.Client(Session, {"commands": "127.0.0.1:50051", "queries": "127.0.0.1:50052"})
    client.session().commands.OpenAccount(...)
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, ClassVar, Generic, TypedDict, TypeVar, Unpack

import grpc

from tandem.client.call import Outgoing, Rpc
from tandem.client.channel import CallDefaults, options_for
from tandem.client.horizon import Horizon


class NoAddress(ValueError):
    """A service was called whose address the client was not given."""


class Connection(TypedDict, total=False):
    """How a client connects and calls.

    credentials: of the connections; None for plaintext, as behind a mesh. defaults: of calls that say nothing
    themselves. options: of the channels, in place of those in CHANNEL_OPTIONS.
    """

    credentials: grpc.ChannelCredentials | None
    defaults: CallDefaults | None
    options: Sequence[tuple[str, Any]]


StubT = TypeVar("StubT")


class BaseStub(Generic[StubT]):
    """A service of a session, as an attribute of its class: the generated stub, on the session's channel."""

    def __init__(self, kind: Callable[[Any], StubT]) -> None:
        """kind: the generated class, such as CommandServiceStub."""
        self._kind = kind
        self._name = ""

    def __set_name__(self, _: type, name: str) -> None:
        self._name = name

    def __get__(self, session: "BaseSession", _: type) -> StubT:
        stub = self._kind(session.channel(self._name))
        # From now on the attribute is found without asking this one.
        vars(session)[self._name] = stub
        return stub

    @property
    def service(self) -> str:
        return getattr(self._kind, "__name__", "").removesuffix("Stub")


class BaseSession:
    """A session of either kind."""

    unary_unary: ClassVar[type["Method"]]
    unary_stream: ClassVar[type["Method"]]

    def __init__(
        self,
        *,
        token: str = "",
        monotonic_reads: bool = False,
        defaults: CallDefaults | None = None,
        **channels: Any,
    ) -> None:
        """channels: by the service's name in the class; any, a test's fake one too. Client.session() makes those that
        fit the servers.

        token: what the caller has seen elsewhere, such as the `token` of its session in the request before.
        monotonic_reads: whether queries also see what earlier ones showed. A view that is behind makes more of them
        wait.
        """
        if unknown := channels.keys() - self.services().keys():
            raise TypeError(f"{type(self).__name__} has no service {', '.join(sorted(unknown))}")
        self._channels = channels
        self._horizon = Horizon(token, monotonic_reads=monotonic_reads)
        self._defaults = defaults or CallDefaults()

    @classmethod
    def services(cls) -> dict[str, str]:
        """The services that the class declares: name of the attribute to name of the service."""
        declared = {name: it for kind in reversed(cls.__mro__) for name, it in vars(kind).items()}
        return {name: it.service for name, it in declared.items() if isinstance(it, BaseStub)}

    @property
    def token(self) -> str:
        """Stands for what the session has written: URL-safe ASCII, about 40 characters (as many for each token where it
        holds several, at most 20), empty before the first command.

        Keep it in a cookie or hand it on in a message; a session that begins with it, or learns it, sees the same
        writes.
        """
        return self._horizon.token

    def learn(self, token: str) -> None:
        """Sees from now on what another has written: a session's or a receipt's token, an `as_of`, a cursor."""
        self._horizon.learn(token)

    def channel(self, name: str) -> Any:
        """A channel to one of the services, whose calls belong to this session. Raises NoAddress."""
        channel = self._channels.get(name)
        if channel is None:
            all_of_them = ", ".join(f"{it}=…" for it in self.services())
            raise NoAddress(f"the client was not told where {self.services()[name]} is: Client({all_of_them})")
        return _SessionChannel(channel, self)

    def rpc(self, path: str) -> Rpc:
        return Rpc(path, self._horizon, self._defaults)


class _SessionChannel:
    """As much of a channel as the generated stubs ask for. RPCs with streams of requests are the channel's own."""

    def __init__(self, channel: Any, session: BaseSession) -> None:
        self._channel = channel
        self._session = session

    def unary_unary(self, path: str, *rest: Any, **how: Any) -> Any:
        make = partial(self._channel.unary_unary, path, *rest, **how)
        return self._session.unary_unary(make, self._session.rpc(path))

    def unary_stream(self, path: str, *rest: Any, **how: Any) -> Any:
        make = partial(self._channel.unary_stream, path, *rest, **how)
        return self._session.unary_stream(make, self._session.rpc(path))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)


class Method:
    """An RPC in a session. Subclasses call it, as grpc's multi-callables."""

    def __init__(self, make: Callable[[], Any], rpc: Rpc) -> None:
        self._make = make
        self.rpc = rpc

    @cached_property
    def callable(self) -> Any:
        """grpc's own. Made when it is called first: of a stub's many methods most sessions call a few."""
        return self._make()


class TypedCall:
    """A call of grpc's, with typed errors. What is not about responses is the call's own."""

    def __init__(self, call: Any, outgoing: Outgoing) -> None:
        self._call = call
        self._outgoing = outgoing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)


SessionT = TypeVar("SessionT", bound=BaseSession)


class BaseClient(Generic[SessionT]):
    """Connections to a domain's services; each caller has a session."""

    _insecure_channel: ClassVar[Callable[..., Any]]
    _secure_channel: ClassVar[Callable[..., Any]]

    def __init__(self, session: type[SessionT], addresses: Mapping[str, str], **connection: Unpack[Connection]) -> None:
        """addresses: by the service's name in the session's class, as "host:port" or any other name that gRPC resolves,
        such as "dns:///tandem-query:50052", whose servers share the calls. A service that is not called needs none;
        behind a gateway they are all the same.
        """
        credentials, options = connection.get("credentials"), connection.get("options", ())

        def connect(address: str) -> Any:
            if credentials is None:
                return self._insecure_channel(address, options=options_for(address, options))
            return self._secure_channel(address, credentials, options=options_for(address, options))

        self._kind = session
        self._defaults = connection.get("defaults")
        self._channels = {address: connect(address) for address in set(addresses.values()) - {""}}
        self._by_service = {name: self._channels.get(address) for name, address in addresses.items()}

    def session(self, token: str = "", *, monotonic_reads: bool = False) -> SessionT:
        """A caller that sees its own writes. token and monotonic_reads: as the session's."""
        return self._kind(token=token, monotonic_reads=monotonic_reads, defaults=self._defaults, **self._by_service)
