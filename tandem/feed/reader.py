"""Reading on in the feed: from a position, as far as the history that was read there is still the feed's.

What was read before must be what the feed has: the event at the position with its mark, and all events behind it.
A database that lost commits in a failover, was restored, or had its oldest events dropped breaks this. Each way has a
name and is an error; nothing is passed over. tandem.runtime.listener waits for more.

The oldest events may be in the archive (tandem.feed.archive): they are read from there as if they were in the table.
"""

import uuid
from collections.abc import Collection, Sequence
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import Connection, select

from tandem.feed import archive as files
from tandem.feed import table
from tandem.feed.archive import Archive, ArchiveProblem, NoFolder
from tandem.feed.events import EventContract, FeedEvent
from tandem.feed.head import read_head
from tandem.runtime.arrays import array, bigint
from tandem.runtime.database import driver_of
from tandem.runtime.telemetry import log

MAX_BYTES = 4 * 2**20
"""Of payloads that are read at once. A projector has three batches in memory, parsed to several times their size."""


class BrokenOff(Exception):
    """The feed does not go on from where it was read to."""


class OtherEpoch(BrokenOff):
    """The feed was given a new epoch, or another database is there."""


class HistoryChanged(BrokenOff):
    """What was read is not in the feed any more."""

    def __init__(self, problem: str) -> None:
        super().__init__(
            f"{problem}; the write database lost commits in a failover, or was restored: `tandem feed"
            " begin-epoch` makes the views right"
        )


class EventsMissing(BrokenOff):
    """Events that should follow are not there, and later ones are.

    after: the position behind which they are missing. oldest: of the first event that is left; one more than the feed's
    head where none is. dropped: no event before it is left either, so that it seems to be the oldest that is kept.
    """

    def __init__(self, after: int, oldest: int, *, dropped: bool) -> None:
        super().__init__(f"events {after + 1} to {oldest - 1} are not in the feed")
        self.after = after
        self.oldest = oldest
        self.dropped = dropped


class EventsArchived(EventsMissing):
    """Events that should follow are in the archive, which cannot be read; the message says why.

    dropped: it cannot be read because this program was not told where it is.
    """

    def __init__(self, after: int, oldest: int, problem: ArchiveProblem) -> None:
        super().__init__(after, oldest, dropped=isinstance(problem, NoFolder))
        self.args = (f"events {after + 1} to {oldest - 1} cannot be read: {problem}",)


class FeedPart(NamedTuple):
    """Events that follow a position without a gap, perhaps none. head: the feed's last position at that moment.

    lost_position: of an event that was acknowledged and is not in this history, None where none is known of.
    """

    events: list[FeedEvent]
    head: int
    lost_position: int | None


def read_events(
    connection: Connection,
    contract: EventContract[Any],
    after: int,
    limit: int,
    *,
    epoch: uuid.UUID | None = None,
    mark: int = 0,
    archive: Archive | None = None,
) -> FeedPart:
    """At most `limit` events that follow position `after`. One statement, so all of it is true of one moment.

    No more are returned than hold MAX_BYTES and the event with which they reach it.

    contract: what the events are. epoch: the feed's, None for whichever is there. mark: of the event at `after`, 0
    where it is not known. archive: where the oldest events may be; None where it is nowhere. Raises OtherEpoch,
    HistoryChanged, EventsMissing and EventsArchived.
    """
    supplement = _supplement(contract)
    archive = archive or Archive(None)
    # What the table has is behind the archive's end: it is not read for each batch of what is archived.
    most = 0 if after < archive.through else limit
    at = bigint(after)
    with driver_of(connection) as driver:
        first, *rows = driver.send(_READ.format(supplement=supplement), (at, at, at, bigint(most), bigint(MAX_BYTES)))
    *_, marked, epoch_now, head, lost = first
    is_behind = limit > 0 and head > after and (not rows or rows[0][0] != after + 1)
    if mark and after and marked is None:
        marked = _archived_mark(connection, archive, after)
    if is_behind:
        oldest = rows[0][0] if rows else (archive.through or head) + 1
        archived = _read_archived(connection, archive, after, limit, oldest)
        if not archived and most < limit:
            # The database is not the one that it was: a restored one has events again that were archived.
            archive.through = 0
            return read_events(connection, contract, after, limit, epoch=epoch, mark=mark, archive=archive)
        archive.through = oldest - 1 if archived else 0
        rows = archived or rows
    if epoch is not None and epoch_now != epoch:
        raise OtherEpoch(f"the feed is {epoch_now} now, it was {epoch}")
    if head < after:
        raise HistoryChanged(f"the feed ends at event {head}, and event {after} was read from it")
    # None: the event is not kept any more, which says nothing.
    if mark and marked is not None and marked != mark:
        raise HistoryChanged(f"event {after} of the feed is not the one that was read there")
    _check_sequence(rows, after, head if limit else after, has_event_before=marked is not None)
    return FeedPart([FeedEvent(contract, *row[:_COLUMNS]) for row in rows], head, lost)


