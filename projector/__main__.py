"""`python -m projector [serve | migrate | reset]`"""

import sys

from projector.app import MIGRATIONS, build
from projector.settings import Settings
from shop.views import VIEWS
from tandem.feed.head import read_head
from tandem.projection.reset import reset
from tandem.read_store.tables import SCHEMA
from tandem.runtime.database import migrate, transaction
from tandem.runtime.program import Action, Done, main

# How long a thread that has an answer of a database waits for the interpreter while another thread folds. Python's own
# five milliseconds are too long: an answer comes in many pieces, and each would wait.
_SWITCH_SECONDS = 0.001


def _migrate(settings: Settings) -> Done:
    revision = migrate(settings.read_database, MIGRATIONS, SCHEMA)
    return Done(f"{SCHEMA} is at revision {revision}", {"schema": SCHEMA, "revision": revision})


def _reset(settings: Settings) -> Done:
    with transaction(settings.feed_database, "tandem-projector-reset") as connection:
        epoch = read_head(connection).epoch
    with transaction(settings.read_database, "tandem-projector-reset") as connection:
        reset(connection, list(VIEWS.values()), epoch, hung_seconds=settings.follow.hung_seconds)
    return Done("the views are empty; start a projector to fill them from the feed", {})


ACTIONS = {
    "migrate": Action("bring the read database's schema up to date", _migrate),
    "reset": Action("empty the views; the next projector fills them from the feed", _reset),
}

if __name__ == "__main__":
    sys.setswitchinterval(_SWITCH_SECONDS)
    sys.exit(main("projector", Settings, build, ACTIONS, "follow the feed until SIGTERM"))
