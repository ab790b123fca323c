"""`python -m command_server [serve | migrate | begin-epoch | restore LEDGER… | archive | archive-plan | …]`"""

import sys
from functools import partial
from pathlib import Path

from command_server.app import DOMAIN, MIGRATIONS, build
from command_server.settings import Settings
from commerce.command.v1.command_service_pb2 import EraseCustomerRequest
from tandem.commands import archiving
from tandem.commands.acknowledged import Acknowledged
from tandem.commands.executor import Executor, create_executor_engine
from tandem.commands.ledger import Kind, Ledger
from tandem.commands.maintenance import begin_epoch
from tandem.commands.partitions import ensure_partitions
from tandem.commands.restore import restore
from tandem.feed.table import SCHEMA
from tandem.runtime.actions import Action, ActionRefused, Done
from tandem.runtime.blockers import blockers, end_session
from tandem.runtime.database import has_revision, migrate, newest_revision, transaction
from tandem.runtime.program import main


def _migrate(settings: Settings) -> Done:
    """The tables, and the feed's partitions ahead: servers may have no right to make them."""
    revision = migrate(settings.database, MIGRATIONS, SCHEMA)
    with transaction(settings.database, "tandem-command-migrate") as connection:
        ensure_partitions(connection, settings.feed.partition_events)
    return Done(f"{SCHEMA} is at revision {revision}", {"schema": SCHEMA, "revision": revision})


def _begin_epoch(settings: Settings) -> Done:
    with transaction(settings.database, "tandem-command-epoch") as connection:
        epoch = begin_epoch(connection)
    # Where it cannot be written, which is logged, a command server does it later.
    Ledger(settings.ledger.file).add(Kind.EPOCH, [epoch])
    return Done(f"the feed's epoch is {epoch}", {"epoch": str(epoch)})


def _restore(settings: Settings, *ledgers: Path) -> Done:
    own = settings.ledger.file
    chosen = ledgers or ((own,) if own is not None and own.exists() else ())
    if not chosen:
        raise ActionRefused(
            "name the ledgers of all command servers: restore LEDGER…; without any nobody knows who was erased since"
            " the backup: then erase them yourself, and run begin-epoch"
        )
    needed = newest_revision(MIGRATIONS)
    engine = create_executor_engine(settings.database, settings.executor)
    if not has_revision(engine, SCHEMA, needed, writing=True):
        raise ActionRefused(f"the write database takes no writes, or is not at revision {needed}: run migrate first")
    new_executor = partial(Executor, engine, DOMAIN, settings.executor, Acknowledged(kept_seconds=0), Ledger(None))
    done = restore(settings.database, new_executor, _erasure_of, chosen, Ledger(own))
    return Done(
        f"the feed's epoch is {done.epoch}; of {done.listed} erasures that were written down,"
        f" {done.erased} were not in the backup and are done again",
        {"epoch": str(done.epoch), "listed": done.listed, "erased": done.erased},
    )


def _erasure_of(subject_id: str) -> EraseCustomerRequest:
    return EraseCustomerRequest(customer_id=subject_id)


ACTIONS = {
    "migrate": Action("bring the write database's schema up to date", _migrate),
    "begin-epoch": Action(
        "name the feed anew, after the write database lost commits in a failover or was restored to an earlier state;"
        " tokens from before are refused then, and projectors make the views right",
        _begin_epoch,
    ),
    "blockers": Action("show who holds others up in the write database", lambda settings: blockers(settings.database)),
    "end-session": Action(
        "end a session that `blockers` shows, by its process id",
        lambda settings, pid: end_session(settings.database, pid),
        takes=int,
    ),
    "archive": Action(
        "move the feed's oldest partitions into files of ARCHIVE__FOLDER, as the owner of the schema; it may be ended"
        " and repeated at any time",
        lambda settings: archiving.run(settings.database, settings.archive),
    ),
    "archive-plan": Action(
        "say what `archive` would move", lambda settings: archiving.plan(settings.database, settings.archive).done()
    ),
    "verify-archive": Action(
        "read the whole archive and compare it with its checksums",
        lambda settings: archiving.verify(settings.database, settings.archive),
    ),
    "restore": Action(
        "after the write database was restored from a backup: erase again who was erased since, as the ledgers say,"
        " and begin a new epoch; before the command servers are started",
        _restore,
        takes=Path,
    ),
}

if __name__ == "__main__":
    sys.exit(main("command_server", Settings, build, ACTIONS, "answer calls until SIGTERM"))