def _read_archived(
    connection: Connection, archive: Archive, after: int, limit: int, oldest: int
) -> list[tuple[Any, ...]]:
    """What follows a position of archived events. oldest: of the events in the table behind it.

    Raises EventsArchived.
    """
    try:
        events = archive.read(connection, after, limit, MAX_BYTES)
    except ArchiveProblem as problem:
        raise EventsArchived(after, oldest, problem) from problem
    return files.rows_of(connection, events)


def _archived_mark(connection: Connection, archive: Archive, position: int) -> int | None:
    """None where the event is nowhere, or where it cannot be read: what follows it may be read all the same."""
    try:
        event = archive.event_at(connection, position)
    except ArchiveProblem as problem:
        log.debug("the mark of an archived event is not known", position=position, problem=str(problem))
        return None
    return None if event is None else event.mark


def _check_sequence(rows: Sequence[Any], after: int, head: int, *, has_event_before: bool) -> None:
    """Raises EventsMissing unless the rows are the events after a position, each of them."""
    if rows and rows[0][0] == after + 1 and rows[-1][0] == after + len(rows):
        return
    if not rows and head == after:
        return
    expected = after + 1
    for position, *_ in rows:
        if position != expected:
            break
        expected += 1
    oldest = next((position for position, *_ in rows if position >= expected), head + 1)
    raise EventsMissing(expected - 1, oldest, dropped=expected == after + 1 and not has_event_before)


# Of a FeedEvent, in a row.
_COLUMNS = 8

# First a row of the head, with the mark at `after` where the events have theirs. The key by a query of its own, of the
# events alone that are returned: however few there are to read, a join might read all keys.
_READ = f"""
SELECT CAST(%s AS bigint) AS position, NULL::text, NULL::bytea, NULL::bytea, NULL::bytea, NULL::smallint, NULL::bytea,
  (SELECT coalesce(mark, 0) FROM {table.event.fullname} WHERE position = CAST(%s AS bigint)), epoch, position AS head,
  lost_position
FROM {table.NEWEST_HEAD} AS h
UNION ALL (
  SELECT position, kind, payload,
    (SELECT key FROM {table.subject_key.fullname} AS k WHERE k.subject_id = e.subject_id), envelope, version,
    {{supplement}}, mark, NULL, NULL, NULL
  FROM (
    SELECT *, sum(octet_length(payload)) OVER (ORDER BY position ROWS UNBOUNDED PRECEDING) AS bytes
    FROM (
      SELECT position, kind, payload, subject_id, envelope, version, mark
      FROM {table.event.fullname} WHERE position > %s ORDER BY position LIMIT %s
    ) AS next
  ) AS e WHERE bytes - octet_length(payload) < %s ORDER BY position
) ORDER BY position
"""  # noqa: S608 - only names of tables are put in


@cache
def _supplement(contract: EventContract[Any]) -> str:
    """SQL of an event's supplement: looked up for the kinds and versions alone that may have one."""
    older = _older_versions(contract)
    if not older:
        return "NULL::bytea"
    return (
        f"CASE WHEN (kind, version) IN ({older}) THEN"  # noqa: S608
        f" (SELECT payload FROM {table.event_supplement.fullname} AS s WHERE s.position = e.position) END"
    )


def _older_versions(contract: EventContract[Any]) -> str:
    """SQL of the kinds and versions that are upcast."""
    older = [f"('{kind}', {version})" for kind, newest in contract.versions.items() for version in range(1, newest)]
    return ", ".join(older)


def scan_history(
    connection: Connection,
    contract: EventContract[Any],
    after: int,
    until: int,
    limit: int,
    *,
    epoch: uuid.UUID,
    kinds: Collection[str],
    texts: Collection[str] = (),
    archive: Archive | None = None,
) -> "ScannedPart":
    """As `scan_events`, of a feed that is known. Raises OtherEpoch and HistoryChanged too, where it ends before."""
    head = read_head(connection)
    if head.epoch != epoch:
        raise OtherEpoch(f"the feed is {head.epoch} now, it was {epoch}")
    if head.position < until:
        raise HistoryChanged(f"the feed ends at event {head.position}, and event {until} was read from it")
    return scan_events(connection, contract, after, until, limit, kinds=kinds, texts=texts, archive=archive)


