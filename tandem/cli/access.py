"""How `tandem` reaches services: by TLS or not, and with which token."""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import grpc
import typer

_TlsCa = Annotated[
    Path | None, typer.Option(envvar="TANDEM_CLI_TLS_CA", help="PEM file: speak TLS to servers of this authority.")
]
_Cert = Annotated[
    Path | None, typer.Option(envvar="TANDEM_CLI_CERT", help="PEM file: the certificate to show, with its chain.")
]
_Key = Annotated[Path | None, typer.Option(envvar="TANDEM_CLI_KEY", help="PEM file: the certificate's private key.")]
_TokenFile = Annotated[
    Path | None, typer.Option(envvar="TANDEM_CLI_TOKEN_FILE", help="File with a token, sent with each call.")
]


QUICK_TO_RECONNECT = (("grpc.initial_reconnect_backoff_ms", 250), ("grpc.max_reconnect_backoff_ms", 1000))
"""Options of a channel: whoever watches a server sees at once that it is back, and not after two minutes."""


@dataclass(frozen=True)
class Access:
    """credentials: None for plaintext. token_file: read for each connection."""

    credentials: grpc.ChannelCredentials | None = None
    token_file: Path | None = None

    def channel(self, address: str) -> grpc.Channel:
        """Raises typer.BadParameter where the token cannot be read."""
        if self.credentials is None:
            channel = grpc.insecure_channel(address, QUICK_TO_RECONNECT)
        else:
            channel = grpc.secure_channel(address, self.credentials, QUICK_TO_RECONNECT)
        if self.token_file is None:
            return channel
        return grpc.intercept_channel(channel, _Bearer(_read(self.token_file, "--token-file").decode().strip()))


_PLAIN = Access()
_ACCESS: ContextVar[Access] = ContextVar("access", default=_PLAIN)
"""As the options of the command that runs say."""


def add_options(app: typer.Typer, help_text: str) -> None:
    """To the whole command, before the name of one."""

    @app.callback(help=help_text)
    def options(
        *,
        tls_ca: _TlsCa = None,
        cert: _Cert = None,
        key: _Key = None,
        token_file: _TokenFile = None,
    ) -> None:
        if (cert is None) != (key is None):
            raise typer.BadParameter("--cert and --key belong together")
        if cert is not None and tls_ca is None:
            raise typer.BadParameter("--cert is shown by TLS alone: give --tls-ca too")
        _ACCESS.set(Access(_credentials(tls_ca, cert, key), token_file))


def connect(address: str) -> grpc.Channel:
    """A channel as the options of the command say. Raises typer.BadParameter."""
    return _ACCESS.get().channel(address)


def _credentials(tls_ca: Path | None, cert: Path | None, key: Path | None) -> grpc.ChannelCredentials | None:
    if tls_ca is None:
        return None
    pair = (None, None) if cert is None or key is None else (_read(key, "--key"), _read(cert, "--cert"))
    return grpc.ssl_channel_credentials(_read(tls_ca, "--tls-ca"), *pair)


def _read(file: Path, option: str) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise typer.BadParameter(f"{option}: {file}: {error.strerror}") from error


class _Details(NamedTuple):
    """Of a call, as grpc asks for them."""

    method: str
    timeout: float | None
    metadata: Any
    credentials: Any
    wait_for_ready: Any
    compression: Any


class _Bearer(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
    """Sends a token with each call: without TLS, too, as to a sidecar, where grpc's own credentials do not."""

    def __init__(self, token: str) -> None:
        self._metadata = (("authorization", f"Bearer {token}"),)

    def intercept_unary_unary(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        return continuation(self._with_token(details), request)

    def intercept_unary_stream(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        return continuation(self._with_token(details), request)

    def _with_token(self, details: Any) -> _Details:
        return _Details(
            details.method,
            details.timeout,
            (*(details.metadata or ()), *self._metadata),
            details.credentials,
            details.wait_for_ready,
            details.compression,
        )
