"""A query's way: wait for the token, read, check what was read against the token."""

import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple, Protocol, TypeVar
from uuid import UUID

from query_server.batcher import Batcher
from query_server.freshness import Freshness, projection_lag
from query_server.head import Head
from query_server.reader import Found, Reader
from tandem.feed.token import Token, encode_token
from tandem.runtime.calls import Call
from tandem.runtime.errors import PreconditionFailed, Unavailable, Violation

# What is left of the caller's deadline when a wait ends, so that the answer says why, and arrives.
_MARGIN_SECONDS = 0.1

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Need:
    """How fresh an answer must be.

    token: what it must include, None for anything; max_wait: in seconds. fully_consistent: it must include all that was
    committed before the call, and the token is None.
    """

    token: Token | None
    max_wait: float
    fully_consistent: bool = False


class Rows(NamedTuple):
    """The values in the order of the keys, None where there is no row, and the position that all of them include."""

    values: list[bytes | None]
    as_of: Token


class _OneState(Protocol):
    """What was read in one statement, and the position that it includes."""

    @property
    def as_of(self) -> Token: ...


V = TypeVar("V", bound=_OneState)


class Views:
    def __init__(self, freshness: Freshness, reader: Reader, head: Head) -> None:
        self._freshness = freshness
        self._reader = reader
        self._head = head

    async def get(self, view: str, keys: Sequence[UUID], need: Need, call: Call) -> Rows:
        """The rows of `view` with `keys`.

        Raises Unavailable (PROJECTION_LAG, STORE_UNAVAILABLE), PreconditionFailed for a token of another feed and where
        fully_consistent is not set up, and Overloaded.
        """
        began = time.monotonic()
        need = await self.reach(view, need, call)
        found = await self._reader.read(view, keys)
        as_of = _oldest(found)
        if as_of is None or not _includes(as_of, need):
            # The announcements and the database know of different states; the database's own word is final.
            found = await self._reader.read_stored(view, keys)
            as_of = _oldest(found)
            if as_of is not None and await self._reach_again(view, as_of, need, call, began):
                found = await self._reader.read_stored(view, keys)
                as_of = _oldest(found)
            if as_of is None:
                raise Unavailable(f"the view {view} is being replaced", reason="STORE_UNAVAILABLE")
            require(view, as_of, need)
        return Rows([it.value for it in found], as_of)

    async def read(self, view: str, reads: Batcher[K, V], wanted: K, need: Need, call: Call) -> V:
        """What `reads` finds in the database's `view`. Raises as `get` does, and what the reader raises."""
        began = time.monotonic()
        need = await self.reach(view, need, call)
        [found] = await reads.read([wanted])
        if await self._reach_again(view, found.as_of, need, call, began):
            [found] = await reads.read([wanted])
        require(view, found.as_of, need)
        return found

    async def _reach_again(self, view: str, as_of: Token, need: Need, call: Call, began: float) -> bool:
        """Where the database is behind what was announced, waits for it as for any token, since `began` in all.

        Whether the view is to be read again.
        """
        left = need.max_wait - (time.monotonic() - began)
        if need.token is None or as_of.epoch != need.token.epoch or _includes(as_of, need) or left <= 0:
            return False
        self._freshness.doubt(view)
        await self.reach(view, replace(need, max_wait=left), call)
        return True

    async def reach(self, view: str, need: Need, call: Call) -> Need:
        """Waits until `view` is as fresh as needed, or until only reading it can tell; what is read is to be checked.

        Returns the need with its token, which is the same for all views that are reached with it. Raises as `get` does.
        """
        if need.fully_consistent and need.token is None:
            need = replace(need, token=await self._head.token())
        if need.token is not None:
            left = call.seconds_left()
            # A short deadline keeps most of its time for the wait.
            seconds = min(need.max_wait, left - min(_MARGIN_SECONDS, left / 4))
            await self._freshness.reach(view, need.token, seconds)
        return need


@lru_cache(maxsize=1024)
def as_of_text(as_of: Token) -> bytes:
    """The token's text in UTF-8. All answers between two announcements share it."""
    return encode_token(as_of.epoch, as_of.position).encode()


def _includes(as_of: Token, need: Need) -> bool:
    return need.token is None or as_of.includes(need.token)


def _oldest(found: Sequence[Found]) -> Token | None:
    """The position that all include; None when they are of different feeds and no position is."""
    oldest = found[0].as_of
    for it in found:
        if it.as_of is not oldest:
            if it.as_of.epoch != oldest.epoch:
                return None
            if oldest.includes(it.as_of):
                oldest = it.as_of
    return oldest


def require(view: str, as_of: Token, need: Need, *, field: str = "consistency.at_least_as_fresh") -> None:
    """Raises Unavailable or PreconditionFailed when what was read at `as_of` is not as fresh as needed.

    field: where the caller gave the token.
    """
    wanted = need.token
    if wanted is None or _includes(as_of, need):
        return
    if as_of.epoch == wanted.epoch:
        raise projection_lag(view, as_of, wanted)
    if need.fully_consistent:
        message = f"the view {view} was made from another feed than the write store has now, and is to be made anew"
        raise Unavailable(message, reason="STORE_UNAVAILABLE")
    description = "belongs to another feed: the write store was restored since, and what it stood for may be gone"
    raise PreconditionFailed([Violation(field, description, "TOKEN_EPOCH_MISMATCH")])
