"""The embedded stores as real processes."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from tandem.cli import embedded
from tandem.cli.child import StackError, port_in_use
from tandem.cli.embedded import Memcached, Postgres
from tests.support.ports import free_port
from tests.support.stack import kill, pause, runs, wait_until

Nodes = Callable[[int], list[Memcached]]


@pytest.fixture
def folder() -> Iterator[Path]:
    # Not under pytest's own temporary folder: see the fixture `postgres`.
    with tempfile.TemporaryDirectory(prefix="tandem-test-") as name:
        yield Path(name)


@pytest.fixture
def own_postgres(folder: Path) -> Iterator[Postgres]:
    """A server of the test's own, not started."""
    server = Postgres(folder / "data", free_port(), settings={"fsync": "off"})
    yield server
    server.stop()


def write_and_read(server: Postgres, words: str) -> list[str]:
    with psycopg.connect(server.url("shop"), autocommit=True) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS note (words text)")
        connection.execute("INSERT INTO note VALUES (%s)", (words,))
        return [row[0] for row in connection.execute("SELECT words FROM note")]


def test_what_was_written_survives_a_stop_and_a_kill(own_postgres: Postgres) -> None:
    own_postgres.start()
    own_postgres.create_database("shop")
    assert write_and_read(own_postgres, "first") == ["first"]
    assert own_postgres.stop() == 0
    own_postgres.start()
    assert write_and_read(own_postgres, "second") == ["first", "second"]
    kill(own_postgres)
    own_postgres.start()
    assert write_and_read(own_postgres, "third") == ["first", "second", "third"]


def test_the_user_of_postgresql_is_made_where_the_path_has_no_useradd(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[list[str]] = []
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(embedded, "_exists", lambda _: False)
    monkeypatch.setattr(embedded, "run_to_end", lambda command, _: made.append(command))
    assert embedded.postgres_user() == made[0][-1]
    assert made[0][0] == "/usr/sbin/useradd"


def test_a_stop_does_not_wait_for_clients_that_stay(own_postgres: Postgres) -> None:
    own_postgres.start()
    connection = psycopg.connect(own_postgres.url("postgres"), autocommit=True)
    connection.execute("SELECT 1")
    assert own_postgres.stop() == 0
    connection.close()


def test_a_database_is_created_once(own_postgres: Postgres) -> None:
    own_postgres.start()
    own_postgres.create_database("shop")
    write_and_read(own_postgres, "kept")
    own_postgres.create_database("shop")
    assert write_and_read(own_postgres, "more") == ["kept", "more"]


def test_postgres_listens_on_loopback_alone_and_has_no_socket_file(own_postgres: Postgres) -> None:
    own_postgres.start()
    with psycopg.connect(own_postgres.url("postgres")) as connection:
        settings = connection.execute(
            "SELECT current_setting('listen_addresses'), current_setting('unix_socket_directories')"
        ).fetchone()
    assert settings == ("127.0.0.1", "")


def test_a_data_folder_that_was_only_half_made_is_made_anew(own_postgres: Postgres, folder: Path) -> None:
    (folder / "data.new").mkdir()
    (folder / "data.new" / "PG_VERSION").write_text("half")
    own_postgres.start()
    assert not (folder / "data.new").exists()


def test_a_start_that_fails_says_why_with_the_log(own_postgres: Postgres, folder: Path) -> None:
    own_postgres.start()
    second = Postgres(folder / "data", free_port(), log=folder / "second.log")
    with pytest.raises(StackError, match=r"PostgreSQL ended with exit code 1(?s:.)*postmaster.pid"):
        second.start()
    assert second.exit_code() == 0


def test_memcached_starts_empty_pauses_and_stops(memcached_nodes: Nodes) -> None:
    [node] = memcached_nodes(1)
    pause(node)
    assert psutil.Process(node.pid).status() == psutil.STATUS_STOPPED
    assert node.stop() == 0, "a paused one stops too"
    assert not port_in_use(node.port)
    node.start()
    kill(node)
    assert node.exit_code() == 0


PARENT = """
import sys, time
from pathlib import Path
from tandem.cli.embedded import Memcached, Postgres
from tests.support.ports import free_port
children = [Postgres(Path(sys.argv[1]) / "data", free_port(), settings={"fsync": "off"})]
children += [Memcached(free_port())] if sys.argv[2] == "with memcached" else []
for child in children:
    child.start()
print(*[child.pid for child in children], flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("cache", ["without memcached", "with memcached"])
def test_the_stores_die_with_the_process_that_started_them(cache: str, folder: Path, memcached_nodes: Nodes) -> None:
    memcached_nodes(int(cache == "with memcached"))  # which says so where there is none
    command = [sys.executable, "-c", PARENT, str(folder), cache]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        children = [process for pid in pids for process in (psutil.Process(pid), *psutil.Process(pid).children())]
        parent.send_signal(signal.SIGKILL)
    assert children
    wait_until(lambda: not any(map(runs, children)), "the children are gone")
