"""Blocks of settings of a program that relays."""

import ssl
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from tandem.runtime.settings import Block, SettingsError


class RelaySettings(Block):
    """How the feed is relayed."""

    source: str = Field(
        "/tandem", min_length=1, max_length=200, description="The CloudEvents' attribute `source`, a URI"
    )
    personal_data: Literal["sealed", "opened"] = Field(
        "sealed",
        description="Whether the personal data in events goes to the broker sealed, so that nobody there can read it,"
        " or opened: then to erase a person takes to make the stream anew",
    )
    first_position: int = Field(
        1, ge=1, description="The position that a new stream begins with; events before it are not in it"
    )
    batch_size: int = Field(1000, ge=1, le=10_000, description="Events that are read from the feed at once")
    poll_seconds: float = Field(0.1, gt=0, le=10, description="How soon a lost notification is made up for")
    takeover_seconds: float = Field(
        3.0,
        gt=0,
        le=600,
        description="How long the broker may stay behind the feed before a relay that stands by takes over",
    )
    check_seconds: float = Field(
        5.0, gt=0, le=600, description="How often the stream is compared with what was published to it"
    )
    retry_seconds: float = Field(1.0, gt=0, le=60, description="The pause after the broker or the feed did not answer")


class NatsSettings(Block):
    """NATS JetStream."""

    servers: tuple[str, ...] = Field(
        ("nats://127.0.0.1:4222",),
        min_length=1,
        description='Servers as a JSON list, ["nats://host:port", …]; tls:// for TLS. One is enough to find the others',
    )
    stream: str = Field(
        "tandem",
        pattern=r"^[A-Za-z0-9_]{1,32}$",
        description="What the names of streams and subjects begin with; a dash and the feed's epoch follow",
    )
    replicas: int = Field(3, ge=1, le=5, description="Servers that keep a new stream; 3 outlive the death of one")
    max_in_flight: int = Field(512, ge=1, le=10_000, description="Events that are published and not yet acknowledged")
    ack_seconds: float = Field(5.0, gt=0, le=60, description="How long the broker may take for an answer")
    user: str | None = Field(None, description="Who connects, where the server asks")
    password_file: Path | None = Field(None, description="A file that holds the user's password")
    token_file: Path | None = Field(None, description="A file that holds a token, instead of user and password")
    ca_file: Path | None = Field(None, description="PEM file with whom to trust; else the system's, with tls://")
    certificate_file: Path | None = Field(None, description="PEM file with a certificate to show, with mutual TLS")
    key_file: Path | None = Field(None, description="PEM file with its private key")

    @field_validator("servers")
    @classmethod
    def _are_addresses(cls, servers: tuple[str, ...]) -> tuple[str, ...]:
        for it in servers:
            if not it.startswith(("nats://", "tls://")):
                raise ValueError(f"must begin with nats:// or tls://, and not as {it} does")
        return servers

    def tls(self) -> ssl.SSLContext | None:
        """None where nothing asks for it. Raises SettingsError."""
        if self.ca_file is None and self.certificate_file is None and not any(map(_is_tls, self.servers)):
            return None
        try:
            context = ssl.create_default_context(cafile=str(self.ca_file) if self.ca_file is not None else None)
            if self.certificate_file is not None:
                context.load_cert_chain(self.certificate_file, self.key_file)
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(f"nats: a file of the certificates cannot be used: {error}") from error
        return context


