"""The stores of `tandem up`, below a folder that nobody else may pass through."""

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tandem.cli import embedded
from tandem.cli.child import StackError
from tandem.cli.embedded import Postgres, memcached_path
from tandem.cli.local_stack import LocalStack, sole_user_of
from tandem.read_store.nodes import node_client
from tandem.testing.ports import free_port
from tandem.testing.stack import kill

IS_ROOT = os.geteuid() == 0
MODULES = {"command": "command_server", "query": "query_server", "projector": "projector"}
# Which of these files the user nobody can look into, and which of these sockets it can connect to.
INTRUDER = """
import json, os, pwd, socket, sys
os.setgroups([])
os.setgid(pwd.getpwnam("nobody").pw_gid)
os.setuid(pwd.getpwnam("nobody").pw_uid)
done = []
for path in sys.argv[1:]:
    try:
        if path.endswith("/socket"):
            socket.socket(socket.AF_UNIX).connect(path)
        elif os.path.isdir(path):
            os.listdir(path)
        else:
            open(path).read()
        done.append(path)
    except OSError:
        pass
print(json.dumps(done))
"""


@pytest.fixture(scope="module")
def private() -> Iterator[Path]:
    """As /root is; for root, with PostgreSQL's programs in it, as in a virtual environment there."""
    with tempfile.TemporaryDirectory(prefix="tandem-test-") as folder, pytest.MonkeyPatch.context() as patch:
        Path(folder).chmod(0o711)
        below = Path(folder) / "private"
        below.mkdir(mode=0o700)
        if IS_ROOT:
            package = embedded.postgres_folder().parents[1]
            for part in (package, package.with_name(f"{package.name}.libs")):
                shutil.copytree(part, below / part.name, symlinks=True)
            patch.setattr(embedded, "postgres_folder", lambda: below / package.name / "pginstall" / "bin")
            patch.setattr(embedded, "_PROGRAMS", Path(folder) / "var" / "tandem")
        yield below


@pytest.fixture(scope="module")
def stack(private: Path) -> Iterator[LocalStack]:
    """Its stores run."""
    folder = private / "data"
    stack = LocalStack(folder, {"postgres": free_port()}, MODULES)
    with sole_user_of(folder):
        try:
            stack.start_stores(lambda _: None)
            yield stack
        finally:
            stack.stop()


def modes(folder: Path) -> dict[str, str]:
    return {it.name: f"{stat.S_IMODE(it.stat().st_mode):o}" for it in folder.iterdir()}


def rules(data: Path) -> list[list[str]]:
    lines = (data / "pg_hba.conf").read_text(encoding="utf-8").splitlines()
    return [line.split() for line in lines if line and not line.startswith("#")]


def test_folders_and_secrets_are_for_their_owner_and_what_is_above_stays_as_it_was(
    stack: LocalStack, private: Path
) -> None:
    found = modes(stack.folder)
    wanted = {"postgres": "700", "postgres.password": "600", "cache.secret": "600"}
    wanted |= {"memcached": "700"} if stack.memcached else {}
    assert found | wanted == found
    assert modes(private)["data"] == "700"
    assert modes(private.parent)["private"] == "700"


def test_who_has_no_password_is_refused_by_postgresql(stack: LocalStack) -> None:
    for password in (None, "postgres"):
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(stack.postgres.url("postgres"), password=password)
    assert {rule[-1] for rule in rules(stack.folder / "postgres")} == {"scram-sha-256"}
    assert stack.postgres.password_file is not None
    password = stack.postgres.password_file.read_text(encoding="ascii").strip()
    with psycopg.connect(stack.postgres.url("postgres"), password=password) as connection:
        assert connection.execute("SELECT rolpassword LIKE 'SCRAM-SHA-256$%' FROM pg_authid LIMIT 1").fetchone()


def test_no_argument_says_a_password(stack: LocalStack) -> None:
    secrets = [(stack.folder / name).read_text("ascii").strip() for name in ("postgres.password", "cache.secret")]
    arguments = Path(f"/proc/{stack.postgres.pid}/cmdline").read_text("utf-8")
    settings = json.dumps([it.settings for it in (stack.command_server, stack.query_server, stack.projector)])
    assert not any(secret in arguments + settings for secret in secrets)


@pytest.mark.skipif(memcached_path() is None, reason="memcached is not installed")
def test_the_cache_answers_on_a_socket_that_is_ours(stack: LocalStack) -> None:
    assert stack.memcached is not None
    for _ in range(2):
        client = node_client(stack.memcached.address, timeout=2.0)
        client.store({"key": b"entry"}, 60)
        assert client.ask(["key"]).answer() == {"key": b"entry"}
        client.close()
        # It leaves its socket behind.
        kill(stack.memcached)
        stack.memcached.start()


@pytest.mark.skipif(not IS_ROOT, reason="only root can be another user")
def test_another_user_reads_nothing_and_reaches_no_store(stack: LocalStack) -> None:
    """memcached runs as this one, where root starts it."""
    paths = [str(it) for it in (stack.folder, *stack.folder.iterdir())]
    paths += [stack.memcached.address.removeprefix("unix:")] if stack.memcached else []
    command = [sys.executable, "-I", "-S", "-c", INTRUDER]
    done = subprocess.run([*command, *paths], cwd="/", capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
    root = subprocess.run([*command, *paths, "/"], cwd="/", capture_output=True, text=True, check=True)
    assert json.loads(root.stdout) == ["/"], "it does look"


def test_data_from_before_there_were_passwords_gets_one_and_is_there(private: Path) -> None:
    before = Postgres(private / "earlier", free_port(), settings={"fsync": "off"})
    before.start()
    before.create_database("kept")
    before.stop()
    assert "trust" in {rule[-1] for rule in rules(private / "earlier")}
    file = private / "earlier.password"
    now = Postgres(private / "earlier", before.port, settings={"fsync": "off"}, password_file=file)
    now.start()
    try:
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(now.url("kept"))
        with psycopg.connect(now.url("kept"), password=file.read_text("ascii").strip()) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
    finally:
        now.stop()


def test_a_password_that_is_not_of_these_data_is_replaced(private: Path) -> None:
    file = private / "other.password"
    file.write_text("of data that are gone\n")
    server = Postgres(private / "other", free_port(), settings={"fsync": "off"}, password_file=file)
    server.start()
    server.create_database("shop")
    server.stop()


def test_a_socket_whose_name_would_be_too_long_is_elsewhere_and_goes_with_its_node(private: Path) -> None:
    node = embedded.Memcached(folder=private / ("x" * 100))
    [path] = [Path(node.address.removeprefix("unix:")).parent]
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    del node
    assert not path.exists()


@pytest.mark.parametrize("spoil", ["something", "sticky"])
def test_a_folder_that_others_use_is_refused_and_stays_as_it_is(spoil: str, tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    if spoil == "something":
        (folder / "theirs").touch()
    folder.chmod(0o755 if spoil == "something" else 0o1777)
    mode = folder.stat().st_mode
    with pytest.raises(StackError, match="is no data folder of yours"), sole_user_of(folder):
        pass
    assert folder.stat().st_mode == mode


def test_a_data_folder_of_before_is_closed(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    (tmp_path / "postgres").mkdir()
    tmp_path.chmod(0o755)
    with sole_user_of(tmp_path):
        assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700
