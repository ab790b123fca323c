"""Empties the views, so that they are made anew from the feed that is there: after the write database was restored."""

import uuid
from collections.abc import Sequence

from sqlalchemy import Connection, Table, text

from tandem.projection.ownership import held_views
from tandem.read_store.tables import change, projection
from tandem.runtime.program import ActionRefused


class StillHeld(ActionRefused):
    """A projector runs and holds a view; the message names it."""


def reset(connection: Connection, tables: Sequence[Table], epoch: uuid.UUID, *, hung_seconds: float) -> None:
    """Empties the views' tables and the change log, in one transaction. epoch: of the feed that is there.

    connection: not in autocommit mode. Readers see the old rows until it is committed, and then the views grow again.
    hung_seconds: as the projectors have it. Raises StillHeld.
    """
    held = held_views(connection, hung_seconds)
    if held:
        raise StillHeld(f"a projector holds {', '.join(held)}: stop the projectors first")
    connection.execute(text(f"TRUNCATE {', '.join(table.fullname for table in (*tables, change))}"))
    connection.execute(
        text(f"UPDATE {projection.fullname} SET position = 0, feed_epoch = :epoch, cache_epochs = NULL, owner = NULL"),  # noqa: S608
        {"epoch": epoch},
    )
