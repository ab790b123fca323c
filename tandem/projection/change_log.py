"""The change log's old rows are taken away, some at a time."""

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from tandem.projection.settings import ChangeLogSettings
from tandem.read_store.tables import change
from tandem.runtime.database import first_line
from tandem.runtime.sqlstate import failure_of
from tandem.runtime.telemetry import log, note_success


def purge(connection: Connection, settings: ChangeLogSettings) -> bool:
    """Whether there may be more to purge. Raises DBAPIError where the connection is of no more use."""
    most = settings.purge_batch
    try:
        purged = connection.execute(_PURGE, {"keep": settings.keep_hours, "most": most}).rowcount
    except DBAPIError as error:
        if failure_of(error).drop:
            raise
        # Too slow, or refused. Old rows take room, and that is no reason to stop the views.
        log.warning("the change log is not purged", error=first_line(error))
        return False
    if purged == most:
        return True
    note_success("change log")
    return False


_PURGE = text(f"""
DELETE FROM {change.fullname} WHERE (view, position, key) IN (
  SELECT view, position, key FROM {change.fullname}
  WHERE changed_at < now() - make_interval(secs => :keep * 3600) ORDER BY changed_at LIMIT :most
)
""")  # noqa: S608 - only the table's name is put in
