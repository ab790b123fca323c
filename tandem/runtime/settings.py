"""Settings: shared blocks, and the one place that reads the environment.

A service's settings come from the environment (`TANDEM_COMMAND_DATABASE__URL=…`) over a TOML file that TANDEM_CONFIG
names (`[command.database]` / `url = "…"`) over the defaults. An unknown key is an error in either. Settings are frozen.
"""

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

# The sections of the file, and the middle word of the environment names.
SECTIONS = ("command", "query", "projector")
CONFIG_VARIABLE = "TANDEM_CONFIG"


class SettingsError(Exception):
    """The settings are wrong; the message names every wrong key and where it came from."""


class Block(BaseModel):
    """A group of settings that several services share."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class DatabaseSettings(Block):
    """One PostgreSQL database."""

    url: SecretStr = Field(description="postgresql://user:password@host:port/database, or ?host=/socket/folder")
    password_file: Path | None = Field(None, description="A file that holds the password, instead of one in the URL")
    connect_timeout: int = Field(3, ge=1, le=60, description="Seconds to wait for a connection")
    statement_timeout: float = Field(5.0, gt=0, le=300, description="Seconds that one statement may take")
    lock_timeout: float = Field(2.0, gt=0, le=300, description="Seconds that a statement may wait for a row lock")

    @field_validator("url")
    @classmethod
    def _is_a_postgresql_url(cls, url: SecretStr) -> SecretStr:
        try:
            backend = make_url(url.get_secret_value()).get_backend_name()
        except (ArgumentError, ValueError):
            raise ValueError("must look like postgresql://user@host:port/database") from None
        if backend != "postgresql":
            raise ValueError(f"must begin with postgresql://, not {backend}://")
        return url


class TlsSettings(Block):
    """TLS in this process; leave it out behind a sidecar."""

    certificate_file: Path = Field(description="PEM file with the server's certificate chain")
    key_file: Path = Field(description="PEM file with its private key")
    client_ca_file: Path | None = Field(None, description="PEM file; when set, clients must show a certificate of it")


class ServerSettings(Block):
    """The gRPC server."""

    host: str = Field("127.0.0.1", description="The address to listen on; 0.0.0.0 for every interface")
    port: int = Field(ge=0, le=65535, description="The port to listen on; 0 takes a free one and logs it")
    transport: Literal["auto", "native", "grpcio"] = Field(
        "auto", description="native serves HTTP/2 outside the GIL and no TLS; auto takes it where it can"
    )
    io_threads: int = Field(
        1,
        ge=1,
        le=32,
        description="Threads of the native transport that read and write connections; one is enough for as many calls"
        " as Python can answer, unless messages are large",
    )
    tls: TlsSettings | None = Field(None, description="Speak TLS (transport grpcio)")
    max_concurrent_calls: int = Field(
        2048, ge=1, description="Calls under way at once; past it RESOURCE_EXHAUSTED. Health checks are not counted"
    )
    max_message_bytes: int = Field(4 * 1024 * 1024, ge=1024, description="The largest message to receive or send")
    drain_seconds: float = Field(10.0, ge=0, le=300, description="How long calls under way may finish at a stop")
    drain_delay_seconds: float = Field(
        0.0, ge=0, le=300, description="How long to answer NOT_SERVING before new calls are refused at a stop"
    )
    reflection: bool = Field(True, description="Serve reflection, so that grpcurl needs no proto files")
    metrics_port: int = Field(0, ge=0, le=65535, description="Port for Prometheus metrics over HTTP; 0 is off")

    @model_validator(mode="after")
    def _native_speaks_no_tls(self) -> Self:
        if self.tls is not None and self.transport == "native":
            raise ValueError("transport native cannot speak TLS: use auto or grpcio")
        return self


class LogSettings(Block):
    """Logs, one JSON object a line on standard error."""

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="The least level to log")


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
        return init_settings, _Environment(settings_cls), _FileSection(settings_cls, cls.section)


class _Environment(EnvSettingsSource):
    """pydantic's, except that a list or block that is not JSON is one wrong key among others and not the end."""

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        try:
            return super().decode_complex_value(field_name, field, value)
        except ValueError:
            return value  # which is no list and no block, as the validation then says


class _FileSection(PydanticBaseSettingsSource):
    """One section of the TOML file that TANDEM_CONFIG names; empty when it names none."""

    def __init__(self, settings_cls: type[BaseSettings], section: str) -> None:
        super().__init__(settings_cls)
        self._section = section

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
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
        section = content.get(self._section, {})
        if not isinstance(section, dict):
            raise SettingsError(f"{path}: {self._section} must be a section")
        return section


S = TypeVar("S", bound=ServiceSettings)


def load(settings: type[S]) -> S:
    """Reads a service's settings.

    Raises SettingsError, which names every wrong or unknown key.
    """
    wrong = [f"{name}: unknown environment variable" for name in _unknown_variables(settings)]
    try:
        loaded = settings()
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

    Variables of the other services are not looked at.
    """
    own = f"TANDEM_{settings.section.upper()}_"
    others = tuple(f"TANDEM_{section.upper()}_" for section in SECTIONS if section != settings.section)
    known = {CONFIG_VARIABLE, *_variables(settings, own)}
    return sorted(
        name
        for name in os.environ
        if name.upper().startswith("TANDEM_") and not name.upper().startswith(others) and name not in known
    )


def _variables(model: type[BaseModel], prefix: str) -> list[str]:
    names = []
    for name, field in model.model_fields.items():
        variable = prefix + name.upper()
        names.append(variable)
        block = _block_of(field.annotation)
        if block is not None:
            names += _variables(block, variable + "__")
    return names


def _block_of(annotation: Any) -> type[Block] | None:
    candidates = [annotation, *getattr(annotation, "__args__", ())]
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, Block)), None)


def describe(settings: type[ServiceSettings]) -> list[tuple[str, str, str]]:
    """(environment name, default as one writes it, description) of every setting, for the documentation."""
    return _describe(settings, f"TANDEM_{settings.section.upper()}_", {}, "required")


def _describe(
    model: type[BaseModel], prefix: str, defaults: Mapping[str, Any], required: str
) -> list[tuple[str, str, str]]:
    """`defaults`: what the block around says, over the fields' own. `required`: what to say of a field without any."""
    rows = []
    for name, field in model.model_fields.items():
        default = defaults.get(name, field.get_default())
        block = _block_of(field.annotation)
        if block is not None:
            given = default if isinstance(default, Block) else None
            if default is None:
                # Otherwise the block's fields say all.
                rows.append((f"{prefix}{name.upper()}__…", "none", field.description or ""))
            without = required if default is not None else f"required with {name}"
            inner = {part: getattr(given, part) for part in given.model_fields_set} if given is not None else {}
            rows += _describe(block, f"{prefix}{name.upper()}__", inner, without)
        else:
            missing = field.is_required() and name not in defaults
            rows.append((prefix + name.upper(), required if missing else _written(default), field.description or ""))
    return rows


def _written(value: Any) -> str:
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value)
