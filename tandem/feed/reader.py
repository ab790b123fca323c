"""Following the feed: read from a position. tandem.runtime.listener waits for more."""

import uuid
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import Connection, select

from tandem.feed import table
from tandem.feed.events import EventContract, FeedEvent
from tandem.runtime.database import driver_of

MAX_BYTES = 4 * 2**20
"""Of payloads that are read at once. A projector has three batches in memory, parsed to several times their size."""


def read_events(
    connection: Connection,
    contract: EventContract[Any],
    after: int,
    limit: int,
    epoch: uuid.UUID | None = None,
) -> list[FeedEvent]:
    """At most `limit` events that follow position `after`, in order. Empty when there are none yet.

    No more are returned than hold MAX_BYTES and the event with which they reach it.

    contract: what the events are. epoch: nothing is returned of a feed that is another; its positions are no
    continuation of ours.
    """
    supplement = _supplement(contract)
    with driver_of(connection) as driver, driver.cursor(binary=True) as cursor:
        if epoch is None:
            cursor.execute(_READ.format(supplement=supplement, of_epoch=""), (after, limit, MAX_BYTES), prepare=True)
        else:
            read = _READ.format(supplement=supplement, of_epoch=_OF_EPOCH)
            cursor.execute(read, (after, epoch, limit, MAX_BYTES), prepare=True)
        return [FeedEvent(contract, *row) for row in cursor.fetchall()]


# The key by a query of its own: however few events there are to read, a join might read all keys. Only of the events
# that are returned.
_READ = f"""
SELECT position, kind, payload,
  (SELECT key FROM {table.subject_key.fullname} AS k WHERE k.subject_id = e.subject_id), envelope, version,
  {{supplement}}
FROM (
  SELECT *, sum(octet_length(payload)) OVER (ORDER BY position ROWS UNBOUNDED PRECEDING) AS bytes
  FROM (
    SELECT position, kind, payload, subject_id, envelope, version
    FROM {table.event.fullname} WHERE position > %s {{of_epoch}} ORDER BY position LIMIT %s
  ) AS next
) AS e WHERE bytes - octet_length(payload) < %s ORDER BY position
"""  # noqa: S608 - only names of tables are put in, here and below
_OF_EPOCH = f"AND (SELECT epoch FROM {table.NEWEST_HEAD} AS h) = %s"  # noqa: S608


@cache
def _supplement(contract: EventContract[Any]) -> str:
    """SQL of an event's supplement: looked up for the kinds and versions alone that may have one."""
    older = [f"('{kind}', {version})" for kind, newest in contract.versions.items() for version in range(1, newest)]
    if not older:
        return "NULL::bytea"
    return (
        f"CASE WHEN (kind, version) IN ({', '.join(older)}) THEN"  # noqa: S608
        f" (SELECT payload FROM {table.event_supplement.fullname} AS s WHERE s.position = e.position) END"
    )


def recorded_at(connection: Connection, position: int) -> datetime | None:
    """When the event at a position was stored; None when there is none."""
    value: datetime | None = connection.execute(
        select(table.event.c.recorded_at).where(table.event.c.position == position)
    ).scalar_one_or_none()
    return value
