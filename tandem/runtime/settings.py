"""Settings: shared blocks, and the one place that reads the environment.

A service's settings come from the environment (`TANDEM_COMMAND_DATABASE__URL=…`) over a TOML file that TANDEM_CONFIG
names (`[command.database]` / `url = "…"`) over the defaults. An unknown key is an error in either. Settings are frozen.
"""

import ipaddress
import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

UNIX_SOCKET = "unix:"
"""How an address begins that is a Unix socket."""

# What Kubernetes sets in every container for a Service whose name begins with "tandem-" (enableServiceLinks).
_SERVICE_LINK = re.compile(
    r"TANDEM_[A-Z0-9_]+_("
    r"SERVICE_HOST=.*|SERVICE_PORT(_[A-Z0-9_]+)?=[0-9]+|PORT=[a-z]+://.*|"
    r"PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?=.*)"
)

# The sections of the file, and the middle word of the environment names.
SECTIONS = ("command", "query", "projector", "relay")
CONFIG_VARIABLE = "TANDEM_CONFIG"


# Clients that keep idle connections open ping; the default minimum of 5 minutes would close them (too_many_pings).
MIN_PING_MILLISECONDS = 10_000
# A connection that is gone without a word (a power cut, a network that drops packets) is found out after this and its
# streams end. They would stay for as long as TCP repeats, a quarter of an hour, or for ever when nothing is sent.
PING_MILLISECONDS = 60_000
PING_TIMEOUT_MILLISECONDS = 20_000
# Above what a process serves: past our own limits a caller gets a status, past this one its calls wait in silence. Also
# the answers that nobody counts, of 1 KiB at most, wait in a connection at most so many at once.
MAX_STREAMS_PER_CONNECTION = 20_000
# Calls that came in and that grpcio has not handed over yet. Past its own limit of 1,000 it drops some of them with a
# bare CANCELLED: a thousand watchers that come back at once after a failover are as many. 50,000 calls that are begun
# and taken back at once hold others up for 0.3 s with this limit and take 85 MB; without one it was 4.8 s and 630 MB.
_MAX_PENDING_CALLS = 4_000
# grpcio refuses by itself, without details, a request of more than so many times the largest one. To be handed one of
# 17 MiB and refuse it took 38 ms of processor time, and a caller of 43 MiB made it keep 730 MB: now 14 ms, 220 MB.
_MOST_TIMES_THE_LARGEST = 16
# libpq's, from the least to what alone knows the server.
_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
# A URL's beginning, several servers, and the rest.
_SERVERS = re.compile(r"([^/]*//(?:[^:/@]*(?::[^@]*)?@)?)([^/?@]*,[^/?@]*)(.*)")
# As grpcio numbers the encodings that it takes.
_IDENTITY, _GZIP = 1, 4


class SettingsError(Exception):
    """The settings are wrong; the message names every wrong key and where it came from."""


class Block(BaseModel):
    """A group of settings that several services share."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


def parse_database_url(text: str) -> URL:
    """A URL of one server, or of several, which libpq tries one after the other:

        postgresql://user@one:5432,two/database?target_session_attrs=primary

    These, or several times `host=one:5432` in the query, become `host` and `port` of the query, as both SQLAlchemy and
    libpq take them. Raises ValueError and ArgumentError.
    """
    found = _SERVERS.fullmatch(text)
    url = make_url(found[1] + found[3] if found else text)
    servers = found[2].split(",") if found else url.query.get("host", "")
    if isinstance(servers, str):
        return url
    pairs = [_host_and_port(it) for it in servers]
    return url.update_query_dict({"host": ",".join(it for it, _ in pairs), "port": ",".join(it for _, it in pairs)})


def _host_and_port(server: str) -> tuple[str, str]:
    """Raises ValueError. An empty port is PostgreSQL's own."""
    host, colon, port = (server, "", "") if server.endswith("]") else server.partition("]:" if "]" in server else ":")
    if colon and not port.isdigit():
        raise ValueError(f"{port!r} is no port")
    return host.strip("[]"), port


