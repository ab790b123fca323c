"""Secrets that this program signs with what it gives away and takes back: the cache's entries, tokens."""

from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

from pydantic import Field, SecretStr

from tandem.runtime.settings import Block, SettingsError

_LEAST_CHARACTERS = 16

Mac = Callable[[bytes], bytes]
"""What proves that somebody who has the secret has seen these bytes."""


class SecretSettings(Block):
    """Secrets, each on a line: the first one signs, all of them are accepted. So a new one comes without a break."""

    secret: SecretStr | None = Field(
        None, min_length=_LEAST_CHARACTERS, description="Signs, in all services alike; without one nothing is signed"
    )
    secret_file: Path | None = Field(
        None, description="A file that holds the secret; with more, on lines of their own, that are accepted too"
    )

    def read(self, block: str) -> list[str]:
        """The one that signs first; none where nothing is to be signed. block: its name, for the SettingsError that is
        raised when the file cannot be read, or has none.
        """
        if self.secret_file is None:
            return [self.secret.get_secret_value()] if self.secret is not None else []
        try:
            lines = self.secret_file.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"{block} secret_file: {error}") from error
        secrets = [line.strip() for line in lines if line.strip()]
        if not secrets or min(map(len, secrets)) < _LEAST_CHARACTERS:
            raise SettingsError(
                f"{block} secret_file: {self.secret_file} must have a secret of {_LEAST_CHARACTERS} characters or more"
                " on each line"
            )
        return secrets


def mac_of(secret: str, size: int, purpose: bytes = b"") -> Mac:
    """Of `size` bytes. purpose: at most 16 bytes; what is signed for one proves nothing for another."""
    # To copy one that has taken the key takes 0.2 µs less than to give it the key.
    begun = blake2b(digest_size=size, key=blake2b(secret.encode()).digest(), person=purpose)

    def mac(signed: bytes) -> bytes:
        copy = begun.copy()
        copy.update(signed)
        return copy.digest()

    return mac
