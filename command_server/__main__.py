"""`python -m command_server [serve | migrate | begin-epoch | archive | archive-plan | verify-archive]`"""

import sys

from command_server.app import MIGRATIONS, build
from command_server.settings import Settings
from tandem.commands import archiving
from tandem.commands.maintenance import begin_epoch
from tandem.commands.partitions import ensure_partitions
from tandem.feed.table import SCHEMA
from tandem.runtime.database import migrate, transaction
from tandem.runtime.program import Action, main


def _migrate(settings: Settings) -> str:
    """The tables, and the feed's partitions ahead: servers may have no right to make them."""
    revision = migrate(settings.database, MIGRATIONS, SCHEMA)
    with transaction(settings.database, "tandem-command-migrate") as connection:
        ensure_partitions(connection, settings.feed.partition_events)
    return f"{SCHEMA} is at revision {revision}"


def _begin_epoch(settings: Settings) -> str:
    with transaction(settings.database, "tandem-command-epoch") as connection:
        return f"the feed's epoch is {begin_epoch(connection)}"


ACTIONS = {
    "migrate": Action("bring the write database's schema up to date", _migrate),
    "begin-epoch": Action(
        "name the feed anew, after the write database lost commits in a failover or was restored to an earlier state;"
        " tokens from before are refused then, and projectors make the views right",
        _begin_epoch,
    ),
    "archive": Action(
        "move the feed's oldest partitions into files of ARCHIVE__FOLDER, as the owner of the schema; it may be ended"
        " and repeated at any time",
        lambda settings: archiving.run(settings.database, settings.archive),
    ),
    "archive-plan": Action(
        "say what `archive` would move", lambda settings: str(archiving.plan(settings.database, settings.archive))
    ),
    "verify-archive": Action(
        "read the whole archive and compare it with its checksums",
        lambda settings: archiving.verify(settings.database, settings.archive),
    ),
}

if __name__ == "__main__":
    sys.exit(main("command_server", Settings, build, ACTIONS, "answer calls until SIGTERM"))