class DatabaseSettings(Block):
    """One PostgreSQL database."""

    url: SecretStr = Field(
        description="postgresql://user:password@host:port/database, or ?host=/socket/folder; with"
        " ?sslmode=verify-full&sslrootcert=/path/ca.pem nobody in between reads or answers. Of a primary and its"
        " standbys: postgresql://user@one:5432,two:5432/database?target_session_attrs=primary"
    )
    password_file: Path | None = Field(None, description="A file that holds the password, instead of one in the URL")
    connect_timeout: int = Field(3, ge=1, le=60, description="Seconds to wait for a connection")
    statement_timeout: float = Field(5.0, gt=0, le=300, description="Seconds that one statement may take")
    lock_timeout: float = Field(2.0, gt=0, le=300, description="Seconds that a statement may wait for a row lock")

    @field_validator("url")
    @classmethod
    def _is_a_postgresql_url(cls, url: SecretStr) -> SecretStr:
        try:
            parsed = parse_database_url(url.get_secret_value())
            backend = parsed.get_backend_name()
        except (ArgumentError, ValueError):
            raise ValueError("must look like postgresql://user@host:port/database") from None
        if backend != "postgresql":
            raise ValueError(f"must begin with postgresql://, not {backend}://")
        if (mode := parsed.query.get("sslmode", "prefer")) not in _SSL_MODES:
            raise ValueError(f"sslmode={mode} is none of {', '.join(_SSL_MODES)}")
        return url


class TlsSettings(Block):
    """TLS in this process; leave it out behind a sidecar."""

    certificate_file: Path = Field(description="PEM file with the server's certificate chain")
    key_file: Path = Field(description="PEM file with its private key")
    client_ca_file: Path | None = Field(
        None, description="PEM file; when set, clients must show a certificate of it, which says who they are"
    )


_OF_WHO_VERIFIES = {"keys_file", "keys_url", "refresh_seconds", "algorithms", "roles_claim", "owner_claim"}
"""Of TokenSettings: what is for who verifies a token."""


class TokenSettings(Block):
    """JSON Web Tokens, which callers send as `authorization: Bearer …`."""

    issuer: str = Field(min_length=1, description="The `iss` that a token must have")
    audience: str = Field(min_length=1, description="What must be among its `aud`")
    keys_file: Path | None = Field(None, description="The issuer's public keys, a JSON Web Key Set; or else the URL")
    keys_url: str | None = Field(
        None, description="Where the issuer serves its keys (its `jwks_uri`): https, or http on this machine"
    )
    refresh_seconds: float = Field(300.0, gt=0, le=86_400, description="How often the URL's keys are fetched")
    algorithms: tuple[Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA"], ...] = (
        Field(("RS256", "ES256"), min_length=1, description="The algorithms that a token may be signed with")
    )
    leeway_seconds: float = Field(30.0, ge=0, le=300, description="How far the issuer's clock may differ from this one")
    roles_claim: str = Field(
        "roles", description="The claim with the caller's roles, a list or a text with blanks; a.b is b within a"
    )
    owner_claim: str = Field("sub", description="The claim that says whose rows are the caller's own")
    remembered: int = Field(10_000, ge=1, le=1_000_000, description="Tokens that are remembered as verified")
    verified_by_sidecar: bool = Field(
        False,
        description="Believe `tandem-claims` of whoever connects, and look at no token: of a sidecar that has verified"
        " it, so only on a loopback address or a Unix socket. Keys, algorithms and the two claims are then set there",
    )

    @model_validator(mode="after")
    def _has_keys(self) -> Self:
        if self.verified_by_sidecar:
            if unused := sorted(_OF_WHO_VERIFIES & self.model_fields_set):
                raise ValueError(f"verified_by_sidecar: {', '.join(unused)} would not be looked at: set it there")
            return self
        if (self.keys_file is None) == (self.keys_url is None):
            raise ValueError("set one of keys_file and keys_url")
        if self.keys_url is not None:
            url = urlsplit(self.keys_url)
            if url.scheme != "https" and not (url.scheme == "http" and is_this_machine(url.hostname or "")):
                raise ValueError("keys_url must begin with https://: who can change the keys can be anybody")
        return self


