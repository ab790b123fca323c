"""PostgreSQL servers that come from another one: by a base backup, followed by what it streams or has archived."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import psycopg

from tandem.cli.child import as_user, run_to_end
from tandem.cli.embedded import Postgres, postgres_programs, postgres_user
from tests.support.ports import free_port
from tests.support.stack import wait_until

# As the tests' own server: a machine's crash is not among the tests.
FAST = {"fsync": "off", "max_wal_size": "256MB", "shared_buffers": "32MB"}


def run_program(program: str, *arguments: str) -> None:
    """Runs one of PostgreSQL's own, as the user that its server runs as. Raises StackError."""
    user = postgres_user()
    command = [str(postgres_programs(user) / program), *arguments]
    run_to_end(as_user(user, command), f"{program} failed", folder=Path("/"))


def new_folder(folder: Path) -> Path:
    """That the server's user may write."""
    folder.mkdir(mode=0o700)
    if (user := postgres_user()) is not None:
        shutil.chown(folder, user)
    return folder


def base_backup(server: Postgres, folder: Path, *options: str) -> Path:
    """A copy of a running server's data, in a new folder."""
    url = server.url("postgres")
    run_program(
        "pg_basebackup", "-D", str(new_folder(folder)), "-d", url, "-X", "stream", "-c", "fast", "--no-sync", *options
    )
    return folder


class Standby(Postgres):
    """It follows `primary` from its base backup on, until it is promoted."""

    def __init__(self, primary: Postgres, folder: Path, settings: Mapping[str, str] | None = None) -> None:
        base_backup(primary, folder, "-R")
        name = f"host=127.0.0.1 port={primary.port} user=postgres application_name=standby"
        super().__init__(folder, free_port(), settings={**FAST, **(settings or {}), "primary_conninfo": name})
        self._primary = primary

    def follow(self) -> None:
        """Starts, and waits until it streams."""
        self.start()
        with psycopg.connect(self._primary.url("postgres"), autocommit=True) as connection:
            streams = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"
            wait_until(lambda: connection.execute(streams).fetchone() == (1,), "the standby streams")

    def promote(self) -> None:
        """It takes writes, at the address of the primary, which is gone."""
        if self.exit_code() is not None:
            self.start()
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute("SELECT pg_promote()")
        self.stop()
        self.port = self._primary.port
        self.start()
