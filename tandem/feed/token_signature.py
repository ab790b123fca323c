"""Tokens with a signature: who has no secret of ours cannot make one, nor change one.

All tokens of a program are of one feed and signed alike, so the secrets are the process's, as its log is. Without any,
tokens have no signature, and one that comes with a token is not looked at: servers that have the secrets already and
those that do not understand each other, in any order in which they get them.
"""

import base64
import hmac
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TypeVar

from pydantic import Field

from tandem.runtime.signing import Mac, SecretSettings, mac_of

# None of the letters of a token.
_BEFORE_MAC = "."
_MAC_BYTES, _MAC_CHARACTERS = 16, 22

R = TypeVar("R")


class SignedTokenSettings(SecretSettings):
    """The signature of consistency tokens, feed cursors and page tokens. The same in all services."""

    accept_unsigned: bool = Field(
        False, description="Whether tokens without a signature are accepted too: those from before there was a secret"
    )


class BadSignature(ValueError):
    """The token was not signed by one of our secrets."""


class TokenSignature:
    """Of tokens of one kind: one of another kind is none."""

    def __init__(self, purpose: bytes) -> None:
        self._purpose = purpose
        self._macs: list[Mac] = []
        self._accepts_unsigned = True

    def use(self, secrets: Sequence[str], *, accept_unsigned: bool) -> None:
        """The first secret signs, all are accepted."""
        self._macs = [mac_of(it, _MAC_BYTES, self._purpose) for it in secrets]
        self._accepts_unsigned = accept_unsigned or not secrets

    def sign(self, text: str) -> str:
        """The token with its signature; as it is where there is no secret. With one it takes 1 µs."""
        return f"{text}{_BEFORE_MAC}{_encoded(self._macs[0], text)}" if self._macs else text

    def unsigned(self, text: str) -> str:
        """The token without its signature. Raises BadSignature, and UnicodeEncodeError for text that is no token."""
        token, separator, signature = text.partition(_BEFORE_MAC)
        if not separator:
            if self._accepts_unsigned:
                return token
            raise BadSignature
        well_made = len(signature) == _MAC_CHARACTERS and signature.isascii()
        if not well_made or (self._macs and not self._is_ours(token, signature)):
            raise BadSignature
        return token

    def _is_ours(self, token: str, signature: str) -> bool:
        return any(hmac.compare_digest(_encoded(it, token), signature) for it in self._macs)


CONSISTENCY_TOKENS, PAGE_TOKENS = TokenSignature(b"consistency"), TokenSignature(b"page")

_forget: list[Callable[[], None]] = []


def sign_tokens(settings: SignedTokenSettings) -> None:
    """From now on, in the whole process. Raises SettingsError when the file of the secrets cannot be used."""
    secrets = settings.read("tokens")
    for kind in (CONSISTENCY_TOKENS, PAGE_TOKENS):
        kind.use(secrets, accept_unsigned=settings.accept_unsigned)
    for forget in _forget:
        forget()


def remembered(maxsize: int) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """functools.lru_cache for what makes or reads tokens: it forgets when their secrets change."""

    def remember(function: Callable[..., R]) -> Callable[..., R]:
        cached = lru_cache(maxsize=maxsize)(function)
        _forget.append(cached.cache_clear)
        return cached

    return remember


def _encoded(mac: Mac, token: str) -> str:
    return base64.urlsafe_b64encode(mac(token.encode("ascii"))).rstrip(b"=").decode()