class AuthenticationSettings(Block):
    """Who calls. With any of these, or with `tls.client_ca_file`, nobody without an identity gets past health."""

    token: TokenSettings | None = Field(None, description="Take tokens")
    forwarded_certificate: bool = Field(
        False,
        description="Believe `x-forwarded-client-cert` of whoever connects: of a sidecar, so only on a loopback address"
        " or a Unix socket",
    )


class ServerSettings(Block):
    """The gRPC server."""

    host: str = Field(
        "127.0.0.1",
        description="The address to listen on; 0.0.0.0 for every interface, which takes authentication; unix:/path for"
        " a Unix socket, to which its user and its group may connect",
    )
    port: int = Field(ge=0, le=65535, description="The port to listen on; 0 takes a free one and logs it")
    transport: Literal["auto", "native", "grpcio"] = Field(
        "auto",
        description="native serves HTTP/2 outside the GIL and no TLS; auto takes it where all callers are on this"
        " machine, and grpcio for networks",
    )
    io_threads: int = Field(
        1,
        ge=1,
        le=32,
        description="Threads of the native transport that read and write connections; one is enough for as many calls"
        " as Python can answer, unless messages are large",
    )
    tls: TlsSettings | None = Field(None, description="Speak TLS (transport grpcio)")
    authentication: AuthenticationSettings = Field(AuthenticationSettings(), description="Who calls")
    policy_file: Path | None = Field(
        None,
        description="TOML file: which roles may call what; needed where callers are asked who they are, and read again"
        " when it changes",
    )
    insecure: bool = Field(
        False,
        description="Serve beyond this machine without authentication, or by the native transport: only in a network"
        " that lets nobody in who may not read and write everything",
    )
    max_concurrent_calls: int = Field(
        2048, ge=1, description="Calls under way at once; past it RESOURCE_EXHAUSTED. Health checks are not counted"
    )
    max_health_streams: int = Field(
        1000, ge=1, description="Health watches and reflection streams open at once; past it RESOURCE_EXHAUSTED"
    )
    max_request_bytes: int = Field(
        256 * 1024,
        ge=1024,
        description="The largest request; one past it is refused before it is parsed. Twice what the contract can"
        " accept is enough",
    )
    max_response_bytes: int = Field(4 * 1024 * 1024, ge=1024, description="The largest answer, or message of a stream")
    max_held_bytes_per_connection: int = Field(
        64 * 1024 * 1024,
        ge=1024 * 1024,
        description="Bytes of answers that a caller does not take, and of requests that are not all here, in one"
        " connection; past it the connection is closed",
    )
    max_held_bytes: int = Field(
        256 * 1024 * 1024,
        ge=1024 * 1024,
        description="The same in all connections; past it the one that holds most is closed, of a Unix socket all",
    )
    request_seconds: float = Field(
        30.0, gt=0, le=600, description="Seconds that a request may take to come, on the transport grpcio"
    )
    max_connection_age_seconds: float = Field(
        300.0,
        ge=0,
        le=86_400,
        description="How old a connection of the transport grpcio becomes, to a tenth; what is under way in it ends in"
        " peace, and its caller connects anew, maybe to a server that came later. 0 is for ever",
    )
    drain_seconds: float = Field(10.0, ge=0, le=300, description="How long calls under way may finish at a stop")
    drain_delay_seconds: float = Field(
        0.0, ge=0, le=300, description="How long to answer NOT_SERVING before new calls are refused at a stop"
    )
    stop_seconds: float = Field(
        10.0,
        gt=0,
        le=300,
        description="How long what runs beside the calls may take to stop after that, whatever its stores do; then the"
        " process ends as it is",
    )
    still_seconds: float = Field(
        120.0,
        gt=0,
        le=3600,
        description="How long a thread may have something to do and not go on, until the health of `liveness` is"
        " NOT_SERVING",
    )
    reflection: bool | None = Field(
        None, description="Serve reflection, so that grpcurl needs no proto files; unless set, without authentication"
    )
    metrics_port: int = Field(0, ge=0, le=65535, description="Port for Prometheus metrics over HTTP; 0 is off")

    @model_validator(mode="after")
    def _native_speaks_no_tls(self) -> Self:
        if self.tls is not None and self.transport == "native":
            raise ValueError("transport native cannot speak TLS: use auto or grpcio")
        return self

    @model_validator(mode="after")
    def _is_closed(self) -> Self:
        token = self.authentication.token
        believing = {
            "forwarded_certificate": self.authentication.forwarded_certificate,
            "token.verified_by_sidecar": token is not None and token.verified_by_sidecar,
        }
        if not self.is_local and (name := next((it for it, believes in believing.items() if believes), None)):
            raise ValueError(
                f"authentication.{name} believes whoever connects, and {self.host} is beyond this"
                " machine: listen on 127.0.0.1 or a Unix socket, where the sidecar connects"
            )
        if self.authenticates != (self.policy_file is not None):
            raise ValueError(
                "policy_file is required: callers are asked who they are, and nothing says what they may"
                if self.authenticates
                else "policy_file says what callers may, and nobody is asked who he is: set authentication.token or"
                " tls.client_ca_file"
            )
        if self.is_local or self.insecure:
            return self
        if not self.authenticates:
            raise ValueError(
                f"{self.host} is beyond this machine, and nobody would be asked who he is: set authentication.token or"
                " tls.client_ca_file; or say insecure, where the network itself keeps everybody else out"
            )
        if self.transport == "native":
            raise ValueError(
                f"{self.host} is beyond this machine, and the native transport has no defence there: use auto or grpcio"
            )
        return self

    @property
    def is_local(self) -> bool:
        """Whether all callers are on this machine."""
        return is_this_machine(self.host)

    @property
    def authenticates(self) -> bool:
        """Whether callers are asked who they are."""
        by_certificate = self.tls is not None and self.tls.client_ca_file is not None
        return by_certificate or self.authentication.token is not None or self.authentication.forwarded_certificate


