"""The feed's head: how far the writes are. Who reads nothing of the events may read it."""

import uuid
from dataclasses import dataclass

from sqlalchemy import Connection, select, text

from tandem.feed import table


@dataclass(frozen=True)
class FeedHead:
    """The feed's epoch and its last position, 0 while it is empty. mark: of the event there, where it was asked for."""

    epoch: uuid.UUID
    position: int
    mark: int = 0


def read_head(connection: Connection) -> FeedHead:
    row = connection.execute(_READ).one()
    return FeedHead(row.epoch, row.position)


_READ = text(f"SELECT epoch, position FROM {table.NEWEST_HEAD} AS h")  # noqa: S608 - a table of ours


def read_marked_head(connection: Connection) -> FeedHead:
    """As `read_head`, with the mark, for those who may read the events."""
    row = connection.execute(_READ_MARKED).one()
    return FeedHead(row.epoch, row.position, row.mark or 0)


_READ_MARKED = text(f"""
SELECT epoch, position, (SELECT mark FROM {table.event.fullname} AS e WHERE e.position = h.position) AS mark
FROM {table.NEWEST_HEAD} AS h
""")  # noqa: S608


def read_ended_epochs(connection: Connection) -> frozenset[uuid.UUID]:
    """The epochs that the feed had before this one."""
    return frozenset(connection.execute(select(table.ended_epoch.c.epoch)).scalars())
