"""The feed's head: how far the writes are. Who reads nothing of the events may read it."""

import uuid
from dataclasses import dataclass

from sqlalchemy import Connection, select

from tandem.feed import table


@dataclass(frozen=True)
class FeedHead:
    """The feed's epoch and its last position, 0 while it is empty. mark: of the event there, where it was asked for."""

    epoch: uuid.UUID
    position: int
    mark: int = 0


def read_head(connection: Connection) -> FeedHead:
    row = connection.execute(select(table.feed_head.c.epoch, table.feed_head.c.position)).one()
    return FeedHead(row.epoch, row.position)


def read_marked_head(connection: Connection) -> FeedHead:
    """As `read_head`, with the mark, for those who may read the events."""
    head, event = table.feed_head.c, table.event.c
    mark = select(event.mark).where(event.position == head.position).scalar_subquery()
    row = connection.execute(select(head.epoch, head.position, mark.label("mark"))).one()
    return FeedHead(row.epoch, row.position, row.mark or 0)


def read_ended_epochs(connection: Connection) -> frozenset[uuid.UUID]:
    """The epochs that the feed had before this one."""
    return frozenset(connection.execute(select(table.ended_epoch.c.epoch)).scalars())
