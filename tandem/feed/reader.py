"""Following the feed: read from a position, and wait for more."""

import uuid
from dataclasses import dataclass
from datetime import datetime

import psycopg
from commerce.event.v1.event_pb2 import Event
from psycopg import sql
from sqlalchemy import Connection, select

from tandem.feed import table
from tandem.feed.events import FeedEvent
from tandem.runtime.database import connection_arguments, listen_url
from tandem.runtime.settings import DatabaseSettings


@dataclass(frozen=True)
class FeedHead:
    """The feed's epoch and its last position, 0 while it is empty."""

    epoch: uuid.UUID
    position: int


def read_head(connection: Connection) -> FeedHead:
    row = connection.execute(select(table.feed_head.c.epoch, table.feed_head.c.position)).one()
    return FeedHead(row.epoch, row.position)


def read_events(connection: Connection, after: int, limit: int) -> list[FeedEvent]:
    """At most `limit` events that follow position `after`, in order. Empty when there are none yet."""
    query = (
        select(table.event.c.position, table.event.c.kind, table.event.c.payload)
        .where(table.event.c.position > after)
        .order_by(table.event.c.position)
        .limit(limit)
    )
    return [FeedEvent(row.position, row.kind, Event.FromString(row.payload)) for row in connection.execute(query)]


def recorded_at(connection: Connection, position: int) -> datetime | None:
    """When the event at a position was stored; None when there is none."""
    value: datetime | None = connection.execute(
        select(table.event.c.recorded_at).where(table.event.c.position == position)
    ).scalar_one_or_none()
    return value


class Listener:
    """Waits for a NOTIFY on a channel, on a connection of its own. For one thread.

    Notifications that come while nobody waits are kept by the connection, so none between two waits is lost; those
    that come while the connection is down are, which is why callers poll too.
    """

    def __init__(self, settings: DatabaseSettings, channel: str, name: str) -> None:
        self._settings = settings
        self._channel = channel
        self._name = name
        self._connection: psycopg.Connection | None = None

    def wait(self, seconds: float) -> list[str]:
        """The payloads that have come, as soon as there is one, or an empty list after `seconds`.

        Raises psycopg.Error when the database is away; the next call connects again.
        """
        try:
            connection = self._connected()
            return [notify.payload for notify in connection.notifies(timeout=seconds, stop_after=1)]
        except psycopg.Error:
            self.close()
            raise

    def _connected(self) -> psycopg.Connection:
        if self._connection is None:
            arguments = connection_arguments(self._settings, self._name)
            self._connection = psycopg.connect(listen_url(self._settings), autocommit=True, **arguments)  # type: ignore[arg-type]
            self._connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(self._channel)))
        return self._connection

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
