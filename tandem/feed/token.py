"""Consistency tokens: a position, bound to the feed's epoch, opaque to callers."""

import base64
import binascii
import uuid
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from tandem.internal.v1.stored_pb2 import ConsistencyToken

# The first character says how the rest is encoded, so that a later form can tell.
_VERSION = "1"


class MalformedToken(ValueError):
    """The text is not a token that this program made."""


@dataclass(frozen=True)
class Token:
    """A position in a feed. `epoch` names the feed; positions of different epochs cannot be compared."""

    epoch: uuid.UUID
    position: int

    def includes(self, other: "Token") -> bool:
        """Whether a state at this token holds all that the other stands for; never so for one of another feed."""
        return self.epoch == other.epoch and self.position >= other.position


def encode_token(epoch: uuid.UUID, position: int) -> str:
    """The token's text: URL-safe ASCII, about 30 characters."""
    stored = ConsistencyToken(feed_epoch=epoch.bytes, position=position)
    return _VERSION + base64.urlsafe_b64encode(stored.SerializeToString()).rstrip(b"=").decode()


def decode_token(text: str) -> Token:
    """The inverse of encode_token. Raises MalformedToken for anything else, whatever a caller sends."""
    if not text.startswith(_VERSION) or len(text) > 100:
        raise MalformedToken
    body = text[len(_VERSION) :]
    try:
        raw = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
        stored = ConsistencyToken.FromString(raw)
        token = Token(uuid.UUID(bytes=stored.feed_epoch), stored.position)
    except (binascii.Error, DecodeError, ValueError, UnicodeEncodeError):
        raise MalformedToken from None
    if encode_token(token.epoch, token.position) != text:
        raise MalformedToken
    return token
