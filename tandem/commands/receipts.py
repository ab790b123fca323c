"""Receipts, which make repeated commands harmless; and the end of a batch's transaction, which stores them.

Positions, events and receipts go in one statement.
"""

import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Any, NamedTuple

from google.protobuf.message import Message
from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    DateTime,
    LargeBinary,
    SmallInteger,
    Table,
    Text,
    Uuid,
    func,
    select,
    text,
)

from tandem.commands.rules import Id
from tandem.feed import table as feed
from tandem.feed.events import EventContract
from tandem.feed.token import new_mark
from tandem.runtime.arrays import array, bigint
from tandem.runtime.database import Answer, Driver, driver_of
from tandem.runtime.errors import InvalidArgument, Violation
from tandem.runtime.notifications import MAKE_ROOM

receipt = Table(
    "receipt",
    feed.metadata,
    Column("request_id", Uuid, primary_key=True),
    Column("fingerprint", LargeBinary, nullable=False),
    Column("subject_id", Uuid, nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("refusal", LargeBinary, nullable=True, comment="google.rpc.Status"),
    Column("mark", BigInteger, nullable=True),
    Column("period", SmallInteger, nullable=False, server_default="0"),
)
"""What each request_id was told. A refusal has no position and no version: 0. mark: of its events, see feed.event.

Partitioned by `period`, a table `receipt_N` for each: they are emptied as a whole. In each, a request_id is there once.
That it is in no other one, `begin_period` sees to: ADR 42.
"""

receipt_period = Table(
    "receipt_period",
    feed.metadata,
    Column("period", SmallInteger, primary_key=True, autoincrement=False),
    Column("began_at", DateTime(timezone=True), nullable=True),
    Column("ended_at", DateTime(timezone=True), nullable=True),
)
"""A ring of PERIODS rows. One has began_at and no ended_at: its table gets the receipts of today. Empty ones have
neither."""

PERIODS = 9
"""Tables that there are. Five have receipts: the one that is filled, the whole ones, and one that is about to be
emptied."""
_KEPT_PERIODS = 3
"""Whole ones for the time that receipts are kept. Each has an index in which a command's request_id is looked for, for
1.1 µs of PostgreSQL's 60. Fewer would keep receipts for longer than is asked: ADR 42."""

unfinished = Table(
    "unfinished",
    feed.metadata,
    Column("request_id", Uuid, primary_key=True),
    Column("request_type", Text, nullable=False),
    Column("request", LargeBinary, nullable=False),
    Column("envelope", LargeBinary, nullable=False, comment="tandem.internal.v1.Envelope"),
    Column("stepped_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
)
"""The commands that are done in steps, and have steps left. Each has a receipt, which nobody is given yet."""

# Before the fingerprint of a refusal. A server of the version before, which knows of no refusals, takes such a row for
# the receipt of another command and refuses the request_id: that is no answer of a command that was never done.
_REFUSED = b"refused:"


class Receipt(NamedTuple):
    """What a command has done: `version` is its subject's after it, `position` its last event's.

    epoch: the feed's epoch of today. None until the batch is appended, and `position` counts from the batch's first
    position minus one until then.
    refusal: a serialised google.rpc.Status, of a command that was refused: it has done nothing, and never will.
    mark: of the command's events.
    replayed: the command was done before, and this is the receipt of then.
    unfinished: of a command that has steps left: the envelope of its events. None once it is done.
    """

    request_id: Id
    fingerprint: bytes
    subject_id: Id
    position: int
    version: int
    epoch: uuid.UUID | None = None
    refusal: bytes | None = None
    mark: int = 0
    unfinished: bytes | None = None
    replayed: bool = False

    def appended(self, epoch: uuid.UUID, base: int, mark: int) -> "Receipt":
        """The receipt after the batch was appended behind position `base`, under a mark."""
        if self.epoch is not None:
            return self
        return self._replace(epoch=epoch, position=base + self.position, mark=mark)


class StoredEvent(NamedTuple):
    """An event as it is stored.

    subject_id: the data subject whose key its personal data is sealed with, None without any. envelope: a serialised
    tandem.internal.v1.Envelope. version: of its kind.
    """

    kind: str
    payload: bytes
    subject_id: Id | None
    envelope: bytes | None = None
    version: int = 1


def stored_events(
    contract: EventContract[Any],
    events: Sequence[tuple[str, Any]],
    envelopes: Sequence[bytes | None],
    subject_keys: Mapping[Id, bytes],
) -> list[StoredEvent]:
    """The events (kind, event) with their envelopes and their personal data sealed.

    subject_keys: of all data subjects that the events tell of.
    """
    stored = []
    versions = contract.versions
    for (kind, event), envelope in zip(events, envelopes, strict=True):
        subject = contract.subject_of(event)
        sealed = event if subject is None else contract.seal(event, subject_keys[subject])
        payload = sealed.SerializeToString(deterministic=True)
        stored.append(StoredEvent(kind, payload, subject, envelope, versions[kind]))
    return stored


_FIND = f"""
SELECT CAST(r.request_id AS text), r.fingerprint, CAST(r.subject_id AS text), r.position, r.version, h.epoch, r.refusal,
  coalesce(r.mark, 0), (SELECT u.envelope FROM {unfinished.fullname} AS u WHERE u.request_id = r.request_id)
FROM {receipt.fullname} AS r, {feed.NEWEST_HEAD} AS h WHERE r.request_id = ANY(%s)"""  # noqa: S608

_RECEIPTS = """unnest(
    CAST(%(request_ids)s AS uuid[]), CAST(%(fingerprints)s AS bytea[]), CAST(%(subject_ids)s AS uuid[]),
    CAST(%(offsets)s AS bigint[]), CAST(%(versions)s AS bigint[]), CAST(%(refusals)s AS bytea[])
  ) AS r (request_id, fingerprint, subject_id, start, version, refusal)"""

# Read behind find_receipts, which has locked the table `receipt` as far as `begin_period` waits for.
_PERIOD = f"(SELECT p.period FROM {receipt_period.fullname} AS p WHERE p.began_at IS NOT NULL AND p.ended_at IS NULL)"  # noqa: S608

_REFUSE = f"""
INSERT INTO {receipt.fullname} (request_id, fingerprint, subject_id, position, version, refusal, period)
SELECT r.request_id, r.fingerprint, r.subject_id, 0, 0, r.refusal, {_PERIOD} FROM {_RECEIPTS}"""  # noqa: S608

# The feed's head is the one row that serialises all writers. It is locked here and released by the COMMIT that follows
# in the same pipeline, so it is held for no round trip, nor for the batch. It is looked for from the last span on that
# this statement sees: behind the lock, it may be in a later one.
_APPEND_WITH = f"""
WITH head AS (
  UPDATE {feed.feed_head.fullname} SET position = position + %(count)s::bigint
  WHERE span >= (SELECT span FROM {feed.NEWEST_HEAD} AS h)
  RETURNING epoch, position - %(count)s::bigint AS base
), events AS (
  INSERT INTO {feed.event.fullname} (position, kind, payload, subject_id, envelope, version, mark)
  SELECT head.base + e.ordinal, e.kind, e.payload, e.subject_id, e.envelope, e.version, %(mark)s::bigint
  FROM head, unnest(
    CAST(%(kinds)s AS text[]), CAST(%(payloads)s AS bytea[]), CAST(%(data_subjects)s AS uuid[]),
    CAST(%(envelopes)s AS bytea[]), CAST(%(event_versions)s AS smallint[])
  ) WITH ORDINALITY AS e (kind, payload, subject_id, envelope, version, ordinal)
), receipts AS (
  INSERT INTO {receipt.fullname} (request_id, fingerprint, subject_id, position, version, refusal, mark, period)
  SELECT r.request_id, r.fingerprint, r.subject_id,
    CASE WHEN r.refusal IS NULL THEN head.base + r.start ELSE 0 END, r.version, r.refusal, %(mark)s::bigint,
    {_PERIOD}
  FROM head, {_RECEIPTS}
)%s
SELECT epoch, base FROM head
"""  # noqa: S608 - only names from our own tables are put in
_APPEND = _APPEND_WITH.replace("%s", "")
# For a batch with a step of a command that has begun before: its receipt is there, and moves on to the step's position.
_APPEND_STEPS = _APPEND_WITH.replace(
    "%s",
    f""", moved AS (
  UPDATE {receipt.fullname} AS r SET position = head.base + s.start, mark = %(mark)s::bigint
  FROM head, unnest(CAST(%(stepped)s AS uuid[]), CAST(%(starts)s AS bigint[])) AS s (request_id, start)
  WHERE r.request_id = s.request_id
), finished AS (
  DELETE FROM {unfinished.fullname} WHERE request_id = ANY(CAST(%(finished)s AS uuid[]))
)""",  # noqa: S608
)
_WAKE = f"SELECT pg_notify('{feed.CHANNEL}', '')"
_WAKE_AGAIN = f"{_WAKE}, {MAKE_ROOM}"

_BEGUN = f"""
INSERT INTO {unfinished.fullname} (request_id, request_type, request, envelope)
SELECT * FROM unnest(
  CAST(%s AS uuid[]), CAST(%s AS text[]), CAST(%s AS bytea[]), CAST(%s AS bytea[])
) ON CONFLICT (request_id) DO UPDATE SET stepped_at = now()"""  # noqa: S608


def find_receipts(connection: Connection, request_ids: Sequence[Id]) -> Answer[dict[Id, Receipt]]:
    """The receipts that exist, by request id.

    To be called after the batch's rows are locked: a first run of the same command that is committing elsewhere holds
    one of them (or makes our insert wait), so it is either seen here or conflicts.
    """
    with driver_of(connection) as driver:
        rows = driver.send(_FIND, [array("UUID", request_ids)])
    return lambda: {it.request_id: it for it in map(_of_row, rows)}


def _of_row(row: Sequence[Any]) -> Receipt:
    found = Receipt(*row)
    return found if found.refusal is None else found._replace(fingerprint=found.fingerprint.removeprefix(_REFUSED))


def append(
    connection: Connection, events: Sequence[StoredEvent], receipts: Sequence[Receipt], stepped: Sequence[Receipt] = ()
) -> Answer[tuple[uuid.UUID, int, int]]:
    """Appends events and receipts. To be followed by COMMIT, and then by `wake_followers`.

    stepped: of commands that were begun before, and have done a step more in this batch.

    The answer is the feed's epoch, the position behind which the events are, and their mark. A unique violation when
    one of the request ids was stored in between. Raises InvalidArgument for an event that is larger than every reader
    can take.
    """
    for it in events:
        if len(it.payload) > feed.MAX_EVENT_BYTES:
            description = f"it makes an event of {len(it.payload)} bytes; at most {feed.MAX_EVENT_BYTES} are stored"
            raise InvalidArgument([Violation("", description, "TOO_LONG")])
    mark = new_mark()
    with driver_of(connection) as driver:
        rows = driver.send(
            _APPEND_STEPS if stepped else _APPEND,
            {
                "count": bigint(len(events)),
                "mark": bigint(mark),
                "kinds": array("TEXT", [it.kind for it in events]),
                "payloads": array("BYTEA", [it.payload for it in events]),
                "data_subjects": array("UUID", [it.subject_id for it in events]),
                "envelopes": array("BYTEA", [it.envelope for it in events]),
                "event_versions": array("SMALLINT", [it.version for it in events]),
                **_arrays(receipts),
                **(_steps(stepped) if stepped else {}),
            },
        )

    def answer() -> tuple[uuid.UUID, int, int]:
        [(epoch, base)] = rows
        return epoch, base, mark

    return answer


def wake_followers(driver: Driver, *, again: bool = False) -> None:
    """Tells whoever follows the feed that there is more. In a transaction of its own, behind the COMMIT.

    PostgreSQL lets one transaction at a time commit that notifies, of all databases of a server, from before its log is
    written until it is on the disk. Who is not told, because that fails or the connection broke in between, looks by
    himself. again: PostgreSQL could not do it the last time.
    """
    driver.send(_WAKE_AGAIN if again else _WAKE)


def _steps(stepped: Sequence[Receipt]) -> dict[str, Any]:
    return {
        "stepped": array("UUID", [it.request_id for it in stepped]),
        "starts": array("BIGINT", [it.position for it in stepped]),
        "finished": array("UUID", [it.request_id for it in stepped if it.unfinished is None]),
    }


def keep_unfinished(connection: Connection, requests: Sequence[tuple[Receipt, Message]]) -> None:
    """Keeps the requests of commands that have steps left, with their receipts: who finds them goes on with them."""
    columns = zip(
        *(
            (it.request_id, request.DESCRIPTOR.full_name, _named(request, it), it.unfinished)
            for it, request in requests
        ),
        strict=True,
    )
    kinds = ("UUID", "TEXT", "BYTEA", "BYTEA")
    with driver_of(connection) as driver:
        driver.execute(_BEGUN, [array(kind, values) for kind, values in zip(kinds, columns, strict=True)])


def _named(request: Message, receipt: Receipt) -> bytes:
    """The request with its request_id, which the server may have made."""
    named: Any = type(request)()
    named.CopyFrom(request)
    named.request_id = receipt.request_id
    body: bytes = named.SerializeToString()
    return body


_STALLED = text(f"""
SELECT request_id, request_type, request FROM {unfinished.fullname}
WHERE stepped_at < now() - make_interval(secs => :seconds) AND request_id <> ALL(CAST(:but AS uuid[]))
ORDER BY stepped_at LIMIT :most
""")  # noqa: S608


class Stalled(NamedTuple):
    """A command that has steps left, and that nobody goes on with."""

    request_id: uuid.UUID
    request_type: str
    request: bytes


def find_stalled(connection: Connection, seconds: float, most: int, but: Sequence[uuid.UUID]) -> list[Stalled]:
    """Those, at most so many, that have done no step for so many seconds. but: the request ids of some to pass over."""
    found = connection.execute(_STALLED, {"seconds": seconds, "most": most, "but": list(but)})
    return [Stalled(*it) for it in found]


def append_refusals(connection: Connection, receipts: Sequence[Receipt]) -> None:
    """As `append`, for a batch of refusals: the feed and its head are left alone. To be followed by COMMIT."""
    with driver_of(connection) as driver:
        driver.send(_REFUSE, _arrays(receipts))


def _arrays(receipts: Sequence[Receipt]) -> dict[str, Any]:
    # By id: two batches that store the same ids never wait for each other in a circle.
    rows = sorted(receipts, key=attrgetter("request_id"))
    return {
        "request_ids": array("UUID", [it.request_id for it in rows]),
        "fingerprints": array(
            "BYTEA", [it.fingerprint if it.refusal is None else _REFUSED + it.fingerprint for it in rows]
        ),
        "subject_ids": array("UUID", [it.subject_id for it in rows]),
        "offsets": array("BIGINT", [it.position for it in rows]),
        "versions": array("BIGINT", [it.version for it in rows]),
        "refusals": array("BYTEA", [it.refusal for it in rows]),
    }


# How long others are held up at most, by who waits to be alone with a table.
_ALONE_SECONDS = 0.05
_ROTATION_LOCK = 7_246_005

_IS_UNFINISHED = text(f"""
SELECT EXISTS (
  SELECT FROM {unfinished.fullname} AS u JOIN {receipt.fullname} AS r USING (request_id) WHERE r.period = :period
)""")  # noqa: S608


def purge_receipts(connection: Connection, now: datetime, keep: timedelta) -> int | None:
    """Empties the table of the oldest period that ended before `now` - `keep`; returns its number, None without any.

    One with a command that has steps left stays until that is done. To be followed by COMMIT. Raises
    sqlalchemy.exc.DBAPIError when somebody holds the table for longer than the others are to wait.
    """
    for period, began_at, ended_at in _periods(connection):
        is_old = began_at is not None and ended_at is not None and ended_at < now - keep
        if not is_old or connection.execute(_IS_UNFINISHED, {"period": period}).scalar_one():
            continue
        _limit_lock(connection)
        connection.execute(text(f"TRUNCATE {receipt.fullname}_{period}"))
        ours = receipt_period.update().where(receipt_period.c.period == period)
        connection.execute(ours.values(began_at=None, ended_at=None))
        return int(period)
    return None


def begin_period(connection: Connection, now: datetime, keep: timedelta) -> int | None:
    """Begins the next period when the one of today has lasted for a third of `keep`; returns its number.

    None where it is not time, or no table is empty. To be followed by COMMIT. Raises as `purge_receipts` does.

    It waits for every transaction that has looked receipts up, and those that come wait for it. So nobody stores a
    receipt in the new table who looked its request_id up before all receipts of the old one could be seen.
    """
    periods = _periods(connection)
    today = next((it for it in periods if it.began_at is not None and it.ended_at is None), None)
    empty = [it.period for it in periods if it.began_at is None]
    if today is None or not empty or now - today.began_at < keep / _KEPT_PERIODS:
        return None
    _limit_lock(connection)
    connection.execute(text(f"LOCK TABLE ONLY {receipt.fullname} IN ACCESS EXCLUSIVE MODE"))
    # In a circle, so that a table rests for as long as can be after it was emptied.
    chosen = min(empty, key=lambda it: (it - today.period) % PERIODS)
    table = receipt_period
    connection.execute(table.update().where(table.c.period == today.period).values(ended_at=now))
    connection.execute(table.update().where(table.c.period == chosen).values(began_at=now))
    return int(chosen)


def _periods(connection: Connection) -> Sequence[Any]:
    """(period, began_at, ended_at), the oldest first; nothing while another server changes them."""
    if not connection.execute(select(func.pg_try_advisory_xact_lock(_ROTATION_LOCK))).scalar_one():
        return []
    return connection.execute(select(receipt_period).order_by(receipt_period.c.ended_at)).all()


def _limit_lock(connection: Connection) -> None:
    connection.execute(text(f"SET LOCAL lock_timeout = {int(_ALONE_SECONDS * 1000)}"))
