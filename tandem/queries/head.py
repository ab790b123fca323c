"""How far the writes are: the feed's head, for queries that are to include every write before them.

The one thing that is asked of the write store. It is one row, read by a role that need be allowed nothing else.
"""

from sqlalchemy import text

from tandem.feed.table import NEWEST_HEAD
from tandem.feed.token import Token
from tandem.queries.store import ONE_PLAN, Store
from tandem.runtime.errors import PreconditionFailed, Violation
from tandem.runtime.settings import DatabaseSettings

FULLY_CONSISTENT = "consistency.fully_consistent"

_HEAD = text(f"SELECT epoch, position FROM {NEWEST_HEAD} AS h")  # noqa: S608 - a table of ours


class Head:
    """Reads it, for one thread. `start` and `stop` make it a Component."""

    def __init__(self, settings: DatabaseSettings | None) -> None:
        """settings: of the write database; without them each read is refused."""
        self._store: Store | None = None
        if settings is not None:
            self._store = Store(
                settings, connections=1, session=ONE_PLAN, what="write database", name="tandem-query-head"
            )

    @property
    def is_set_up(self) -> bool:
        return self._store is not None

    async def start(self) -> None:
        """Nothing connects before the first use."""

    async def stop(self) -> None:
        if self._store is not None:
            await self._store.stop()

    def read(self) -> Token:
        """Raises PreconditionFailed where the write database is not set, and Unavailable while it is away."""
        if self._store is None:
            description = "this server is not set up to ask the write store; give a token instead (at_least_as_fresh)"
            raise PreconditionFailed([Violation(FULLY_CONSISTENT, description, "FULLY_CONSISTENT_NOT_CONFIGURED")])
        [row] = self._store.execute(_HEAD, {})
        return Token(row.epoch, row.position)
