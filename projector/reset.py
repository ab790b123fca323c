"""`python -m projector reset`: empties the views, so that they are made anew from the feed that is there."""

import uuid

from sqlalchemy import Connection, text

from projector.ownership import try_lock
from shop.views import VIEWS
from tandem.read_store.tables import change, projection


class StillHeld(Exception):
    """A projector runs and holds a view; the message names it."""


def reset(connection: Connection, epoch: uuid.UUID) -> None:
    """Empties all views and their change log, in one transaction. `connection` must not be in autocommit mode.

    Readers see the old rows until it is committed, and then the views grow again. Raises StillHeld.
    """
    for view in VIEWS:
        if not try_lock(connection, view):
            raise StillHeld(f"a projector holds {view}: stop the projectors first")
    tables = ", ".join(table.fullname for table in (*VIEWS.values(), change))
    connection.execute(text(f"TRUNCATE {tables}"))
    connection.execute(
        text(f"UPDATE {projection.fullname} SET position = 0, feed_epoch = :epoch, cache_epochs = NULL"),  # noqa: S608
        {"epoch": epoch},
    )
