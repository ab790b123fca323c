"""Empties the views, so that they are made anew from the feed that is there."""

import uuid
from collections.abc import Sequence

from sqlalchemy import Connection, Table, text

from tandem.projection.ownership import begin_anew, held_views
from tandem.read_store.tables import change, parked, projection
from tandem.runtime.database import driver_under
from tandem.runtime.program import ActionRefused


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
    connection.execute(text(f"TRUNCATE {', '.join(table.fullname for table in (*tables, change, parked))}"))
    connection.execute(text(f"UPDATE {projection.fullname} SET owner = NULL"))  # noqa: S608 - a table of ours
    for table in tables:
        begin_anew(driver_under(connection), table.name, None, epoch)