def is_this_machine(host: str) -> bool:
    """Whether nobody else can connect to an address: a loopback one, or a Unix socket."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.startswith(UNIX_SOCKET)


def grpc_options(settings: ServerSettings) -> list[tuple[str, int]]:
    """The options of a server of grpcio's."""
    return [
        # We refuse smaller ones, with details.
        (
            "grpc.max_receive_message_length",
            min(_MOST_TIMES_THE_LARGEST * settings.max_request_bytes, settings.max_held_bytes_per_connection),
        ),
        ("grpc.max_send_message_length", settings.max_response_bytes),
        # A compressed request comes as it was sent, and is unpacked up to our limit only.
        ("grpc.per_message_decompression", 0),
        ("grpc.compression_enabled_algorithms_bitset", _IDENTITY | _GZIP),
        ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_MILLISECONDS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.keepalive_time_ms", PING_MILLISECONDS),
        ("grpc.keepalive_timeout_ms", PING_TIMEOUT_MILLISECONDS),
        ("grpc.max_concurrent_streams", MAX_STREAMS_PER_CONNECTION),
        ("grpc.server.max_pending_requests", _MAX_PENDING_CALLS),
        ("grpc.server.max_pending_requests_hard_limit", _MAX_PENDING_CALLS),
        ("grpc.so_reuseport", 0),
    ]


class LogSettings(Block):
    """Logs, one JSON object a line on standard error."""

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="The least level to log")


class TraceSettings(Block):
    """Traces, in OpenTelemetry's form, sent by its protocol (OTLP)."""

    endpoint: str | None = Field(
        None,
        description="Where a collector takes spans: http://otel.internal:4317, or for http/protobuf"
        " http://otel.internal:4318/v1/traces; https:// for TLS",
    )
    protocol: Literal["grpc", "http/protobuf"] = Field("grpc", description="How spans are sent")
    ratio: float = Field(
        1.0, ge=0, le=1, description="Share of the calls that are traced, of those whose caller does not say whether"
    )
    headers: dict[str, SecretStr] = Field({}, description="Sent with them, such as a key")

    @field_validator("endpoint")
    @classmethod
    def _is_an_address(cls, endpoint: str | None) -> str | None:
        if endpoint is not None and not endpoint.startswith(("http://", "https://")):
            raise ValueError("must begin with http:// or https://")
        return endpoint


