"""Page tokens: where a page ended, bound to the query that it belongs to, opaque to callers."""

import base64
import binascii
import hashlib
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import NamedTuple, TypeVar

from google.protobuf.message import DecodeError, Message

from tandem.feed.token_signature import PAGE_TOKENS
from tandem.internal.v1.stored_pb2 import PageToken

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_MAX_LENGTH = 200
_MAX_POSITION = 2**63 - 1

M = TypeVar("M", bound=Message)


class MalformedPageToken(ValueError):
    """The text is not a page token that this program made for this query."""


@dataclass(frozen=True)
class Cursor:
    """The sort key of the last row of a page, newest first."""

    at: datetime
    position: int


FIRST_PAGE = Cursor(datetime.max.replace(tzinfo=UTC), _MAX_POSITION)
"""Before every row."""


class KeyCursor(NamedTuple):
    """The key of the last row of a page, of a list that is sorted by keys."""

    key: uuid.UUID


FIRST_KEY = KeyCursor(uuid.UUID(int=0))
"""Before every row: no row has this key."""


def encode_page_token(cursor: Cursor | KeyCursor, *query: str) -> str:
    """`query`: the query's name and all its arguments but the page size."""
    return encode_stored(_stored(cursor, query))


def decode_page_token(text: str, *query: str) -> Cursor:
    """The inverse of encode_page_token. Raises MalformedPageToken for anything else, whatever a caller sends."""
    stored, is_made_of = decode_stored(PageToken, text, _MAX_LENGTH)
    try:
        cursor = Cursor(_EPOCH + stored.sort_micros * _MICROSECOND, stored.sort_position)
    except OverflowError:
        raise MalformedPageToken from None
    if cursor.position > _MAX_POSITION or not is_made_of(_stored(cursor, query)):
        raise MalformedPageToken
    return cursor


def decode_key_token(text: str, *query: str) -> KeyCursor:
    """As decode_page_token, of a list that is sorted by keys."""
    stored, is_made_of = decode_stored(PageToken, text, _MAX_LENGTH)
    try:
        cursor = KeyCursor(uuid.UUID(bytes=stored.sort_key))
    except ValueError:
        raise MalformedPageToken from None
    if not is_made_of(_stored(cursor, query)):
        raise MalformedPageToken
    return cursor


def _stored(cursor: Cursor | KeyCursor, query: tuple[str, ...]) -> PageToken:
    if isinstance(cursor, KeyCursor):
        return PageToken(query=fingerprint(query), sort_key=cursor.key.bytes)
    return PageToken(
        query=fingerprint(query),
        sort_micros=(cursor.at - _EPOCH) // _MICROSECOND,
        sort_position=cursor.position,
    )


def encode_stored(stored: Message) -> str:
    """A message as a token's text: URL-safe ASCII, with its signature."""
    return PAGE_TOKENS.sign(_text(stored))


def _text(stored: Message) -> str:
    return base64.urlsafe_b64encode(stored.SerializeToString(deterministic=True)).rstrip(b"=").decode()


def decode_stored(kind: type[M], text: str, longest: int) -> tuple[M, Callable[[Message], bool]]:
    """A message of `kind` out of a token's text of at most `longest` characters, and whether a message is the one that
    the token was made of: another text may give the same. Raises MalformedPageToken.
    """
    if len(text) > longest:
        raise MalformedPageToken
    try:
        body = PAGE_TOKENS.unsigned(text)
        stored = kind.FromString(base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True))
        return stored, lambda it: _text(it) == body
    except (binascii.Error, DecodeError, ValueError):
        raise MalformedPageToken from None


# The next page is of the same query. Few: a query's words are a caller's, and may be some ten kilobytes.
@lru_cache(maxsize=256)
def fingerprint(query: tuple[str, ...]) -> bytes:
    """What binds a token to a query: its name and all its arguments but the page size."""
    # Lengths keep ("a", "bc") apart from ("ab", "c").
    text = "".join(f"{len(part)}:{part}" for part in query)
    return hashlib.sha256(text.encode()).digest()[:8]
