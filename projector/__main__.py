"""`python -m projector [serve | migrate | reset]`"""

import argparse
import sys

from sqlalchemy.exc import DBAPIError

from projector.app import MIGRATIONS, build
from projector.settings import Settings
from shop.views import VIEWS
from tandem.feed.head import read_head
from tandem.projection.reset import StillHeld, reset
from tandem.read_store.tables import SCHEMA
from tandem.runtime.database import create_database_engine, migrate
from tandem.runtime.server import run
from tandem.runtime.settings import SettingsError, load
from tandem.runtime.telemetry import configure_logging

# How long a thread that has an answer of a database waits for the interpreter while another thread folds. Python's own
# five milliseconds are too long: an answer comes in many pieces, and each would wait.
_SWITCH_SECONDS = 0.001


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m projector", description="Tandem's projector.")
    parser.add_argument(
        "action",
        nargs="?",
        default="serve",
        choices=("serve", "migrate", "reset"),
        help="serve (default): follow the feed until SIGTERM. migrate: bring the read database's schema up to date."
        " reset: empty the views, after the write database was restored; the next projector fills them from the feed",
    )
    action = parser.parse_args().action
    try:
        settings = load(Settings)
        configure_logging(settings.log.level, "projector")
        if action == "serve":
            sys.setswitchinterval(_SWITCH_SECONDS)
            return run(build(settings))
        if action == "migrate":
            sys.stdout.write(f"{SCHEMA} is at revision {migrate(settings.read_database, MIGRATIONS, SCHEMA)}\n")
        else:
            _reset(settings)
            sys.stdout.write("the views are empty; start a projector to fill them from the feed\n")
    except SettingsError as error:
        sys.stderr.write(f"projector: {error}\n")
        return 2
    except StillHeld as error:
        sys.stderr.write(f"projector: {error}\n")
        return 1
    except DBAPIError as error:
        sys.stderr.write(f"projector: {action} failed: {error.orig}\n")
        return 1
    return 0


def _reset(settings: Settings) -> None:
    feed = create_database_engine(settings.feed_database, name="tandem-projector-reset", pool_size=1)
    read = create_database_engine(settings.read_database, name="tandem-projector-reset", pool_size=1)
    try:
        with feed.connect() as connection:
            epoch = read_head(connection).epoch
        with read.begin() as connection:
            reset(connection, list(VIEWS.values()), epoch)
    finally:
        read.dispose()
        feed.dispose()


if __name__ == "__main__":
    sys.exit(main())
