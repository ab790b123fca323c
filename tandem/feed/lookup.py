"""The feed as it is looked up by who does not follow it: what operators ask, and rows that are made again from it.

It is looked up where it is followed: in the table, or in the relay's stream (tandem.relay.stream_lookup). So a
projector that follows the stream needs no way to the write database.
"""

import uuid
from collections.abc import Callable, Collection
from datetime import datetime
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection, text

from tandem.feed import table
from tandem.feed.archive import Archive
from tandem.feed.events import EventContract, FeedEvent
from tandem.feed.head import FeedHead, read_head
from tandem.feed.reader import ScannedPart, read_events, recorded_at, scan_history
from tandem.runtime.database import create_database_engine, read_pooled
from tandem.runtime.settings import DatabaseSettings

T = TypeVar("T")

# Whether a command in steps, such as an erasure, has steps left.
_UNFINISHED = text(f"""
SELECT EXISTS (SELECT FROM {table.SCHEMA}.unfinished) AS under_way, h.position FROM {table.NEWEST_HEAD} AS h
""")  # noqa: S608 - only names of tables are put in


class Lookup(Protocol):
    """For one thread, while a query of `Lookups.read` runs. Its errors are those of `Lookups.read`, and BrokenOff."""

    def head(self) -> FeedHead: ...

    def event(self, position: int, epoch: uuid.UUID) -> FeedEvent:
        """The event at a position that the feed has. Raises EventsMissing where it is not kept any more."""
        ...

    def recorded_at(self, position: int) -> datetime | None:
        """When the event at a position was stored; None where there is none."""
        ...

    def scan(
        self,
        after: int,
        until: int,
        limit: int,
        *,
        epoch: uuid.UUID,
        kinds: Collection[str],
        texts: Collection[str] = (),
    ) -> ScannedPart:
        """As tandem.feed.reader.scan_history has it."""
        ...

    def unfinished(self) -> tuple[bool, int]:
        """Whether an erasure may be under way, whose keys are gone and whose events are to come; the feed's head."""
        ...


class Lookups(Protocol):
    """For any thread. what: the name of the store, in errors."""

    what: str

    def read(self, query: Callable[[Lookup], T]) -> T:
        """What a query finds; it may be run a second time where a connection has ended. Raises SQLAlchemyError or
        Unavailable while the store is away.
        """
        ...

    def close(self) -> None:
        """Not on a thread with an event loop."""
        ...


NewLookups = Callable[[str, int], Lookups]
"""(name, how many queries at once) -> Lookups. name: what the store shows of the connections."""


class TableLookup:
    """A Lookup."""

    def __init__(self, connection: Connection, contract: EventContract[Any], archive: Archive | None = None) -> None:
        """connection: to the write database, in autocommit mode. archive: where the oldest events may be."""
        self._connection = connection
        self._contract = contract
        self._archive = archive or Archive(None)

    def head(self) -> FeedHead:
        return read_head(self._connection)

    def event(self, position: int, epoch: uuid.UUID) -> FeedEvent:
        part = read_events(self._connection, self._contract, position - 1, 1, epoch=epoch, archive=self._archive)
        return part.events[0]

    def recorded_at(self, position: int) -> datetime | None:
        return recorded_at(self._connection, position, self._archive)

    def scan(
        self,
        after: int,
        until: int,
        limit: int,
        *,
        epoch: uuid.UUID,
        kinds: Collection[str],
        texts: Collection[str] = (),
    ) -> ScannedPart:
        return scan_history(
            self._connection,
            self._contract,
            after,
            until,
            limit,
            epoch=epoch,
            kinds=kinds,
            texts=texts,
            archive=self._archive,
        )

    def unfinished(self) -> tuple[bool, int]:
        row = self._connection.execute(_UNFINISHED).one()
        return row.under_way, row.position


class TableLookups:
    """Lookups."""

    what = "write database"

    def __init__(
        self, database: DatabaseSettings, contract: EventContract[Any], archive: Archive, *, name: str, at_once: int
    ) -> None:
        self._engine = create_database_engine(database, name=name, pool_size=at_once, by_key=True, autocommit=True)
        self._contract = contract
        self._archive = archive

    def read(self, query: Callable[[Lookup], T]) -> T:
        return read_pooled(self._engine, lambda it: query(TableLookup(it, self._contract, self._archive)))

    def close(self) -> None:
        self._engine.dispose()
