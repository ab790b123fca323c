"""The next release's query_server."""

from tests.support.next_release import run

if __name__ == "__main__":
    run("query_server")
