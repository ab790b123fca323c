"""Empties views, so that they are made anew from the feed that is there.

Of a view that has taken in what the feed has lost, nobody knows which rows are right, and events cannot be taken back
out of a row: it is made anew as a whole. Its next generation has other cache epochs, and an empty change log.
"""

import uuid
from collections.abc import Sequence
from contextlib import AbstractContextManager

from psycopg import sql
from sqlalchemy import Connection, Table, text

from tandem.feed.token import new_mark
from tandem.projection.ownership import held_views
from tandem.projection.statements import Deposed, Driver
from tandem.read_store.tables import change, projection
from tandem.runtime.database import driver_under
from tandem.runtime.program import ActionRefused

# Of the change log, in one statement: 5,000 rows take some 20 ms.
_MOST_CHANGES = 5_000


class StillHeld(ActionRefused):
    """A projector runs and holds a view; the message names it."""


def reset(connection: Connection, tables: Sequence[Table], epoch: uuid.UUID, hung_seconds: float) -> None:
    """connection: in a transaction, as the tables' owner. tables: of all views. epoch: the feed's.

    Raises StillHeld. The row of each view stays, and so does its fence: a projector that was paused with a batch finds
    another feed, or another position, and stores nothing. The next projector begins new cache epochs.
    """
    held = held_views(connection, hung_seconds)
    if held:
        raise StillHeld(f"a projector holds {', '.join(held)}: stop the projectors first")
    connection.execute(text(f"TRUNCATE {', '.join(table.fullname for table in (*tables, change))}"))
    connection.execute(text(f"UPDATE {projection.fullname} SET owner = NULL"))  # noqa: S608 - a table of ours
    for table in tables:
        driver_under(connection).execute(_BEGIN_ANEW, (epoch, new_mark(), table.name, None))


def make_anew(
    driver: Driver, alone: AbstractContextManager[object], table: Table, session: uuid.UUID, epoch: uuid.UUID
) -> int:
    """Empties one view, which is ours, at the beginning of the feed `epoch`; returns its new generation.

    driver: in autocommit mode. alone: within it, no other thread uses the driver. The change log is deleted from its
    beginning, as a purge does, so that what is left of it after a failure is right. Raises Deposed and psycopg.Error.
    """
    while driver.execute(_FORGET_CHANGES, (table.name, _MOST_CHANGES)).rowcount == _MOST_CHANGES:
        pass
    generation = new_mark()
    with alone, driver.transaction():
        # The row first, as each batch does. While we have it nobody can take the view over.
        if not driver.execute(_BEGIN_ANEW, (epoch, generation, table.name, session)).rowcount:
            raise Deposed(f"{table.name}: taken over by another projector")
        driver.execute(sql.SQL("TRUNCATE {}").format(sql.Identifier(*table.fullname.split("."))))
    return generation


_BEGIN_ANEW = f"""
UPDATE {projection.fullname} SET position = 0, mark = 0, feed_epoch = %s, generation = %s,
  cache_epochs = NULL, problem = NULL, error = NULL
WHERE view = %s AND owner IS NOT DISTINCT FROM %s
"""  # noqa: S608 - only names of tables are put in, here and below
_FORGET_CHANGES = f"""
DELETE FROM {change.fullname} WHERE (view, position, key) IN (
  SELECT view, position, key FROM {change.fullname} WHERE view = %s ORDER BY position LIMIT %s
)
"""  # noqa: S608
