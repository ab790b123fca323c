"""How reactions are, and what an operator does about them: see, redrive and drop what is parked, replay the feed."""

import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from prometheus_client import Gauge
from sqlalchemy import Connection, select, text, update

from tandem.feed import table as feed
from tandem.feed.archive import Archive
from tandem.feed.head import read_head
from tandem.feed.reader import recorded_at, scan_events
from tandem.reactions.reaction import Reaction
from tandem.reactions.tasks import OF_EVENT, Kind, delete_timers, insert_tasks, task
from tandem.reactions.tasks import reaction as reaction_table
from tandem.runtime.clock import database_time
from tandem.runtime.database import driver_of
from tandem.runtime.errors import NotFound, PreconditionFailed, Unavailable, Violation
from tandem.runtime.telemetry import log

BEHIND = Gauge(
    "tandem_reaction_behind_seconds", "Age of the oldest event that a reaction has not taken in", ["reaction"]
)
OVERDUE = Gauge(
    "tandem_reaction_overdue_seconds", "For how long the oldest that a reaction is to do has been due", ["reaction"]
)
WAITING = Gauge("tandem_reaction_waiting_tasks", "What a reaction is to do, at most 10,000", ["reaction"])
PARKED_TASKS = Gauge(
    "tandem_reaction_parked_tasks", "What a reaction has not done, and an operator is to see", ["reaction"]
)

_MOST_COUNTED = 10_000
# While a deployment is under way, another server may be of the newer program: that is soon over.
_NEWER_RETRY_SECONDS = 5.0


class Standing(NamedTuple):
    """How a reaction is. position: of the last event that it has taken in; head: of the feed's last. waiting: how many
    things are to be done, at most 10,000; parked: and how many wait for an operator. problem: empty where it goes on.
    """

    name: str
    position: int
    head: int
    behind_seconds: float
    waiting: int
    overdue_seconds: float
    parked: int
    problem: str = ""


_STANDINGS = f"""
SELECT r.name, r.position, h.position AS head,
  coalesce(extract(epoch FROM clock_timestamp() - (
    SELECT recorded_at FROM {feed.event.fullname} AS e WHERE e.position > r.position ORDER BY e.position LIMIT 1
  ))::float, 0) AS behind,
  (SELECT count(*) FROM (
    SELECT FROM {task.fullname} AS t
    WHERE t.reaction = r.name AND t.done_at IS NULL AND t.parked_at IS NULL LIMIT {_MOST_COUNTED}
  ) AS waiting) AS waiting,
  greatest(0, extract(epoch FROM clock_timestamp() - (
    SELECT min(least(
      (SELECT min(t.at) FROM {task.fullname} AS t
       WHERE t.reaction = r.name AND t.kind = k.kind AND t.done_at IS NULL AND t.parked_at IS NULL),
      (SELECT min(t.first_at) FROM {task.fullname} AS t
       WHERE t.reaction = r.name AND t.kind = k.kind AND t.done_at IS NULL AND t.parked_at IS NULL AND t.attempts > 0)
    ) + make_interval(secs => CASE WHEN k.kind = '{Kind.TIMER}' THEN d.delay ELSE 0 END))
    FROM unnest(ARRAY['{Kind.DO}', '{Kind.POST}', '{Kind.TIMER}']) AS k (kind)
  ))::float) AS overdue,
  (SELECT count(*) FROM {task.fullname} AS t
   WHERE t.reaction = r.name AND t.done_at IS NULL AND t.parked_at IS NOT NULL) AS parked
FROM unnest(CAST(%s AS text[]), CAST(%s AS double precision[])) AS d (name, delay)
JOIN {reaction_table.fullname} AS r ON r.name = d.name, {feed.NEWEST_HEAD} AS h
ORDER BY r.name"""  # noqa: S608 - only names of tables and numbers are put in, here and below


def find_standings(connection: Connection, reactions: Sequence[Reaction]) -> list[Standing]:
    names, delays = [it.name for it in reactions], [it.delay.total_seconds() for it in reactions]
    with driver_of(connection) as driver:
        return [Standing(*row) for row in driver.execute(_STANDINGS, (names, delays))]


def show(standings: Sequence[Standing]) -> None:
    """In the metrics."""
    for it in standings:
        BEHIND.labels(it.name).set(it.behind_seconds)
        OVERDUE.labels(it.name).set(it.overdue_seconds)
        WAITING.labels(it.name).set(it.waiting)
        PARKED_TASKS.labels(it.name).set(it.parked)


