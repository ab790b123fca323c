"""Who projects a view: each view has an advisory lock, held by the very connection that writes the view.

When the connection ends, for whatever reason, the lock ends with it, and a standby takes the view over. The position
that each transaction compares is the second line of defence.
"""

import json
import uuid
import zlib

from sqlalchemy import Connection, text

from tandem.read_store.cache import CacheEpochs
from tandem.read_store.tables import projection
from tandem.runtime.database import driver_under

# The first half of the locks' names, ours among all advisory locks of the database; the second is the view's name.
_LOCK_SPACE = 7_246_002


class OtherFeed(Exception):
    """The view was made from another feed than the one that is there; the message says how to mend it."""


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


def take_over(connection: Connection, view: str, epoch: uuid.UUID) -> tuple[int, CacheEpochs | None]:
    """The view's position, and the cache epochs that the projector before handed over; no other projector gets these.

    epoch: the feed's. Raises OtherFeed when the view belongs to another one.
    """
    with driver_under(connection).transaction():
        connection.execute(
            text(
                # Nobody else does the same: the view's lock is ours.
                f"INSERT INTO {projection.fullname} (view, feed_epoch, position) SELECT :view, :epoch, 0"  # noqa: S608
                f" WHERE NOT EXISTS (SELECT FROM {projection.fullname} WHERE view = :view)"
            ),
            {"view": view, "epoch": epoch},
        )
        row = connection.execute(projection.select().where(projection.c.view == view).with_for_update()).one()
        if row.feed_epoch != epoch:
            raise OtherFeed(
                f"it was made from the feed {row.feed_epoch}, and the write database has the feed {epoch}: after a"
                " restore, stop the projectors and run `python -m projector reset`"
            )
        connection.execute(
            text(f"UPDATE {projection.fullname} SET cache_epochs = NULL WHERE view = :view"),  # noqa: S608
            {"view": view},
        )
        # A list of pairs: JSONB does not keep the order of an object's keys.
        return row.position, dict(row.cache_epochs) if row.cache_epochs is not None else None


def hand_over_epochs(connection: Connection, view: str, position: int, epochs: CacheEpochs) -> None:
    """At a clean stop: the next projector may go on with the cache, if the view is still at `position`."""
    connection.execute(
        text(
            f"UPDATE {projection.fullname} SET cache_epochs = CAST(:epochs AS jsonb)"  # noqa: S608
            " WHERE view = :view AND position = :position"
        ),
        {"epochs": json.dumps(list(epochs.items())), "view": view, "position": position},
    )
