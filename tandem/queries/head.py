"""How far the writes are: the feed's head, for queries that are to include every write before them.

The one thing that is asked of the write store. It is one row, read by a role that need be allowed nothing else.
"""

from collections.abc import Sequence

from sqlalchemy import text

from tandem.feed.table import feed_head
from tandem.feed.token import Token
from tandem.queries.freshness import FULLY_CONSISTENT, Asked
from tandem.queries.store import Store
from tandem.runtime.call import Call
from tandem.runtime.errors import PreconditionFailed, Violation
from tandem.runtime.settings import DatabaseSettings
from tandem.runtime.worker import Worker

_HEAD = text(f"SELECT epoch, position FROM {feed_head.fullname}")  # noqa: S608 - a table of ours


class Head(Worker):
    """Adds the feed's head to what calls need, and sends them back. Calls that come during a read share the next."""

    def __init__(self, settings: DatabaseSettings | None, *, max_waiting: int) -> None:
        """settings: of the write database; without them each call is refused."""
        super().__init__("head", [self._add_head], max_batch=max_waiting, max_waiting=max_waiting)
        self._store: Store | None = None
        if settings is not None:
            self._store = Store(settings, connections=1, what="write database", name="tandem-query-head")

    async def stop(self) -> None:
        await super().stop()
        if self._store is not None:
            await self._store.stop()

    def _add_head(self, calls: Sequence[Call]) -> None:
        """Raises PreconditionFailed where the write database is not set, and Unavailable while it is away."""
        if self._store is None:
            description = "this server is not set up to ask the write store; give a token instead (at_least_as_fresh)"
            raise PreconditionFailed([Violation(FULLY_CONSISTENT, description, "FULLY_CONSISTENT_NOT_CONFIGURED")])
        # After all of the calls came: a read that had begun may have missed what was acknowledged before one of them.
        [row] = self._store.execute(_HEAD, {})
        for call in calls:
            asked: Asked = call.asked
            asked.need = asked.need.with_head(Token(row.epoch, row.position))
            call.next = asked.home
