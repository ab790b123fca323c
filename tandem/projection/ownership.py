"""Who writes a view: its row names its owner, a session of a projector, and each batch and announcement compares that.

A view is free when its owner is gone, which is any of these:

- It handed the view over: at a clean stop, or because it cannot read the feed and another projector can.
- Its connection ended, and with it the advisory lock that a session holds: its process died, or its machine.
- It has not renewed its row for `hung_seconds`: it hangs, or PostgreSQL's side of the connection does. Such a session
  may keep its lock for ever, and cannot be ended while it stands still. That is why the lock alone decides nothing.

A session that was taken for gone and goes on finds that it owns the view no more, and can neither write nor announce.
"""

import json
import secrets
import uuid
from collections.abc import Collection
from contextlib import AbstractContextManager
from typing import NamedTuple

from psycopg import sql
from sqlalchemy import Connection

from tandem.feed.token import Token, new_mark
from tandem.projection.projection import Projection
from tandem.projection.statements import Deposed
from tandem.read_store.cache import CacheEpochs
from tandem.read_store.tables import change, parked, projection, projector
from tandem.runtime.database import WITHOUT_THE_DISK, Driver, driver_under

# The first half of the locks' names, ours among all advisory locks of the database; the second is the session's.
_LOCK_SPACE = 7_246_002

# Of the change log, in one statement: 5,000 rows take some 20 ms.
_MOST_CHANGES = 5_000

# For a session that is somebody else's: one's own lock is no obstacle to oneself. The shared lock ends with the
# statement.
_IS_THERE = f"""
(it.renewed_at > now() - make_interval(secs => %s)
  AND NOT pg_try_advisory_xact_lock_shared({_LOCK_SPACE}, it.lock))"""


class FreeView(NamedTuple):
    """A view that nobody writes. before: the owner that is gone, if there was one. feed_epoch: None for a new view."""

    before: uuid.UUID | None
    feed_epoch: uuid.UUID | None


class TakenView(NamedTuple):
    """A view that is ours now.

    at: where it is, in its own feed, with its generation. filled: whether it was at the feed's end once. cache_epochs:
    those that the projector before handed over; nobody else gets them. parked: how many of its keys are parked.
    problem: why it could not go on with the owner before, as a reason of errors, and error in words; both are empty
    where it could.
    """

    at: Token
    filled: bool
    cache_epochs: CacheEpochs | None
    parked: int
    problem: str
    error: str


class UnsoundPositions(Exception):
    """The table of the views' positions is not as migrations make it: nobody may write by it. Says what to do."""


def begin_session(connection: Connection, before: uuid.UUID | None) -> uuid.UUID:
    """A session of this connection; connection: in autocommit mode. before: this program's last one, which is over.

    Raises UnsoundPositions.
    """
    session, lock = uuid.uuid4(), secrets.randbits(31)
    driver = driver_under(connection)
    refuse_unsound_positions(driver)
    driver.execute("SELECT pg_advisory_lock(%s, %s)", (_LOCK_SPACE, lock))
    driver.execute(
        f"DELETE FROM {projector.fullname} WHERE session = %s OR renewed_at < now() - interval '1 day'",  # noqa: S608
        (before,),
    )
    driver.execute(f"INSERT INTO {projector.fullname} VALUES (%s, %s, now(), false)", (session, lock))  # noqa: S608
    return session


def refuse_unsound_positions(driver: Driver) -> None:
    """A restore makes the table, fills it and gives it its key, in this order. A view that is begun before its row is
    filled in has two rows then, and no batch can move it. Raises UnsoundPositions.
    """
    found = driver.execute(
        "SELECT EXISTS (SELECT FROM pg_index WHERE indrelid = %s::regclass AND indisprimary),"  # noqa: S608
        f" ARRAY (SELECT view FROM {projection.fullname} GROUP BY view HAVING count(*) > 1 ORDER BY view)",
        (projection.fullname,),
    ).fetchone()
    assert found is not None
    has_key, doubled = found
    if has_key and not doubled:
        return
    wrong = f"has two rows of {', '.join(doubled)}" if doubled else "has no primary key"
    raise UnsoundPositions(
        f"{projection.fullname} {wrong}: a restore is under way, or projectors ran during one. If none is, make the"
        " views anew: docs/runbook.md, Backup and restore"
    )


