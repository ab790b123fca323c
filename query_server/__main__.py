"""`python -m query_server [serve]`"""

import sys

from query_server.app import build
from query_server.settings import Settings
from tandem.runtime.program import main

if __name__ == "__main__":
    sys.exit(main("query_server", Settings, build, {}, "answer calls until SIGTERM"))
