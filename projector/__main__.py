"""`python -m projector [serve | migrate | blockers | end-session PID]`"""

import sys

from projector.app import MIGRATIONS, build
from projector.settings import Settings
from tandem.read_store.tables import SCHEMA
from tandem.runtime.actions import Action, Done
from tandem.runtime.blockers import blockers, end_session
from tandem.runtime.database import migrate
from tandem.runtime.program import main

# How long a thread that has an answer of a database waits for the interpreter while another thread folds. Python's own
# five milliseconds are too long: an answer comes in many pieces, and each would wait.
_SWITCH_SECONDS = 0.001


def _migrate(settings: Settings) -> Done:
    revision = migrate(settings.read_database, MIGRATIONS, SCHEMA)
    return Done(f"{SCHEMA} is at revision {revision}", {"schema": SCHEMA, "revision": revision})


ACTIONS = {
    "migrate": Action("bring the read database's schema up to date", _migrate),
    "blockers": Action(
        "show who holds others up in the read database", lambda settings: blockers(settings.read_database)
    ),
    "end-session": Action(
        "end a session that `blockers` shows, by its process id",
        lambda settings, pid: end_session(settings.read_database, pid),
        takes=int,
    ),
}

if __name__ == "__main__":
    sys.setswitchinterval(_SWITCH_SECONDS)
    sys.exit(main("projector", Settings, build, ACTIONS, "follow the feed until SIGTERM"))
