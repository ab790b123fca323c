"""How far the writes are: the feed's head, for queries that are to include every write before them.

The one thing that is asked of the write store. It is one row, read by a role that need be allowed nothing else.
"""

from collections.abc import Sequence
from typing import Literal

from sqlalchemy import text

from query_server.batcher import Batcher
from query_server.store import Store
from tandem.feed.table import feed_head
from tandem.feed.token import Token
from tandem.runtime.errors import PreconditionFailed, Violation
from tandem.runtime.settings import DatabaseSettings

_HEAD = text(f"SELECT epoch, position FROM {feed_head.fullname}")  # noqa: S608 - only the table's name is put in

_Key = Literal["head"]


class Head:
    """The feed's head. `start` and `stop` make it a Component; without settings it refuses."""

    def __init__(self, settings: DatabaseSettings | None) -> None:
        self._feed = _Feed(settings) if settings is not None else None
        # Calls that come while a read is under way share the next one: the one under way may have looked before a
        # command was acknowledged that such a call is to see.
        self._reads = Batcher[_Key, Token]("head", [self._feed.head] if self._feed else [], max_batch=1, max_waiting=2)

    async def start(self) -> None:
        if self._feed is not None:
            await self._reads.start()

    async def stop(self) -> None:
        if self._feed is not None:
            await self._reads.stop()
            await self._feed.stop()

    async def token(self) -> Token:
        """A token for all that was committed before this call.

        Raises PreconditionFailed where the write store is not set, and Unavailable while it is away.
        """
        if self._feed is None:
            description = "this server is not set up to ask the write store; give a token instead (at_least_as_fresh)"
            violation = Violation("consistency.fully_consistent", description, "FULLY_CONSISTENT_NOT_CONFIGURED")
            raise PreconditionFailed([violation])
        [head] = await self._reads.read(["head"])
        return head


class _Feed(Store):
    def __init__(self, settings: DatabaseSettings) -> None:
        super().__init__(settings, "write database", name="tandem-query-head", connections=1)

    def head(self, batch: Sequence[_Key]) -> dict[_Key, Token]:
        """Raises Unavailable."""
        [row] = self._execute(_HEAD, {})
        return dict.fromkeys(batch, Token(row.epoch, row.position))