def renew_session(driver: Driver, session: uuid.UUID, *, follows: bool, idle_seconds: float) -> None:
    """idle_seconds: how long the projector has not been at work.

    Without the disk: batches wait for their announcement meanwhile, and a crash ends the session anyway.
    """
    driver.execute(
        f"UPDATE {projector.fullname} SET renewed_at = now() - make_interval(secs => %s), follows = %s"  # noqa: S608
        f" WHERE session = %s RETURNING {WITHOUT_THE_DISK}",
        (idle_seconds, follows, session),
        prepare=True,
    )


def end_session(driver: Driver, session: uuid.UUID) -> None:
    """At a clean stop: a standby need not wait until PostgreSQL has seen the connection's end."""
    driver.execute(f"DELETE FROM {projector.fullname} WHERE session = %s", (session,))  # noqa: S608


def another_follows(driver: Driver, session: uuid.UUID, hung_seconds: float) -> bool:
    """Whether another projector can read the feed."""
    found = driver.execute(
        f"SELECT EXISTS (SELECT FROM {projector.fullname} AS it WHERE session <> %s AND follows AND {_IS_THERE})",  # noqa: S608
        (session, hung_seconds),
    ).fetchone()
    return bool(found and found[0])


def free_views(driver: Driver, views: Collection[str], hung_seconds: float) -> dict[str, FreeView]:
    """Those of the views that nobody writes. The views are not ours."""
    found = driver.execute(
        f"""
        SELECT v.view, p.owner, p.feed_epoch FROM unnest(%s::text[]) AS v (view)
        LEFT JOIN {projection.fullname} AS p ON p.view = v.view
        LEFT JOIN {projector.fullname} AS it ON it.session = p.owner
        WHERE it.session IS NULL OR NOT {_IS_THERE}""",  # noqa: S608
        (list(views), hung_seconds),
    ).fetchall()
    return {view: FreeView(before, feed_epoch) for view, before, feed_epoch in found}


# No key keeps `projection` from having two rows of a view. The lock makes one of two projectors see the other's.
_CREATE = sql.SQL("""
DO $$ BEGIN
  LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE;
  INSERT INTO {table} (view, feed_epoch, position, generation, filled)
  SELECT {view}, {epoch}, 0, {generation}, false WHERE NOT EXISTS (SELECT FROM {table} WHERE view = {view});
END $$""")


def take_over(driver: Driver, view: str, session: uuid.UUID, free: FreeView, epoch: uuid.UUID) -> TakenView | None:
    """Makes a view ours; None when another projector was faster, or somebody has its row locked.

    epoch: the feed's, for a view that is new.
    """
    if free.feed_epoch is None:
        table = sql.Identifier(*projection.fullname.split("."))
        of_view = {"view": sql.Literal(view), "epoch": sql.Literal(epoch), "generation": sql.Literal(new_mark())}
        driver.execute(_CREATE.format(table=table, **of_view))
    row = driver.execute(_TAKE, (view, free.before, session)).fetchone()
    if row is None:
        return None
    *at, filled, cache_epochs, parked_keys, problem, error = row
    # A list of pairs: JSONB does not keep the order of an object's keys.
    epochs = None if cache_epochs is None else dict(cache_epochs)
    return TakenView(Token(*at), filled, epochs, parked_keys, problem or "", error or "")


# One statement: the other thread of the session may use the connection between two. It waits for no lock, since all
# that the session does for its other views would wait with it.
_TAKE = f"""
WITH free AS (
  SELECT view, cache_epochs FROM {projection.fullname}
  WHERE view = %s AND owner IS NOT DISTINCT FROM %s FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE {projection.fullname} AS p SET owner = %s, cache_epochs = NULL
FROM free WHERE p.view = free.view
RETURNING p.feed_epoch, p.position, p.mark, p.generation, p.filled, free.cache_epochs, p.parked, p.problem, p.error
"""  # noqa: S608 - only the table's name is put in