class KafkaSettings(Block):
    """Kafka's protocol. Tested on emulators, and not yet run on Apache Kafka."""

    servers: tuple[str, ...] = Field(
        ("127.0.0.1:9092",),
        min_length=1,
        description='Brokers as a JSON list, ["host:port", …]. One is enough to find the others',
    )
    topic: str = Field(
        "tandem",
        pattern=r"^[A-Za-z0-9_]{1,32}$",
        description="What the names of topics begin with; a dash and the feed's epoch follow",
    )
    partitions: int = Field(
        12, ge=1, le=1000, description="Partitions of a new topic; they stay so many, for the order of an aggregate"
    )
    replicas: int = Field(3, ge=1, le=5, description="Brokers that keep a new topic; 3 outlive the death of one")
    ack_seconds: float = Field(
        5.0,
        ge=0.1,
        le=60,
        description="How long the brokers may take for an answer; not longer than a transaction may be open",
    )
    transaction_seconds: float = Field(
        10.0,
        ge=1,
        le=900,
        description="How long a transaction may be open: when the last relay dies in one, consumers wait so long",
    )
    protocol: Literal["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"] = Field(
        "plaintext", description="How to connect: with TLS (ssl), with a user (sasl), or both"
    )
    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "SCRAM-SHA-512", description="How the user is asked for, with sasl"
    )
    user: str | None = Field(None, description="Who connects, with sasl")
    password_file: Path | None = Field(None, description="A file that holds the user's password")
    ca_file: Path | None = Field(None, description="PEM file with whom to trust; else the system's, with ssl")
    certificate_file: Path | None = Field(None, description="PEM file with a certificate to show, with mutual TLS")
    key_file: Path | None = Field(None, description="PEM file with its private key")

    @model_validator(mode="after")
    def _answers_within_a_transaction(self) -> Self:
        # librdkafka takes no other times: nothing may be under way when its transaction has ended.
        ack, transaction = self.ack_seconds, self.transaction_seconds
        if ack > transaction:
            raise ValueError(f"ACK_SECONDS, {ack:g} s, must not be more than TRANSACTION_SECONDS, {transaction:g} s")
        return self

    def client(self) -> dict[str, Any]:
        """What librdkafka is to know to connect. Raises SettingsError."""
        chosen: dict[str, Any] = {"bootstrap.servers": ",".join(self.servers), "security.protocol": self.protocol}
        for name, file in (
            ("ssl.ca.location", self.ca_file),
            ("ssl.certificate.location", self.certificate_file),
            ("ssl.key.location", self.key_file),
        ):
            if file is not None:
                if not file.is_file():
                    raise SettingsError(f"kafka: {file} is no file")
                chosen[name] = str(file)
        if self.protocol.startswith("sasl"):
            chosen |= {
                "sasl.mechanism": self.mechanism,
                "sasl.username": self.user or "",
                "sasl.password": secret_of("kafka", self.password_file) or "",
            }
        return chosen


class EventBridgeSettings(Block):
    """Amazon EventBridge. Credentials come as AWS has them: from the environment, a file, or the role of the machine.

    Tested on an emulator, moto's server, and not yet run on AWS.
    """

    bus: str = Field(min_length=1, max_length=1600, description="The event bus, by its name or ARN; `default` is there")
    region: str | None = Field(None, description="AWS' region; unless set, as AWS has it")
    table: str = Field(
        "tandem-relay",
        pattern=r"^[A-Za-z0-9_.-]{3,255}$",
        description="The DynamoDB table that the relay's place is kept in; it is made where it is not there",
    )
    ack_seconds: float = Field(
        5.0, ge=0.1, le=60, description="How long AWS may take for an answer, and to take an event that it refused"
    )


def one_of(**brokers: Block | None) -> None:
    """Raises ValueError unless exactly one of the blocks of settings, by name, is there."""
    named = [name for name, block in brokers.items() if block is not None]
    if len(named) == 1:
        return
    choices = ", ".join(f"{it.upper()}__{'BUS' if it == 'eventbridge' else 'SERVERS'}" for it in brokers)
    if named:
        raise ValueError(f"a relay publishes to one broker, and {' and '.join(named)} are set: keep one of {choices}")
    raise ValueError(f"no broker is set to publish to: set one of {choices}")


def secret_of(block: str, file: Path | None) -> str | None:
    """What a file that a block of settings names holds. Raises SettingsError."""
    if file is None:
        return None
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{block}: {file}: {error}") from error


def _is_tls(server: str) -> bool:
    return server.startswith("tls://")
