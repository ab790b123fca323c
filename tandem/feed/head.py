"""The feed's head: how far the writes are. Who reads nothing of the events may read it."""

import uuid
from dataclasses import dataclass

from sqlalchemy import Connection, text

from tandem.feed import table


@dataclass(frozen=True)
class FeedHead:
    """The feed's epoch and its last position, 0 while it is empty."""

    epoch: uuid.UUID
    position: int


def read_head(connection: Connection) -> FeedHead:
    row = connection.execute(_READ).one()
    return FeedHead(row.epoch, row.position)


_READ = text(f"SELECT epoch, position FROM {table.NEWEST_HEAD} AS h")  # noqa: S608 - a table of ours
