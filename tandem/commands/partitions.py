"""The partitions of the feed's table: made ahead of the head, and taken away when their events are in the archive.

Where a partition begins and ends PostgreSQL's catalogue says: their size may have been another one when they were made.
"""

from typing import NamedTuple

from prometheus_client import Gauge
from pydantic import Field
from sqlalchemy import Connection, text

from tandem.feed import table as feed
from tandem.feed.head import read_head
from tandem.runtime.database import execute_without_limits
from tandem.runtime.settings import Block

HEADROOM = Gauge("tandem_feed_headroom_events", "Events that the feed has partitions for, from its head on")
# Of the advisory lock under which partitions are made.
_PARTITION_LOCK = 7_246_003
PARTITIONS_AHEAD = 3
"""Beside the one that is being filled: 30 million events, so weeks to hear of one that cannot be made."""


class FeedSettings(Block):
    """The feed's table."""

    partition_events: int = Field(
        feed.PARTITION_EVENTS,
        ge=100_000,
        description="Positions in each partition that is made from now on; events are archived a partition at a time",
    )


class Partition(NamedTuple):
    """A table with the events from position `first` to `end` - 1. leaving: its removal was begun and not finished."""

    name: str
    first: int
    end: int
    leaving: bool


_BOUND = "(regexp_match(pg_get_expr(relpartbound, c.oid), 'FROM \\(''(\\d+)''\\) TO \\(''(\\d+)''\\)'))"
_PARTITIONS = text(f"""
SELECT relname AS name, CAST({_BOUND}[1] AS bigint) AS first, CAST({_BOUND}[2] AS bigint) AS end,
  inhdetachpending AS leaving
FROM pg_inherits JOIN pg_class AS c ON c.oid = inhrelid
WHERE inhparent = to_regclass('{feed.event.fullname}') ORDER BY first
""")  # noqa: S608 - a table of ours


def list_partitions(connection: Connection) -> list[Partition]:
    """In the order of their positions."""
    return [Partition(*row) for row in connection.execute(_PARTITIONS)]


def ensure_partitions(connection: Connection, size: int = feed.PARTITION_EVENTS) -> list[int]:
    """Makes what is missing of the head's partition and PARTITIONS_AHEAD after it; returns their first positions."""
    if not _is_missing(connection):
        return []
    # One server at a time: what another has just made is seen behind this.
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _PARTITION_LOCK})
    made = []
    while _is_missing(connection):
        partitions = list_partitions(connection)
        first = partitions[-1].end if partitions else 0
        _create(connection, first, first + size)
        made.append(first)
    return made


def _is_missing(connection: Connection) -> bool:
    position = _next_position(connection)
    return len([it for it in list_partitions(connection) if it.end > position]) <= PARTITIONS_AHEAD


def headroom(connection: Connection) -> int:
    """How many positions more the feed has partitions for, without a gap. Where there is none, no command is stored."""
    end = position = _next_position(connection)
    for it in list_partitions(connection):
        if it.first <= end < it.end:
            end = it.end
    HEADROOM.set(end - position)
    return end - position


def _next_position(connection: Connection) -> int:
    return read_head(connection).position + 1


def _create(connection: Connection, first: int, end: int) -> None:
    """Makes the partition of positions `first` to `end` - 1.

    Made apart and then attached, which does not shut writers out as CREATE … PARTITION OF would.
    """
    parent = feed.event.fullname
    name = f"{parent}_from_{first}"
    connection.execute(text(f"CREATE TABLE IF NOT EXISTS {name} (LIKE {parent} INCLUDING DEFAULTS INCLUDING INDEXES)"))
    connection.execute(text(f"ALTER TABLE {parent} ATTACH PARTITION {name} FOR VALUES FROM ({first}) TO ({end})"))


def drop_partition(connection: Connection, partition: Partition) -> None:
    """Takes a partition away with its events, and holds up nobody. connection: in autocommit mode.

    Waits for the transactions that are under way, and for each snapshot of the database. Where it is interrupted, the
    partition is `leaving`, and to be dropped again; or a table apart, see `list_detached`.
    """
    name = f"{feed.SCHEMA}.{partition.name}"
    how = "FINALIZE" if partition.leaving else "CONCURRENTLY"
    execute_without_limits(connection, f"ALTER TABLE {feed.event.fullname} DETACH PARTITION {name} {how}")
    drop_detached(connection, partition.name)


def list_detached(connection: Connection) -> list[str]:
    """The tables that were partitions, and that nobody dropped."""
    found = connection.execute(
        text(
            "SELECT relname FROM pg_class AS c WHERE relnamespace = CAST(:schema AS regnamespace) AND relkind = 'r'"
            " AND relname ~ '^event_(from_)?[0-9]+$' AND NOT relispartition"
        ),
        {"schema": feed.SCHEMA},
    )
    return list(found.scalars())


def drop_detached(connection: Connection, name: str) -> None:
    connection.execute(text(f"DROP TABLE {feed.SCHEMA}.{name}"))
