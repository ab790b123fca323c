"""What a query server's process does."""

from query_server.app import build
from query_server.settings import Settings
from tandem.runtime.program import main


def run() -> int:
    return main("query_server", Settings, build, {}, "answer calls until SIGTERM")
