"""`python -m relay [serve]`"""

import sys

from relay.app import build
from relay.settings import Settings
from tandem.runtime.program import main

if __name__ == "__main__":
    sys.exit(main("relay", Settings, build, {}, "publish the feed's events until SIGTERM"))