class Parked(NamedTuple):
    """What an operator is to see. error: empty for an event that waits behind another one of its aggregate."""

    reaction: str
    position: int
    number: int
    key: str
    kind: str
    type: str
    attempts: int
    parked_at: datetime
    error: str


_PARKED = text(f"""
SELECT reaction, position, number, CAST(key AS text), kind, type, attempts, parked_at, error FROM {task.fullname}
WHERE reaction = ANY(:reactions) AND done_at IS NULL AND parked_at IS NOT NULL
  AND (reaction, position, number) > (:reaction, :position, :number)
ORDER BY reaction, position, number LIMIT :most""")  # noqa: S608


class Place(NamedTuple):
    """Of something parked, among all of its reaction."""

    position: int
    number: int


BEGINNING = Place(-1, 0)


def list_parked(
    connection: Connection, reactions: Sequence[str], most: int, reaction: str = "", after: Place = BEGINNING
) -> list[Parked]:
    """At most so many, in order, which follow a place in one of the reactions."""
    arguments = {"reactions": list(reactions), "reaction": reaction, **after._asdict(), "most": most}
    return [Parked(*it) for it in connection.execute(_PARKED, arguments)]


class Redriven(NamedTuple):
    """How many are to be done now, and how many events stay parked. last: where it came to; None for the end."""

    redriven: int
    parked: int
    last: Place | None


# In one transaction, which its reaction waits for.
_MOST_REDRIVEN = 100

# waits: behind an event that another part has tried, and that stays parked.
_PART = text(f"""
SELECT t.position, t.number, CAST(t.key AS text) AS key, t.kind, EXISTS (
    SELECT FROM {task.fullname} AS e
    WHERE e.reaction = t.reaction AND e.key = t.key AND e.done_at IS NULL AND e.parked_at IS NOT NULL
      AND e.kind = '{Kind.EVENT}' AND (e.position, e.number) <= (:position, :number)
  ) AS waits
FROM {task.fullname} AS t
WHERE t.reaction = :reaction AND t.done_at IS NULL AND t.parked_at IS NOT NULL
  AND (CAST(:key AS uuid) IS NULL OR t.key = CAST(:key AS uuid)) AND (t.position, t.number) > (:position, :number)
ORDER BY t.position, t.number LIMIT :most""")  # noqa: S608

_ANEW_AT = (
    f"clock_timestamp() - CASE WHEN kind = '{Kind.TIMER}' THEN make_interval(secs => :delay) ELSE interval '0' END"
)
_ANEW = text(f"""
UPDATE {task.fullname} SET parked_at = NULL, attempts = 0, error = '', at = {_ANEW_AT}, first_at = {_ANEW_AT}
WHERE reaction = :reaction
  AND (position, number) IN (SELECT * FROM unnest(CAST(:positions AS bigint[]), CAST(:numbers AS integer[])))
""")  # noqa: S608


def redrive(
    connection: Connection,
    reaction: Reaction,
    archive: Archive,
    key: str | None,
    *,
    after: Place = BEGINNING,
    most: int = _MOST_REDRIVEN,
) -> Redriven:
    """Has what is parked of an aggregate, or of all, done anew; events are taken in, in their order. At most so many.

    To be followed by COMMIT: the reaction, which is locked meanwhile, goes on between two parts. Raises NotFound for a
    reaction that was not begun, Unavailable for events that a newer program has parked, and BrokenOff.
    """
    row = _locked(connection, reaction.name)
    named = {"reaction": reaction.name, "key": key}
    part = connection.execute(_PART, {**named, **after._asdict(), "most": most}).all()
    tasks = [it for it in part if it.kind != Kind.EVENT]
    if row.version > reaction.version and len(tasks) < len(part):
        first = next(it for it in part if it.kind == Kind.EVENT)
        raise _newer_program(reaction.name, row.version, first.position)
    places = {"positions": [it.position for it in tasks], "numbers": [it.number for it in tasks]}
    connection.execute(_ANEW, {**named, **places, "delay": reaction.delay.total_seconds()})
    failed = {it.key for it in part if it.waits}
    parked = 0
    for it in part:
        if it.kind == Kind.EVENT and (it.key in failed or not _take_in(connection, reaction, archive, it, row.secret)):
            failed.add(it.key)
            parked += 1
    last = Place(part[-1].position, part[-1].number) if len(part) == most else None
    return Redriven(len(part) - parked, parked, last)