class ServiceSettings(BaseSettings):
    """The base of a service's settings. Subclasses set `section` and `env_prefix`."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        env_nested_delimiter="__",
        nested_model_default_partial_update=True,
    )
    section: ClassVar[str]

    log: LogSettings = Field(LogSettings(level="info"), description="Logs")
    trace: TraceSettings = Field(TraceSettings(), description="Traces")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the signature is pydantic's
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Explicit arguments (tests) over the environment over the file."""
        return init_settings, _Environment(settings_cls), InitSettingsSource(settings_cls, _read_section(cls.section))


class _Environment(EnvSettingsSource):
    """pydantic's, except that a list or block that is not JSON is one wrong key among others and not the end."""

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        try:
            return super().decode_complex_value(field_name, field, value)
        except ValueError:
            return value  # which is no list and no block, as the validation then says


def _read_section(name: str) -> dict[str, Any]:
    """A section of the TOML file that TANDEM_CONFIG names; empty when it names none."""
    path = os.environ.get(CONFIG_VARIABLE)
    if not path:
        return {}
    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{CONFIG_VARIABLE}={path}: {error}") from error
    unknown = sorted(set(content) - set(SECTIONS))
    if unknown:
        raise SettingsError(f"{path}: unknown section {', '.join(unknown)}; known: {', '.join(SECTIONS)}")
    section = content.get(name, {})
    if not isinstance(section, dict):
        raise SettingsError(f"{path}: {name} must be a section")
    return section


S = TypeVar("S", bound=ServiceSettings)


def load_settings(settings: type[S], **chosen: Any) -> S:
    """Reads a service's settings. chosen: over what is read. Raises SettingsError."""
    wrong = [f"{name}: unknown environment variable" for name in _unknown_variables(settings)]
    try:
        loaded = settings(**chosen)
    except ValidationError as error:
        wrong += [_sentence(settings, problem) for problem in error.errors(include_input=False, include_url=False)]
    else:
        if not wrong:
            return loaded
    raise SettingsError("\n  ".join([f"wrong settings for {settings.section}:", *wrong])) from None


def _sentence(settings: type[ServiceSettings], problem: "ErrorDetails") -> str:
    """Names the key as the file and as the environment spell it."""
    parts = [str(part) for part in problem["loc"] if isinstance(part, str)]
    variable = f"TANDEM_{settings.section.upper()}_{'__'.join(parts).upper()}"
    return f"{'.'.join([settings.section, *parts])} ({variable}): {problem['msg']}"


def _unknown_variables(settings: type[ServiceSettings]) -> list[str]:
    """A misspelt variable would silently leave the default in force, so it is an error.

    Variables of the other services, of the command line, and of Kubernetes are not looked at.
    """
    own = f"TANDEM_{settings.section.upper()}_"
    others = ("TANDEM_CLI_", *(f"TANDEM_{section.upper()}_" for section in SECTIONS if section != settings.section))
    known = {CONFIG_VARIABLE, *_variables(settings, own)}
    return sorted(
        name
        for name in os.environ
        if name.upper().startswith("TANDEM_")
        and not name.upper().startswith(others)
        and name not in known
        and not _SERVICE_LINK.fullmatch(f"{name}={os.environ[name]}")
    )


def _variables(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name.upper()
        if (block := block_of(field.annotation)) is not None:
            yield from _variables(block, f"{prefix}{name.upper()}__")


def block_of(annotation: Any) -> type[Block] | None:
    """The block that a field with this annotation holds; None for a plain value."""
    candidates = [annotation, *getattr(annotation, "__args__", ())]
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, Block)), None)