class ScannedPart(NamedTuple):
    """Events of a part of the feed. until: the position up to which it was looked through."""

    events: list[FeedEvent]
    until: int


SCAN_POSITIONS = 20_000
"""That are looked through in one statement: some 10 ms where few of the events are wanted."""


def scan_events(
    connection: Connection,
    contract: EventContract[Any],
    after: int,
    until: int,
    limit: int,
    *,
    kinds: Collection[str],
    texts: Collection[str] = (),
    archive: Archive | None = None,
) -> ScannedPart:
    """The events of these kinds behind `after` and up to `until`, as far as one statement of bounded work goes.

    At most `limit` of them, and no more than hold MAX_BYTES and the event with which they reach it. It is for whoever
    looks back at a part of the feed that has been read in full before: gaps are not found, but for events at its
    beginning that are neither in the table nor in the archive: raises EventsMissing and EventsArchived. Each has its
    `stored_at`.

    texts: only events whose payload has one of them, or that say some of it in a supplement. 16 of them take
    3 µs an event of the database, where to read one takes 15 µs of ours.
    """
    if after < until and (oldest := oldest_position(connection)) > after + 1:
        archived = _read_archived(connection, archive or Archive(None), after, min(limit, until - after), oldest)
        if not archived:
            raise EventsMissing(after, oldest, dropped=True)
        found = [FeedEvent(contract, *row) for row in archived]
        return ScannedPart([it for it in found if _may_be_meant(it, contract, kinds, texts)], found[-1].position)
    end = min(until, after + SCAN_POSITIONS)
    contained = [*texts]
    having = ""
    if contained:
        older = _older_versions(contract)
        having = " OR ".join(["position(%s::bytea IN payload) > 0"] * len(contained))
        having = f" AND ({having} OR (kind, version) IN ({older}))" if older else f" AND ({having})"
    statement = _SCAN.format(supplement=_supplement(contract), having=having)
    texts_in = [it.encode() for it in contained]
    parameters = [bigint(after), bigint(end), array("TEXT", kinds), *texts_in, bigint(limit), bigint(MAX_BYTES)]
    with driver_of(connection) as driver:
        rows = list(driver.send(statement, parameters, prepare=not contained))
    # Fewer than there are: those behind are for the next statement.
    cut = len(rows) == limit or sum(len(row[2]) for row in rows) >= MAX_BYTES
    return ScannedPart([FeedEvent(contract, *row) for row in rows], rows[-1][0] if cut else end)


def _may_be_meant(
    event: FeedEvent, contract: EventContract[Any], kinds: Collection[str], texts: Collection[str]
) -> bool:
    """As _SCAN has it for events of the table."""
    if event.kind not in kinds:
        return False
    older = event.version < contract.versions.get(event.kind, 1)
    return not texts or older or any(it.encode() in event.payload for it in texts)


_SCAN = f"""
SELECT position, kind, payload, key, envelope, version, {{supplement}}, mark, recorded_at
FROM (
  SELECT *, sum(octet_length(payload)) OVER (ORDER BY position ROWS UNBOUNDED PRECEDING) AS bytes,
    (SELECT key FROM {table.subject_key.fullname} AS k WHERE k.subject_id = n.subject_id) AS key
  FROM (
    SELECT position, kind, payload, subject_id, envelope, version, mark, recorded_at
    FROM {table.event.fullname}
    WHERE position > %s AND position <= %s AND kind = ANY(%s){{having}} ORDER BY position LIMIT %s
  ) AS n
) AS e WHERE bytes - octet_length(payload) < %s ORDER BY position
"""  # noqa: S608 - only names of tables are put in


def oldest_position(connection: Connection) -> int:
    """Of the first event that is in the feed; 1 while it is empty."""
    value: int | None = connection.execute(
        select(table.event.c.position).order_by(table.event.c.position).limit(1)
    ).scalar_one_or_none()
    return 1 if value is None else value


def recorded_at(connection: Connection, position: int, archive: Archive) -> datetime | None:
    """When the event at a position was stored; None when there is none, or it is in an archive that is not here."""
    value: datetime | None = connection.execute(
        select(table.event.c.recorded_at).where(table.event.c.position == position)
    ).scalar_one_or_none()
    if value is not None:
        return value
    try:
        archived = archive.event_at(connection, position)
    except ArchiveProblem:
        return None
    return None if archived is None else files.recorded_at(archived)
