"""`python -m command_server [serve | migrate | begin-epoch]`"""

import argparse
import sys

from sqlalchemy.exc import DBAPIError

from command_server.app import MIGRATIONS, build
from command_server.settings import Settings
from tandem.commands.maintenance import begin_epoch, ensure_partitions
from tandem.feed.table import SCHEMA
from tandem.runtime.database import create_database_engine, migrate
from tandem.runtime.server import run
from tandem.runtime.settings import SettingsError, load
from tandem.runtime.telemetry import configure_logging


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m command_server", description="Tandem's command service.")
    parser.add_argument(
        "action",
        nargs="?",
        default="serve",
        choices=("serve", "migrate", "begin-epoch"),
        help="serve (default): answer calls until SIGTERM. migrate: bring the write database's schema up to date."
        " begin-epoch: name the feed anew, after the write database was restored to an earlier state; tokens from"
        " before are refused then, and the projector must be reset",
    )
    action = parser.parse_args().action
    try:
        settings = load(Settings)
        configure_logging(settings.log.level, "command_server")
        if action == "serve":
            return run(build(settings))
        if action == "migrate":
            sys.stdout.write(f"{SCHEMA} is at revision {_migrate(settings)}\n")
        else:
            sys.stdout.write(f"the feed's epoch is {_begin_epoch(settings)}\n")
    except SettingsError as error:
        sys.stderr.write(f"command_server: {error}\n")
        return 2
    except DBAPIError as error:
        sys.stderr.write(f"command_server: {action} failed: {error.orig}\n")
        return 1
    return 0


def _migrate(settings: Settings) -> str:
    """The tables, and the feed's partitions ahead: servers may have no right to make them."""
    revision = migrate(settings.database, MIGRATIONS, SCHEMA)
    engine = create_database_engine(settings.database, name="tandem-command-migrate", pool_size=1, durable=True)
    try:
        with engine.begin() as connection:
            ensure_partitions(connection)
    finally:
        engine.dispose()
    return revision


def _begin_epoch(settings: Settings) -> str:
    engine = create_database_engine(settings.database, name="tandem-command-epoch", pool_size=1, durable=True)
    try:
        with engine.begin() as connection:
            return str(begin_epoch(connection))
    finally:
        engine.dispose()


if __name__ == "__main__":
    sys.exit(main())
