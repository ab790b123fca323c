"""PostgreSQL under Patroni, with an etcd: what fails over by itself. `python -m benchmarks.scale.patroni` says in which
folder Patroni is to be installed.
"""

import contextlib
import json
import os
import shutil
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import psycopg
from psycopg import sql

from tandem.cli.child import HOST, Child, StackError
from tandem.cli.embedded import postgres_programs, postgres_user
from tandem.testing.ports import free_port

_VERSION = "4.1.5"
# The least that Patroni takes: how long a leader that says nothing is believed to be there.
TTL, LOOP, RETRY = 20, 2, 5

_RULES = ["local all all trust", "host all all 127.0.0.1/32 trust", "host replication all 127.0.0.1/32 trust"]


def folder_of_patroni() -> Path:
    """Where PostgreSQL's user, as whom Patroni runs, can reach it."""
    home = Path("/var/lib/tandem") if os.geteuid() == 0 else Path.home() / ".cache" / "tandem"
    return home / f"patroni-{_VERSION}"


def missing() -> str | None:
    """Why there can be no cluster here; None where there can."""
    if not (folder_of_patroni() / "bin" / "patroni").exists():
        return f"Patroni is not in {folder_of_patroni()}: tools/install_patroni.sh"
    return "etcd is not on the PATH: tools/install_patroni.sh" if shutil.which("etcd") is None else None


class Etcd(Child):
    """One member, with its data in a folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__("etcd", free_port(), folder.with_suffix(".log"))
        self._folder = folder
        self._peers = free_port()

    def launch(self) -> None:
        program = shutil.which("etcd")
        assert program is not None, "etcd is on the PATH"
        own, peers = f"http://{self.address}", f"http://{HOST}:{self._peers}"
        options = {
            "data-dir": str(self._folder),
            "listen-client-urls": own,
            "advertise-client-urls": own,
            "listen-peer-urls": peers,
            "initial-advertise-peer-urls": peers,
            "initial-cluster": f"default={peers}",
            "log-level": "warn",
        }
        self._spawn([program, *(f"--{key}={value}" for key, value in options.items())])


class Node(Child):
    """A PostgreSQL and the Patroni that starts it, promotes it and has it follow. `port` is PostgreSQL's."""

    def __init__(self, name: str, folder: Path, etcd: Etcd, settings: Mapping[str, str]) -> None:
        """folder: new, where the user of PostgreSQL comes. settings: of PostgreSQL, for the whole cluster."""
        super().__init__(name, free_port(), folder / "patroni.log")
        self._api = free_port()
        self._folder = folder
        user = postgres_user()
        own = f"{HOST}:{self._api}"
        self._config: dict[str, Any] = {
            "scope": "tandem",
            "name": name,
            "restapi": {"listen": own, "connect_address": own},
            "etcd3": {"host": etcd.address},
            "bootstrap": {
                "dcs": {
                    "ttl": TTL,
                    "loop_wait": LOOP,
                    "retry_timeout": RETRY,
                    # What is acknowledged is on the standby, and only that one is promoted.
                    "synchronous_mode": True,
                    "postgresql": {"use_pg_rewind": True, "parameters": dict(settings), "pg_hba": _RULES},
                },
                "initdb": [{"encoding": "UTF8"}, {"locale": "C.UTF-8"}, {"auth": "trust"}],
            },
            "postgresql": {
                "listen": self.address,
                "connect_address": self.address,
                "data_dir": str(folder / "data"),
                "bin_dir": str(postgres_programs(user)),
                "pgpass": str(folder / "pgpass"),
                "authentication": {"superuser": {"username": "postgres"}, "replication": {"username": "postgres"}},
                "parameters": {"unix_socket_directories": ""},
            },
        }

    def launch(self) -> None:
        user = postgres_user()
        self._folder.mkdir(mode=0o700, exist_ok=True)
        file = self._folder / "patroni.json"
        # JSON is YAML.
        file.write_text(json.dumps(self._config), encoding="utf-8")
        if user is not None:
            shutil.chown(self._folder, user)
            shutil.chown(file, user)
        # Its PATH has what PostgreSQL's own programs need, and HOME is one that it may read.
        environment = {"PATH": os.environ["PATH"], "HOME": str(self._folder), "LANG": "C.UTF-8"}
        program = [str(folder_of_patroni() / "bin" / "python"), "-m", "patroni", str(file)]
        self._spawn(program, user=user, folder=self._folder, environment=environment)

    def serves(self) -> bool:
        """Whether its PostgreSQL takes connections."""
        try:
            psycopg.connect(self.url("postgres"), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def says(self, path: str = "patroni") -> Mapping[str, Any]:
        """What Patroni says of the node, or of the "cluster". Raises OSError while it does not answer."""
        with urllib.request.urlopen(f"http://{HOST}:{self._api}/{path}", timeout=2) as answer:
            found: Mapping[str, Any] = json.load(answer)
            return found

    def crash(self) -> None:
        """SIGKILL for both, as when its machine loses its power."""
        patroni = psutil.Process(self.pid)
        below = patroni.children(recursive=True)
        server = self._postmaster()
        # Patroni first: it would begin PostgreSQL anew.
        for it in (patroni, *below, *([server, *server.children()] if server is not None else [])):
            _kill(it)
        super().stop()

    def crash_postgres(self) -> None:
        """SIGKILL for PostgreSQL alone: Patroni goes on."""
        server = self._postmaster()
        if server is None:
            raise StackError(f"{self.name} has no PostgreSQL that could be killed")
        _kill(server)

    def stop(self) -> int:
        """Patroni stops its PostgreSQL."""
        code = super().stop()
        if (left := self._postmaster()) is not None:
            _kill(left)
        return code

    def url(self, database: str) -> str:
        return f"postgresql://postgres@{self.address}/{database}"

    def create_database(self, name: str) -> None:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))

    def _postmaster(self) -> psutil.Process | None:
        """The PostgreSQL that runs in our folder: Patroni is not its parent."""
        try:
            # Written by a server that may have been killed since: its number is another's by then, or nobody's.
            pid = int((self._folder / "data" / "postmaster.pid").read_text(encoding="ascii").split()[0])
            process = psutil.Process(pid)
            return process if process.cwd() == str(self._folder / "data") else None
        except (FileNotFoundError, psutil.NoSuchProcess):
            return None


def _kill(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()


def urls_of(nodes: Sequence[Node]) -> str:
    """As a URL names several servers."""
    return ",".join(it.address for it in nodes)


if __name__ == "__main__":
    sys.stdout.write(f"{folder_of_patroni()}\n")
