"""The settings of reactions."""

import base64
import binascii
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from tandem.runtime.settings import Block, SettingsError

# As errors name it that come after the settings were read.
_SETTING = "command.webhook.secret_files (TANDEM_COMMAND_WEBHOOK__SECRET_FILES)"
# As Standard Webhooks has it.
_SECRET_PREFIX = "whsec_"  # noqa: S105 - of every secret
_LEAST_SECRET_BYTES, _MOST_SECRET_BYTES = 24, 64


class ReactionSettings(Block):
    """Reactions to events: docs/reactions.md."""

    poll_seconds: float = Field(
        1.0, gt=0, le=60, description="Time between looks at what is due; new events are told of and not waited for"
    )
    batch: int = Field(100, ge=1, le=1000, description="Commands of a kind that a server gives itself at once")
    attempt_seconds: float = Field(
        30.0, gt=0, le=600, description="After so long another server tries what one has begun and not ended"
    )


class WebhookSettings(Block):
    """Webhooks, as https://www.standardwebhooks.com describes them."""

    url: str = Field("", description="Where they are posted to, https://…; nothing is while it is empty")
    secret_files: list[Path] = Field(
        [],
        max_length=4,
        description="Files that hold a secret each, `whsec_` and base64 of 24 to 64 bytes: a message is signed with"
        " each, so that a new one can be known to the receiver before the old one goes",
    )
    ca_file: Path | None = Field(
        None, description="PEM file of who signed the receiver's certificate; the system's if not"
    )
    timeout_seconds: float = Field(10.0, gt=0, le=60, description="How long the receiver may take to answer")
    at_once: int = Field(4, ge=1, le=64, description="Messages that a server posts at once")
    first_retry_seconds: float = Field(
        5.0, gt=0, le=3600, description="Time to the second attempt; three times as long to each further one"
    )
    longest_retry_seconds: float = Field(6 * 3600.0, gt=0, le=86_400, description="Time between two attempts at most")
    max_attempts: int = Field(
        12,
        ge=1,
        le=100,
        description="Attempts, after which a message is parked: the dead letters of `tandem reactions`",
    )

    @field_validator("url")
    @classmethod
    def _is_a_url(cls, url: str) -> str:
        parts = urlsplit(url)
        if url and (parts.scheme not in {"http", "https"} or not parts.hostname):
            raise ValueError("must look like https://host/path")
        return url

    def secrets(self) -> list[bytes]:
        """Raises SettingsError where a file cannot be read, or holds no secret, or there is none."""
        if not self.secret_files:
            raise SettingsError(f"{_SETTING}: a message must be signed; name a file with a secret")
        return [_secret(file) for file in self.secret_files]


def _secret(file: Path) -> bytes:
    try:
        text = file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{_SETTING}: {file}: {error}") from error
    try:
        secret = base64.b64decode(text.removeprefix(_SECRET_PREFIX), validate=True)
    except binascii.Error:
        secret = b""
    if not text.startswith(_SECRET_PREFIX) or not _LEAST_SECRET_BYTES <= len(secret) <= _MOST_SECRET_BYTES:
        raise SettingsError(
            f"{_SETTING}: {file} must hold {_SECRET_PREFIX} and base64 of {_LEAST_SECRET_BYTES} to"
            f" {_MOST_SECRET_BYTES} bytes"
        )
    return secret
