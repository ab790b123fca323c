"""The end of a batch's transaction: positions, events and receipts, in one statement."""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import Connection, select, text

from command_server.aggregates import Id
from command_server.storage.tables import receipt
from commerce.event.v1.event_pb2 import Event
from shop.events import EVENTS
from tandem.feed import table as feed
from tandem.runtime.arrays import array
from tandem.runtime.database import Answer, driver_of


class StoredReceipt(NamedTuple):
    """A receipt as it is stored. `offset` counts from the batch's first position minus one."""

    request_id: Id
    fingerprint: bytes
    subject_id: Id
    offset: int
    version: int


@dataclass(frozen=True)
class Appended:
    """Where a batch's events went: to the positions after `base`, in the feed named `epoch`."""

    epoch: uuid.UUID
    base: int


class FoundReceipt(NamedTuple):
    """A receipt of an earlier transaction, with the feed's epoch of today."""

    fingerprint: bytes
    subject_id: Id
    position: int
    version: int
    epoch: uuid.UUID


_FIND = f"""
SELECT CAST(r.request_id AS text), r.fingerprint, CAST(r.subject_id AS text), r.position, r.version, h.epoch
FROM {receipt.fullname} AS r, {feed.feed_head.fullname} AS h WHERE r.request_id = ANY(%s)"""  # noqa: S608

# The feed's head is the one row that serialises all writers. It is locked here and released by the COMMIT that follows
# in the same pipeline, so it is held for no round trip, nor for the batch.
_APPEND = f"""
WITH head AS (
  UPDATE {feed.feed_head.fullname} SET position = position + %(count)s::bigint
  RETURNING epoch, position - %(count)s::bigint AS base
), events AS (
  INSERT INTO {feed.event.fullname} (position, kind, payload, subject_id, envelope)
  SELECT head.base + e.ordinal, e.kind, e.payload, e.subject_id, e.envelope
  FROM head, unnest(
    CAST(%(kinds)s AS text[]), CAST(%(payloads)s AS bytea[]), CAST(%(data_subjects)s AS uuid[]),
    CAST(%(envelopes)s AS bytea[])
  ) WITH ORDINALITY AS e (kind, payload, subject_id, envelope, ordinal)
), receipts AS (
  INSERT INTO {receipt.fullname} (request_id, fingerprint, subject_id, position, version)
  SELECT r.request_id, r.fingerprint, r.subject_id, head.base + r.start, r.version
  FROM head, unnest(
    CAST(%(request_ids)s AS uuid[]), CAST(%(fingerprints)s AS bytea[]), CAST(%(subject_ids)s AS uuid[]),
    CAST(%(offsets)s AS bigint[]), CAST(%(versions)s AS bigint[])
  ) AS r (request_id, fingerprint, subject_id, start, version)
)
SELECT epoch, base, pg_notify('{feed.CHANNEL}', '') FROM head
"""  # noqa: S608 - only names from our own tables are put in


def find_receipts(connection: Connection, request_ids: Sequence[Id]) -> Answer[dict[Id, FoundReceipt]]:
    """The receipts that exist, by request id.

    To be called after the batch's rows are locked: a first run of the same command that is committing elsewhere holds
    one of them (or makes our insert wait), so it is either seen here or conflicts.
    """
    with driver_of(connection) as driver:
        rows = driver.execute(_FIND, [array("UUID", request_ids)], binary=True)
    return lambda: {request_id: FoundReceipt(*columns) for request_id, *columns in rows}


class StoredEvent(NamedTuple):
    """An event as it is stored.

    subject_id: the data subject whose key its personal data is sealed with, None without any. envelope: a serialised
    tandem.internal.v1.Envelope.
    """

    kind: str
    payload: bytes
    subject_id: Id | None
    envelope: bytes | None = None


def stored(events: Iterable[tuple[str, Event]], keys: Mapping[Id, bytes]) -> list[StoredEvent]:
    """The events with their personal data sealed. keys: of all customers that the events tell of."""
    return [_stored(kind, event, keys) for kind, event in events]


