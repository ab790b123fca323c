"""`python -m query_server [serve]`"""

import argparse
import sys

from query_server.app import build
from query_server.settings import Settings
from tandem.runtime.server import run
from tandem.runtime.settings import SettingsError, load
from tandem.runtime.telemetry import configure_logging


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m query_server", description="Tandem's query service.")
    parser.add_argument(
        "action", nargs="?", default="serve", choices=("serve",), help="serve (default): answer calls until SIGTERM"
    )
    parser.parse_args()
    try:
        settings = load(Settings)
        configure_logging(settings.log.level, "query_server")
        return run(build(settings))
    except SettingsError as error:
        sys.stderr.write(f"query_server: {error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
