"""Page tokens: where a page ended, bound to the query that it belongs to, opaque to callers."""

import base64
import binascii
import hashlib
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from google.protobuf.message import DecodeError

from commerce.internal.v1.stored_pb2 import Alternatives, SearchPageToken
from tandem.internal.v1.stored_pb2 import PageToken

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_MAX_LENGTH = 200
# Ten words with three alternatives each of at most 60 letters.
_MAX_SEARCH_LENGTH = 10_000
_MAX_ALTERNATIVES = 3
_MAX_POSITION = 2**63 - 1


class MalformedPageToken(ValueError):
    """The text is not a page token that this program made for this query."""


@dataclass(frozen=True)
class Cursor:
    """The sort key of the last row of a page, newest first."""

    at: datetime
    position: int


FIRST_PAGE = Cursor(datetime.max.replace(tzinfo=UTC), _MAX_POSITION)
"""Before every row."""


def encode_page_token(cursor: Cursor, *query: str) -> str:
    """`query`: the query's name and all its arguments but the page size."""
    stored = PageToken(
        query=_fingerprint(query),
        sort_micros=(cursor.at - _EPOCH) // _MICROSECOND,
        sort_position=cursor.position,
    )
    return base64.urlsafe_b64encode(stored.SerializeToString()).rstrip(b"=").decode()


def decode_page_token(text: str, *query: str) -> Cursor:
    """The inverse of encode_page_token. Raises MalformedPageToken for anything else, whatever a caller sends."""
    if len(text) > _MAX_LENGTH:
        raise MalformedPageToken
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        stored = PageToken.FromString(raw)
        cursor = Cursor(_EPOCH + stored.sort_micros * _MICROSECOND, stored.sort_position)
    except (binascii.Error, DecodeError, ValueError, OverflowError):
        raise MalformedPageToken from None
    if cursor.position > _MAX_POSITION or encode_page_token(cursor, *query) != text:
        raise MalformedPageToken
    return cursor


@dataclass(frozen=True)
class SearchCursor:
    """Where a page of a search ended: the sort key and the id of its last product.

    alternatives: for each word of the query what it was taken for too; empty where nothing was.
    """

    rank: int
    key: uuid.UUID
    alternatives: tuple[tuple[str, ...], ...]


def encode_search_token(cursor: SearchCursor, *query: str) -> str:
    """`query`: as for encode_page_token."""
    stored = SearchPageToken(
        query=_fingerprint(query),
        rank=cursor.rank,
        product_id=cursor.key.bytes,
        alternatives=[Alternatives(words=words) for words in cursor.alternatives],
    )
    return base64.urlsafe_b64encode(stored.SerializeToString(deterministic=True)).rstrip(b"=").decode()


def decode_search_token(text: str, words: int, *query: str) -> SearchCursor:
    """The inverse of encode_search_token, for a query of so many words. Raises MalformedPageToken for anything else."""
    if len(text) > _MAX_SEARCH_LENGTH:
        raise MalformedPageToken
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        stored = SearchPageToken.FromString(raw)
        alternatives = tuple(tuple(it.words) for it in stored.alternatives)
        cursor = SearchCursor(stored.rank, uuid.UUID(bytes=stored.product_id), alternatives)
    except (binascii.Error, DecodeError, ValueError):
        raise MalformedPageToken from None
    # What is put into a statement: as many as this program makes, and no control characters.
    well_made = len(alternatives) in (0, words) and all(
        len(it) <= _MAX_ALTERNATIVES and all(word.isprintable() for word in it) for it in alternatives
    )
    if not well_made or encode_search_token(cursor, *query) != text:
        raise MalformedPageToken
    return cursor


# The next page is of the same query.
@lru_cache(maxsize=4096)
def _fingerprint(query: tuple[str, ...]) -> bytes:
    # Lengths keep ("a", "bc") apart from ("ab", "c").
    text = "".join(f"{len(part)}:{part}" for part in query)
    return hashlib.sha256(text.encode()).digest()[:8]
