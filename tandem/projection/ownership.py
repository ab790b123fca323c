"""Who projects a view: each view has an advisory lock, held by the very connection that writes the view.

When the connection ends, for whatever reason, the lock ends with it, and a standby takes the view over. The position
that each transaction compares is the second line of defence.
"""

import json
import uuid
import zlib
from typing import NamedTuple

from sqlalchemy import Connection, text

from tandem.feed.token import Token, new_mark
from tandem.read_store.cache import CacheEpochs
from tandem.read_store.tables import projection
from tandem.runtime.database import driver_under

# The first half of the locks' names, ours among all advisory locks of the database; the second is the view's name.
_LOCK_SPACE = 7_246_002


class OtherFeed(Exception):
    """The view was made from another feed than the one that is there; the message says how to mend it.

    at: where the view is, in its own feed.
    """

    def __init__(self, at: Token, epoch: uuid.UUID) -> None:
        super().__init__(
            f"it was made from the feed {at.epoch}, and the write database has the feed {epoch}, which does not come"
            " from it: if that is the right database, stop the projectors and run `python -m projector reset`"
        )
        self.at = at


class Taken(NamedTuple):
    """A view as it is when its lock is ours. cache_epochs: as the projector before handed them over, else None."""

    at: Token
    generation: int
    cache_epochs: CacheEpochs | None


def end_when_idle(connection: Connection, seconds: float) -> None:
    """Makes the database end this session, and its locks with it, after so long without a statement.

    A projector that is paused or hangs keeps its connection open: without this, no standby would ever take over.
    """
    connection.execute(
        text("SELECT set_config('idle_session_timeout', :limit, false)"), {"limit": f"{int(seconds * 1000)}ms"}
    )


def try_lock(connection: Connection, view: str) -> bool:
    """Whether the view's lock is ours now. It is kept until the connection ends."""
    held: bool = connection.execute(
        text("SELECT pg_try_advisory_lock(:space, :view)"),
        # The view's name as a stable signed 32-bit number.
        {"space": _LOCK_SPACE, "view": zlib.crc32(view.encode()) - 2**31},
    ).scalar_one()
    return held


def take_over(connection: Connection, view: str, epoch: uuid.UUID) -> Taken:
    """Begins to project a view, whose lock is ours; no other projector gets the cache epochs that were handed over.

    epoch: the feed's. Raises OtherFeed when the view belongs to another one.
    """
    with driver_under(connection).transaction():
        connection.execute(
            text(
                f"INSERT INTO {projection.fullname} (view, feed_epoch, position, generation)"  # noqa: S608
                " VALUES (:view, :epoch, 0, :generation)"
                " ON CONFLICT (view) DO NOTHING"
            ),
            {"view": view, "epoch": epoch, "generation": new_mark()},
        )
        row = connection.execute(projection.select().where(projection.c.view == view).with_for_update()).one()
        if row.feed_epoch != epoch:
            raise OtherFeed(Token(row.feed_epoch, row.position, row.mark), epoch)
        connection.execute(
            text(
                f"UPDATE {projection.fullname} SET cache_epochs = NULL, problem = NULL, error = NULL"  # noqa: S608
                " WHERE view = :view"
            ),
            {"view": view},
        )
        # A list of pairs: JSONB does not keep the order of an object's keys.
        epochs = dict(row.cache_epochs) if row.cache_epochs is not None else None
        return Taken(Token(epoch, row.position, row.mark), row.generation, epochs)


def bring_over(connection: Connection, view: str, epoch: uuid.UUID) -> None:
    """Says that a view goes on in the feed's new epoch, where it is: all that it took in is in that history too."""
    connection.execute(
        text(f"UPDATE {projection.fullname} SET feed_epoch = :epoch WHERE view = :view"),  # noqa: S608
        {"epoch": epoch, "view": view},
    )


def say_problem(connection: Connection, view: str, problem: str | None, error: str | None) -> None:
    """Keeps with a view why it cannot go on; None when it can."""
    connection.execute(
        text(f"UPDATE {projection.fullname} SET problem = :problem, error = :error WHERE view = :view"),  # noqa: S608
        {"problem": problem, "error": error, "view": view},
    )


def hand_over_epochs(connection: Connection, view: str, position: int, epochs: CacheEpochs) -> None:
    """At a clean stop: the next projector may go on with the cache, if the view is still at `position`."""
    connection.execute(
        text(
            f"UPDATE {projection.fullname} SET cache_epochs = CAST(:epochs AS jsonb)"  # noqa: S608
            " WHERE view = :view AND position = :position"
        ),
        {"epochs": json.dumps(list(epochs.items())), "view": view, "position": position},
    )
