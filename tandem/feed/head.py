"""The feed's head: how far the writes are. Who reads nothing of the events may read it."""

import uuid
from dataclasses import dataclass

from sqlalchemy import Connection, select

from tandem.feed import table


@dataclass(frozen=True)
class FeedHead:
    """The feed's epoch and its last position, 0 while it is empty."""

    epoch: uuid.UUID
    position: int


def read_head(connection: Connection) -> FeedHead:
    row = connection.execute(select(table.feed_head.c.epoch, table.feed_head.c.position)).one()
    return FeedHead(row.epoch, row.position)
