"""Empties views, so that they are made anew from the feed that is there.

Of a view that has taken in what the feed has lost, nobody knows which rows are right, and events cannot be taken back
out of a row: it is made anew as a whole. Its next generation has other cache epochs, and an empty change log.
"""

import uuid
from collections.abc import Sequence

from sqlalchemy import Connection, Table, text

from tandem.feed.token import new_mark
from tandem.projection.ownership import try_lock
from tandem.read_store.tables import change, projection
from tandem.runtime.database import driver_under
from tandem.runtime.program import ActionRefused

# Of the change log, in one statement: 5,000 rows take some 20 ms.
_MOST_CHANGES = 5_000


class StillHeld(ActionRefused):
    """A projector runs and holds a view; the message names it."""


def reset(connection: Connection, tables: Sequence[Table], epoch: uuid.UUID) -> None:
    """Empties the views' tables and the change log, in one transaction. epoch: of the feed that is there.

    connection: not in autocommit mode. Readers see the old rows until it is committed, and then the views grow again.
    Raises StillHeld.
    """
    for table in tables:
        if not try_lock(connection, table.name):
            raise StillHeld(f"a projector holds {table.name}: stop the projectors first")
    connection.execute(text(f"TRUNCATE {', '.join(table.fullname for table in (*tables, change))}"))
    for table in tables:
        connection.execute(_BEGIN_ANEW, {"view": table.name, "epoch": epoch, "generation": new_mark()})


def make_anew(connection: Connection, table: Table, epoch: uuid.UUID) -> None:
    """Empties one view, whose lock is ours, at the beginning of the feed `epoch`.

    connection: in autocommit mode. The change log is deleted from its beginning, as a purge does, so that what is left
    of it after a failure is right.
    """
    view = {"view": table.name}
    while connection.execute(_FORGET_CHANGES, view | {"most": _MOST_CHANGES}).rowcount == _MOST_CHANGES:
        pass
    with driver_under(connection).transaction():
        connection.execute(text(f"TRUNCATE {table.fullname}"))
        connection.execute(_BEGIN_ANEW, view | {"epoch": epoch, "generation": new_mark()})


_BEGIN_ANEW = text(
    f"UPDATE {projection.fullname} SET position = 0, mark = 0, feed_epoch = :epoch, generation = :generation,"  # noqa: S608
    " cache_epochs = NULL, problem = NULL, error = NULL WHERE view = :view"
)
_FORGET_CHANGES = text(f"""
DELETE FROM {change.fullname} WHERE (view, position, key) IN (
  SELECT view, position, key FROM {change.fullname} WHERE view = :view ORDER BY position LIMIT :most
)
""")  # noqa: S608 - only the table's name is put in