def _stored(kind: str, event: Event, keys: Mapping[Id, bytes]) -> StoredEvent:
    customer = EVENTS.subject_of(event)
    if customer is not None:
        event = EVENTS.seal(event, keys[customer])
    return StoredEvent(kind, event.SerializeToString(deterministic=True), customer)


def append(
    connection: Connection, events: Sequence[StoredEvent], receipts: Sequence[StoredReceipt]
) -> Answer[Appended]:
    """Appends events and receipts, and wakes whoever follows the feed. To be followed by COMMIT.

    A unique violation when one of the request ids was stored in between.
    """
    with driver_of(connection) as driver:
        cursor = driver.execute(
            _APPEND,
            {
                "count": len(events),
                "kinds": array("TEXT", [it.kind for it in events]),
                "payloads": array("BYTEA", [it.payload for it in events]),
                "data_subjects": array("UUID", [it.subject_id for it in events]),
                "envelopes": array("BYTEA", [it.envelope for it in events]),
                "request_ids": array("UUID", [it.request_id for it in receipts]),
                "fingerprints": array("BYTEA", [it.fingerprint for it in receipts]),
                "subject_ids": array("UUID", [it.subject_id for it in receipts]),
                "offsets": array("BIGINT", [it.offset for it in receipts]),
                "versions": array("BIGINT", [it.version for it in receipts]),
            },
            binary=True,
        )

    def answer() -> Appended:
        epoch, base, _ = next(cursor)
        return Appended(epoch, base)

    return answer


_PURGE = text(f"""
DELETE FROM {receipt.fullname} WHERE request_id IN (
  SELECT request_id FROM {receipt.fullname} WHERE created_at < :before ORDER BY created_at LIMIT :most
  FOR UPDATE SKIP LOCKED
)
""")  # noqa: S608


def purge_receipts(connection: Connection, now: datetime, keep: timedelta, most: int) -> int:
    """Deletes at most `most` receipts that are older than `keep`; returns how many."""
    return connection.execute(_PURGE, {"before": now - keep, "most": most}).rowcount


def ensure_partition(connection: Connection) -> int | None:
    """Makes the feed's next partition when the head is in the second half of the last one; returns its first position.

    Every command server asks now and then; half a partition, millions of events, is the time there is.
    """
    position: int = connection.execute(select(feed.feed_head.c.position)).scalar_one()
    first = (position // feed.PARTITION_SIZE) * feed.PARTITION_SIZE
    if position - first >= feed.PARTITION_SIZE // 2:
        first += feed.PARTITION_SIZE
    name = partition_name(first)
    if connection.execute(text("SELECT to_regclass(:name)"), {"name": name}).scalar_one() is not None:
        return None
    create_partition(connection, first)
    return first


def partition_name(first: int) -> str:
    return f"{feed.event.fullname}_{first // feed.PARTITION_SIZE}"


def create_partition(connection: Connection, first: int) -> None:
    """Makes the partition of positions `first` to `first` + PARTITION_SIZE - 1.

    Made apart and then attached, which does not shut writers out as CREATE … PARTITION OF would.
    """
    name, parent = partition_name(first), feed.event.fullname
    connection.execute(text(f"CREATE TABLE IF NOT EXISTS {name} (LIKE {parent} INCLUDING DEFAULTS INCLUDING INDEXES)"))
    connection.execute(
        text(
            f"ALTER TABLE {parent} ATTACH PARTITION {name} FOR VALUES FROM ({first}) TO ({first + feed.PARTITION_SIZE})"
        )
    )


def begin_epoch(connection: Connection) -> uuid.UUID:
    """Names the feed anew, after its database was restored to an earlier state; tokens from before are refused then."""
    epoch: uuid.UUID = connection.execute(
        text(f"UPDATE {feed.feed_head.fullname} SET epoch = gen_random_uuid() RETURNING epoch")  # noqa: S608
    ).scalar_one()
    return epoch