def _newer_program(name: str, version: int, position: int) -> Unavailable:
    """To this one an event of a kind that the newer one takes would be none that leads to anything, and be gone."""
    return Unavailable(
        f"a newer program follows {name}, with version {version}, and has parked event {position}: a command server of"
        " that program is to be asked",
        reason="EVENT_UNREADABLE",
        retry_after=_NEWER_RETRY_SECONDS,
        metadata={"position": str(position)},
    )


def _take_in(connection: Connection, reaction: Reaction, archive: Archive, it: Any, secret: uuid.UUID) -> bool:
    """One event that is parked. False where it stays so."""
    before, kinds = it.position - 1, reaction.kinds
    part = scan_events(connection, reaction.contract, before, it.position, 1, kinds=kinds, archive=archive)
    # A kind that it does not take any more leads to nothing.
    event = part.events[0] if part.events else None
    of_row = _row(reaction.name, it.position)
    try:
        tasks = [] if event is None else reaction.tasks(event, event.sealed(), secret)
    except Exception as error:  # whatever it is, it concerns this aggregate alone
        connection.execute(update(task).where(*of_row).values(error=repr(error)[:1000]))
        return False
    connection.execute(task.delete().where(*of_row))
    delete_timers(connection, [(reaction.name, it.key)])
    insert_tasks(connection, tasks)
    return True


def _row(name: str, position: int) -> tuple[Any, ...]:
    return task.c.reaction == name, task.c.position == position, task.c.number == OF_EVENT


_DROP = text(f"""
UPDATE {task.fullname} SET done_at = clock_timestamp(), outcome = :outcome
WHERE reaction = :reaction AND key = CAST(:key AS uuid) AND done_at IS NULL AND parked_at IS NOT NULL""")  # noqa: S608


def drop(connection: Connection, reaction: Reaction, key: str, actor: str, reason: str) -> int:
    """What is parked of an aggregate is never done; returns how much that was. To be followed by COMMIT.

    Raises NotFound for a reaction that was not begun.
    """
    _locked(connection, reaction.name)
    outcome = f"dropped by {actor or 'somebody'}: {reason}"
    dropped: int = connection.execute(_DROP, {"reaction": reaction.name, "key": key, "outcome": outcome}).rowcount
    log.warning("dropped what was parked", reaction=reaction.name, key=key, count=dropped, actor=actor, reason=reason)
    return dropped


def replay(connection: Connection, reaction: Reaction, archive: Archive, after: int, keep: timedelta) -> int:
    """Has a reaction go on behind a position, back or ahead; returns where it was. To be followed by COMMIT.

    keep: for how long it is remembered what was done. Raises a refusal for events that are older, from before the
    reaction began, or not there yet, and NotFound for a reaction that was not begun.
    """
    row = _locked(connection, reaction.name)
    name = f"reactions/{reaction.name}"
    head = read_head(connection).position
    if after > head:
        raise PreconditionFailed([Violation(name, f"the feed ends at event {head}", "REPLAY_AHEAD")])
    if after < row.begun_after:
        description = f"it began behind event {row.begun_after}; what was before is not its matter"
        raise PreconditionFailed([Violation(name, description, "REPLAY_TOO_FAR")])
    if after < row.position:
        at = recorded_at(connection, after + 1, archive)
        if at is None or at < database_time(connection) - keep:
            days = keep.total_seconds() / 86_400
            description = f"what was done more than {days:g} days ago is not remembered, and might be done twice"
            raise PreconditionFailed([Violation(name, description, "REPLAY_TOO_FAR")])
    connection.execute(update(reaction_table).where(reaction_table.c.name == reaction.name).values(position=after))
    log.warning("a reaction is replayed", reaction=reaction.name, after=after, was=row.position)
    return int(row.position)


def _locked(connection: Connection, name: str) -> Any:
    """The reaction's row, which its follower waits for. Raises NotFound."""
    found = connection.execute(select(reaction_table).where(reaction_table.c.name == name).with_for_update()).first()
    if found is None:
        raise NotFound("reaction", f"reactions/{name}")
    return found