def bring_over(driver: Driver, view: str, session: uuid.UUID, epoch: uuid.UUID) -> None:
    """Says that a view of ours goes on in the feed's new epoch, where it is: what it took in is in that history too.

    Raises Deposed.
    """
    changed = driver.execute(
        f"UPDATE {projection.fullname} SET feed_epoch = %s, problem = NULL, error = NULL"  # noqa: S608
        " WHERE view = %s AND owner = %s",
        (epoch, view, session),
    )
    if not changed.rowcount:
        raise Deposed(f"{view}: taken over by another projector")


def make_anew(
    driver: Driver, alone: AbstractContextManager[object], view: Projection, session: uuid.UUID, epoch: uuid.UUID
) -> int:
    """Empties one view, which is ours, at the beginning of the feed `epoch`; returns its new generation.

    Of a view that has taken in what the feed has lost, nobody knows which rows are right, and events cannot be taken
    back out of a row: it is made anew as a whole, and not beside what is served, for that is wrong. Its next generation
    has other cache epochs, and an empty change log.

    driver: in autocommit mode. alone: within it, no other thread uses the driver. Raises Deposed and psycopg.Error.
    """
    generation = new_mark()
    forget_changes(driver, view.view)
    with alone, driver.transaction():
        # The row first, as each batch does. While we have it nobody can take the view over.
        changed = driver.execute(
            f"UPDATE {projection.fullname} SET position = 0, mark = 0, feed_epoch = %s, generation = %s,"  # noqa: S608
            " cache_epochs = NULL, problem = NULL, error = NULL, parked = 0 WHERE view = %s AND owner = %s",
            (epoch, generation, view.view, session),
        )
        if not changed.rowcount:
            raise Deposed(f"{view.view}: taken over by another projector")
        driver.execute(sql.SQL("TRUNCATE {}").format(sql.Identifier(*view.table.fullname.split("."))))
        driver.execute(f"DELETE FROM {parked.fullname} WHERE view = %s", (view.view,))  # noqa: S608
    return generation


def forget_changes(driver: Driver, view: str) -> None:
    """Deletes a view's change log from its beginning, as a purge does: what is left of it after a failure is right."""
    while driver.execute(_FORGET_CHANGES, (view, _MOST_CHANGES)).rowcount == _MOST_CHANGES:
        pass


_FORGET_CHANGES = f"""
DELETE FROM {change.fullname} WHERE (view, position, key) IN (
  SELECT view, position, key FROM {change.fullname} WHERE view = %s ORDER BY position LIMIT %s
)
"""  # noqa: S608 - only names of tables and columns are put in


def mark_filled(driver: Driver, views: Collection[str], session: uuid.UUID) -> None:
    """The views have been at the feed's end: they may be read."""
    driver.execute(
        f"UPDATE {projection.fullname} SET filled = true WHERE view = ANY (%s) AND owner = %s",  # noqa: S608
        (list(views), session),
    )


def say_problem(driver: Driver, view: str, session: uuid.UUID, problem: str | None, error: str | None) -> None:
    """Keeps with a view of ours why it cannot go on; None when it can."""
    driver.execute(
        f"UPDATE {projection.fullname} SET problem = %s, error = %s"  # noqa: S608
        " WHERE view = %s AND owner = %s AND (problem, error) IS DISTINCT FROM (%s, %s)",
        (problem, error, view, session, problem, error),
    )


def hand_over(driver: Driver, view: str, session: uuid.UUID, position: int, epochs: CacheEpochs | None) -> None:
    """Frees a view. The next projector may go on with the cache, if the view is still ours and at `position`."""
    pairs = None if epochs is None else json.dumps(list(epochs.items()))
    driver.execute(
        f"UPDATE {projection.fullname} SET owner = NULL, cache_epochs = %s::jsonb"  # noqa: S608
        " WHERE view = %s AND position = %s AND owner = %s",
        (pairs, view, position, session),
    )
