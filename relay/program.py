"""What a relay's process does."""

from relay.app import build
from relay.settings import Settings
from tandem.runtime.program import main


def run() -> int:
    return main("relay", Settings, build, {}, "publish the feed's events until SIGTERM")
