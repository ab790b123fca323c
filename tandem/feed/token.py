"""Consistency tokens: a position, bound to the feed's epoch, opaque to callers."""

import base64
import binascii
import secrets
import uuid
from dataclasses import dataclass
from datetime import datetime

from google.protobuf.message import DecodeError

from tandem.feed.token_signature import CONSISTENCY_TOKENS
from tandem.internal.v1.stored_pb2 import ConsistencyToken

# The first character says how the rest is encoded, so that a later form can tell.
_VERSION = "1"


def new_mark() -> int:
    """63 random bits, never 0."""
    return secrets.randbits(63) or 1


def new_epoch(before: uuid.UUID, now: datetime) -> uuid.UUID:
    """An epoch that is later than the one before: a UUID of version 7, whose first 48 bits are a time."""
    milliseconds = max(int(now.timestamp() * 1000), epoch_order(before) + 1)
    return uuid.UUID(int=milliseconds << 80 | 7 << 76 | secrets.randbits(12) << 64 | 2 << 62 | secrets.randbits(62))


def epoch_order(epoch: uuid.UUID) -> int:
    """A later epoch of a feed has a higher number. A feed's first epoch is of version 4 and has none: 0."""
    return epoch.int >> 80 if epoch.version == 7 else 0


class MalformedToken(ValueError):
    """The text is not a token that this program, or another one with its secrets, made."""


@dataclass(frozen=True)
class Token:
    """A position in a feed. `epoch` names the feed; positions of different epochs cannot be compared.

    mark: of the event at the position, which no other history has there. 0 where it is not known: at position 0, of
    events from before there were marks, and in tokens from then.

    generation: of a view's position, which time the view was made; 0 for all other tokens, and where it is not known.
    """

    epoch: uuid.UUID
    position: int
    mark: int = 0
    generation: int = 0

    def includes(self, other: "Token") -> bool:
        """Whether a state at this token holds all that the other stands for; never so for one of another feed."""
        return (
            self.position >= other.position
            and self.epoch == other.epoch
            and not self.contradicts(other)
            and not self.is_made_anew_since(other)
        )

    def contradicts(self, other: "Token") -> bool:
        """Whether the two are of one feed, and of different histories of it: one of them was lost."""
        return (
            self.mark != other.mark
            and self.position == other.position
            and self.epoch == other.epoch
            and bool(self.mark and other.mark)
        )

    def is_made_anew_since(self, other: "Token") -> bool:
        """Whether the two are of one view, which was made anew in between."""
        return self.generation != other.generation and bool(self.generation and other.generation)


def encode_token(epoch: uuid.UUID, position: int, mark: int = 0, generation: int = 0) -> str:
    """The token's text: URL-safe ASCII, about 40 characters; 55 with a generation, 23 more with a signature."""
    return CONSISTENCY_TOKENS.sign(_encode(epoch, position, mark, generation))


def _encode(epoch: uuid.UUID, position: int, mark: int, generation: int) -> str:
    stored = ConsistencyToken(feed_epoch=epoch.bytes, position=position, mark=mark, generation=generation)
    return _VERSION + base64.urlsafe_b64encode(stored.SerializeToString()).rstrip(b"=").decode()


def decode_token(text: str) -> Token:
    """The inverse of encode_token. Raises MalformedToken for anything else, whatever a caller sends."""
    if not text.startswith(_VERSION) or len(text) > 100:
        raise MalformedToken
    try:
        text = CONSISTENCY_TOKENS.unsigned(text)
        body = text[len(_VERSION) :]
        raw = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
        stored = ConsistencyToken.FromString(raw)
        token = Token(uuid.UUID(bytes=stored.feed_epoch), stored.position, stored.mark, stored.generation)
    except (binascii.Error, DecodeError, ValueError, UnicodeEncodeError):
        raise MalformedToken from None
    if _encode(token.epoch, token.position, token.mark, token.generation) != text:
        raise MalformedToken
    return token
