"""What reactions are to do, in the write database: rows that come with the position that they follow from.

    waits ──▶ done            the row stays until it is purged, so that a replay does nothing twice
     │ ▲  └──▶ (deleted)      a timer, by an event of its aggregate
     ▼ │
    parked                    it failed again and again, or the function did: an operator redrives or drops it

Whoever claims a task moves its time on by as long as an attempt may take. So another one takes it where the first died,
and nobody has to find out who lives.
"""

import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    DateTime,
    Index,
    Integer,
    LargeBinary,
    Table,
    Text,
    Uuid,
    func,
    text,
)

from tandem.feed.events import FeedEvent
from tandem.feed.table import metadata
from tandem.runtime.arrays import array
from tandem.runtime.database import driver_of

OF_EVENT = 2**31 - 1
"""The number of an event that is parked; its tasks, once it is taken in, are counted from 0 on."""

MAX_PAYLOAD_BYTES = 256 * 1024
"""Of a command or a webhook."""


class Kind(StrEnum):
    """EVENT: the function has not taken the event in; it is parked, or waits behind one that is."""

    DO = "DO"
    TIMER = "TIMER"
    POST = "POST"
    EVENT = "EVENT"


reaction = Table(
    "reaction",
    metadata,
    Column("name", Text, primary_key=True),
    Column("version", Integer, nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("begun_after", BigInteger, nullable=False),
    Column("secret", Uuid, nullable=False, server_default=func.gen_random_uuid()),
    Column("begun_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
)
"""The reactions, and up to which event each has written down what is to be done. begun_after: where it began, which no
replay goes behind. secret: request ids are made of it.

It moves in the transaction that writes the tasks, and is lost with the events that it follows: it is never ahead.
"""

task = Table(
    "reaction_task",
    metadata,
    Column("reaction", Text, primary_key=True),
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("key", Uuid, nullable=False),
    Column("kind", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("request_id", Uuid, nullable=False),
    Column("causation_id", Text, nullable=False),
    Column("correlation_id", Text, nullable=False),
    Column("at", DateTime(timezone=True), nullable=False),
    Column("first_at", DateTime(timezone=True), nullable=False),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("error", Text, nullable=False, server_default=""),
    Column("outcome", Text, nullable=False, server_default=""),
    Column("parked_at", DateTime(timezone=True), nullable=True),
    Column("done_at", DateTime(timezone=True), nullable=True),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    # What waits, by when it is due, and what of it was tried, by when it was due first; what is parked; what waits or
    # is parked of an aggregate; what may be purged.
    Index(
        "reaction_task_due", "reaction", "kind", "at", postgresql_where=text("done_at IS NULL AND parked_at IS NULL")
    ),
    Index(
        "reaction_task_tried",
        "reaction",
        "kind",
        "first_at",
        postgresql_where=text("done_at IS NULL AND parked_at IS NULL AND attempts > 0"),
    ),
    Index(
        "reaction_task_parked",
        "reaction",
        "position",
        postgresql_where=text("done_at IS NULL AND parked_at IS NOT NULL"),
    ),
    Index("reaction_task_open", "reaction", "key", postgresql_where=text("done_at IS NULL")),
    Index("reaction_task_done", "done_at", postgresql_where=text("done_at IS NOT NULL")),
)
"""What is to be done because of the event at `position`; `number`: of several, from 0 on; OF_EVENT for the event; below
0 for what a reaction began with. at: when the next attempt is due, less the reaction's delay for a timer; first_at:
when the first was, which no attempt moves. payload: the command, or the webhook's body; empty for an event.
"""


class Task(NamedTuple):
    """A row, as it is made."""

    reaction: str
    position: int
    number: int
    key: str
    kind: str
    type: str
    payload: bytes
    request_id: uuid.UUID
    causation_id: str
    correlation_id: str
    at: datetime
    parked_at: datetime | None = None
    error: str = ""


_COLUMNS = (
    ("reaction", "TEXT"), ("position", "BIGINT"), ("number", "INTEGER"), ("key", "UUID"), ("kind", "TEXT"),
    ("type", "TEXT"), ("payload", "BYTEA"), ("request_id", "UUID"), ("causation_id", "TEXT"),
    ("correlation_id", "TEXT"), ("at", "TIMESTAMP WITH TIME ZONE"), ("parked_at", "TIMESTAMP WITH TIME ZONE"),
    ("error", "TEXT"),
)  # fmt: skip
_NAMES = ", ".join(name for name, _ in _COLUMNS)

# A task that is there already is done, or was dropped, and so is each of an event that was: a replay finds it.
_INSERT = f"""
INSERT INTO {task.fullname} ({_NAMES}, first_at)
SELECT *, at FROM unnest({", ".join(f"CAST(%s AS {kind}[])" for _, kind in _COLUMNS)}) AS new ({_NAMES})
WHERE NOT EXISTS (
  SELECT FROM {task.fullname} AS e
  WHERE e.reaction = new.reaction AND e.position = new.position AND e.number = {OF_EVENT} AND e.done_at IS NOT NULL
)
ON CONFLICT (reaction, position, number) DO NOTHING"""  # noqa: S608 - only names of tables are put in, here and below

# Each aggregate's are looked up by index, whatever the planner thinks of a table that was empty when it was asked.
_OF_KEYS = f"""
SELECT {{wanted}} FROM unnest(CAST(%s AS text[]), CAST(%s AS uuid[])) AS k (reaction, key)
CROSS JOIN LATERAL (
  SELECT t.ctid, t.reaction, t.key FROM {task.fullname} AS t
  WHERE t.reaction = k.reaction AND t.key = k.key AND t.done_at IS NULL AND t.kind = '{{kind}}' OFFSET 0
) AS found"""  # noqa: S608

_REPLACE = (
    f"DELETE FROM {task.fullname} WHERE ctid = ANY(ARRAY({_OF_KEYS.format(wanted='found.ctid', kind=Kind.TIMER)}))"  # noqa: S608
)
_PARKED_KEYS = _OF_KEYS.format(wanted="found.reaction, CAST(found.key AS text)", kind=Kind.EVENT)


def parked_event(reaction: str, event: FeedEvent, key: str, now: datetime, error: str) -> Task:
    """An event that waits for an operator. error: why it was not taken in; empty for one behind such a one."""
    causation_id = f"{event.position}-{event.mark:x}"
    nobodys = uuid.UUID(int=0)
    return Task(
        reaction, event.position, OF_EVENT, key, Kind.EVENT, event.kind, b"", nobodys, causation_id, "", now, now, error
    )  # fmt: skip


def insert_tasks(connection: Connection, tasks: Sequence[Task]) -> None:
    if tasks:
        columns = zip(*tasks, strict=True)
        with driver_of(connection) as driver:
            driver.execute(_INSERT, [array(kind, it) for (_, kind), it in zip(_COLUMNS, columns, strict=True)])


def delete_timers(connection: Connection, keys: Sequence[tuple[str, str]]) -> None:
    """Those that wait, parked ones too. keys: (reaction, aggregate)."""
    if keys:
        with driver_of(connection) as driver:
            driver.execute(_REPLACE, _pairs(keys))


def find_parked_keys(connection: Connection, keys: Sequence[tuple[str, str]]) -> set[tuple[str, str]]:
    """Those of (reaction, aggregate) of which an event waits for an operator."""
    with driver_of(connection) as driver:
        return set(driver.execute(_PARKED_KEYS, _pairs(keys)).fetchall())


def _pairs(keys: Sequence[tuple[str, str]]) -> list[object]:
    return [array("TEXT", [name for name, _ in keys]), array("UUID", [key for _, key in keys])]


class Claimed(NamedTuple):
    """A task that this process is to do now. attempts: with this one."""

    reaction: str
    position: int
    number: int
    key: str
    kind: str
    type: str
    payload: bytes
    request_id: uuid.UUID
    causation_id: str
    correlation_id: str
    attempts: int


_CLAIM = f"""
UPDATE {task.fullname} AS t SET at = due.until, attempts = t.attempts + 1
FROM (
  SELECT d.reaction, d.position, d.number, coalesce(w.before, clock_timestamp()) + CAST(%s AS interval) AS until
  FROM unnest(CAST(%s AS text[]), CAST(%s AS text[]), CAST(%s AS timestamptz[]), CAST(%s AS integer[]))
    AS w (reaction, kind, before, version)
  JOIN {reaction.fullname} AS r ON r.name = w.reaction AND r.version <= w.version
  CROSS JOIN LATERAL (
    SELECT reaction, position, number FROM {task.fullname} AS o
    WHERE reaction = w.reaction AND kind = w.kind AND done_at IS NULL AND parked_at IS NULL
      AND at <= coalesce(w.before, clock_timestamp())
      AND NOT EXISTS (
        SELECT FROM {task.fullname} AS e
        WHERE e.reaction = o.reaction AND e.key = o.key AND e.done_at IS NULL AND e.kind = '{Kind.EVENT}'
      )
    ORDER BY at LIMIT %s FOR UPDATE SKIP LOCKED
  ) AS d
) AS due
WHERE t.reaction = due.reaction AND t.position = due.position AND t.number = due.number
RETURNING t.reaction, t.position, t.number, CAST(t.key AS text), t.kind, t.type, t.payload, t.request_id,
  t.causation_id, t.correlation_id, t.attempts"""  # noqa: S608


class Due(NamedTuple):
    """What to claim. version: of the reaction that this program knows; a newer program's is let be. before: up to which
    moment, less the reaction's delay for timers; None for the database's now.
    """

    reaction: str
    kind: Kind
    version: int
    before: datetime | None = None


def claim(connection: Connection, due: Sequence[Due], *, lease: timedelta, most: int) -> list[Claimed]:
    """At most so many of each kind of each reaction whose time has come. Nobody else gets them for `lease`.

    Those of an aggregate of which an event is parked wait with it.

    To be followed by COMMIT.
    """
    if not due:
        return []
    arrays = [
        array("TEXT", [it.reaction for it in due]),
        array("TEXT", [it.kind.value for it in due]),
        array("TIMESTAMP WITH TIME ZONE", [it.before for it in due]),
        array("INTEGER", [it.version for it in due]),
    ]
    with driver_of(connection) as driver:
        found = driver.execute(_CLAIM, [lease, *arrays, most])
        return sorted((Claimed(*it) for it in found), key=lambda it: (it.position, it.number))


class Settled(NamedTuple):
    """What became of an attempt. outcome: of one that is done. again_in: seconds until the next, less the reaction's
    delay for a timer; None where it is parked.
    """

    claimed: Claimed
    outcome: str = ""
    error: str = ""
    again_in: float | None = None


# What is done is done, whoever says so. Of a failure he alone may say it who had the last attempt.
_SETTLE = f"""
UPDATE {task.fullname} AS t SET
  done_at = CASE WHEN s.outcome <> '' THEN clock_timestamp() END,
  parked_at = CASE WHEN s.outcome = '' AND s.again_in IS NULL THEN clock_timestamp() END,
  at = coalesce(clock_timestamp() + make_interval(secs => s.again_in), t.at), outcome = s.outcome, error = s.error
FROM unnest(
  CAST(%s AS text[]), CAST(%s AS bigint[]), CAST(%s AS integer[]), CAST(%s AS integer[]), CAST(%s AS text[]),
  CAST(%s AS text[]), CAST(%s AS double precision[])
) AS s (reaction, position, number, attempts, outcome, error, again_in)
WHERE t.reaction = s.reaction AND t.position = s.position AND t.number = s.number AND t.done_at IS NULL
  AND (s.outcome <> '' OR t.attempts = s.attempts)"""  # noqa: S608


def settle(connection: Connection, settled: Sequence[Settled]) -> None:
    """To be followed by COMMIT."""
    if not settled:
        return
    them = [it.claimed for it in settled]
    with driver_of(connection) as driver:
        driver.execute(
            _SETTLE,
            [
                array("TEXT", [it.reaction for it in them]),
                array("BIGINT", [it.position for it in them]),
                array("INTEGER", [it.number for it in them]),
                array("INTEGER", [it.attempts for it in them]),
                array("TEXT", [it.outcome for it in settled]),
                array("TEXT", [it.error.replace("\0", "")[:1000] for it in settled]),
                [it.again_in for it in settled],
            ],
        )


_PURGE = text(f"""
DELETE FROM {task.fullname} WHERE ctid = ANY(ARRAY(
  SELECT ctid FROM {task.fullname} WHERE done_at < :before ORDER BY done_at LIMIT :most
))""")  # noqa: S608


def purge_tasks(connection: Connection, before: datetime, most: int) -> int:
    """Deletes at most so many that were done before a moment; returns how many."""
    return connection.execute(_PURGE, {"before": before, "most": most}).rowcount
