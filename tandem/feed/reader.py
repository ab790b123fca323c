"""Following the feed: read from a position. tandem.runtime.listener waits for more."""

import uuid
from datetime import datetime

from sqlalchemy import Connection, select

from tandem.feed import table
from tandem.feed.events import FeedEvent


def read_events(connection: Connection, after: int, limit: int, epoch: uuid.UUID | None = None) -> list[FeedEvent]:
    """At most `limit` events that follow position `after`, in order. Empty when there are none yet.

    epoch: nothing is returned of a feed that is another; its positions are no continuation of ours.
    """
    query = (
        select(table.event.c.position, table.event.c.kind, table.event.c.payload, table.personal_key.c.key)
        .join_from(
            table.event,
            table.personal_key,
            table.personal_key.c.customer_id == table.event.c.customer_id,
            isouter=True,
        )
        .where(table.event.c.position > after)
        .order_by(table.event.c.position)
        .limit(limit)
    )
    if epoch is not None:
        query = query.where(select(table.feed_head.c.epoch).scalar_subquery() == epoch)
    return [FeedEvent(*row) for row in connection.execute(query)]


def recorded_at(connection: Connection, position: int) -> datetime | None:
    """When the event at a position was stored; None when there is none."""
    value: datetime | None = connection.execute(
        select(table.event.c.recorded_at).where(table.event.c.position == position)
    ).scalar_one_or_none()
    return value
